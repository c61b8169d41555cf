"""Export: from an artifact to a project of a platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge import artifact as artifacts
from edge.apps import android, bundle, contract, cpp, ios, python_pack, web, writer
from edge.apps.bundle import Bundle, ExportOptions
from edge.apps.contract import Contract
from edge.apps.pins import Platform
from edge.apps.writer import Written
from edge.artifact import Artifact

_GENERATORS: Mapping[Platform, Callable[[Bundle], dict[str, bytes]]] = {
    "android": android.files,
    "ios": ios.files,
    "cpp": cpp.files,
    "python": python_pack.files,
    "web": web.files,
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written where, and the contract that it holds."""

    folder: str
    platform: str
    name: str
    package: str
    contract: Contract
    files: Written


def export(source: Path, folder: Path, options: ExportOptions, *, force: bool = False) -> Exported:
    """Write the project of an artifact below `folder`; see edge.apps.writer for what happens to files that are there.

    Raises ArtifactError, ConfigError, DataError or OutputError; nothing is written then.
    """
    made, files = _made(artifacts.read(source), options)
    about = {"platform": options.platform, "name": made.name, "model": made.contract.model.sha256}
    written = writer.write(folder, files, about, force=force)
    return Exported(
        folder=str(folder),
        platform=options.platform,
        name=made.name,
        package=made.package,
        contract=made.contract,
        files=written,
    )


@artifacts.interprets
def _made(opened: Artifact, options: ExportOptions) -> tuple[Bundle, dict[str, bytes]]:
    made = bundle.make(opened, options)
    return made, {
        **_GENERATORS[options.platform](made),
        contract.FILE: contract.dumps(made.contract).encode(),
        contract.SCHEMA_FILE: contract.schema().encode(),
    }
