"""A program without an artifact: one that edgekit did not build, given to `check` as a file."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge import artifact as artifacts
from edge import codec, isolate
from edge.artifact import Manifest, Metrics, SourceRecord
from edge.errors import ArtifactError
from edge.isolate import Progress
from edge.signature import Signature

# By suffix: the runtime, and the kernels that run it on this host as they do in production.
PROGRAMS = {".tflite": "litert", ".pte": "executorch"}


@contextlib.contextmanager
def as_artifact(path: Path, *, kernels: str, evaluation: str | None, progress: Progress) -> Iterator[Path]:
    """Yield a temporary artifact of a program file whose golden vectors are this host's outputs.

    Inputs are the first samples of `evaluation`, else random ones. Raises ArtifactError, SourceError, DataError.
    """
    if path.suffix not in PROGRAMS:
        raise ArtifactError(
            f"{path} is no program that can be checked without its artifact; accepted: {', '.join(PROGRAMS)}.",
            hint="Give the folder that `edgekit build` wrote.",
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-bare-") as place:
        folder = Path(place) / "artifact"
        folder.mkdir()
        program = folder / f"model{path.suffix}"
        shutil.copyfile(path, program)
        told = isolate.call(
            "edge.stages.wrapping:run_here",
            {
                "program": str(program),
                "runtime": PROGRAMS[path.suffix],
                "kernels": kernels,
                "golden": str(folder / "golden.npz"),
                "evaluation": evaluation,
            },
            workdir=Path(place),
            name="host",
            progress=progress,
        )
        manifest = _manifest(path, codec.from_json(Signature, told["signature"]))
        artifacts.write_manifest(folder, manifest, {program.name: "program", "golden.npz": "golden"})
        yield folder


def _manifest(path: Path, signature: Signature) -> Manifest:
    from importlib.metadata import version

    return Manifest(
        edgekit=version("edgekit"),
        created="",
        name=path.stem,
        target="linux",
        runtime=PROGRAMS[path.suffix],
        recipe={},
        recipe_name="as given",
        quantizer="others",
        source=SourceRecord(name=path.name, kind="program", digest=artifacts.sha256(path)),
        calibration=None,
        evaluation=None,
        tools={},
        source_signature=signature,
        signature=signature,
        metrics=Metrics(),
        budgets={},
        verdict="unchecked",
        reasons=(),
        findings=(),
    )
