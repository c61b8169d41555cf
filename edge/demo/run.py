"""`edgekit demo`: train two small networks on real data, build them for a Coral and a Raspberry Pi, check them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from edge import codec, isolate, pipeline, project
from edge.errors import OutputError

if TYPE_CHECKING:
    from edge.artifact import Artifact
    from edge.isolate import Progress

FRAMEWORKS = ("keras", "torch")
# Demo folders hold this file, so that a second run may replace its own results but nothing else.
_MARK = "edgekit.toml"


def run(folder: Path, targets: Sequence[str], frameworks: Sequence[str], progress: Progress) -> list[Artifact]:
    """Train, build and check into `folder`; return the artifacts. Raises OutputError for a folder of other things."""
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).is_file():
        raise OutputError(f"{folder} holds other files.", hint="Give a new or empty folder with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    sources = {"keras": "digits.keras", "torch": "digits_torch.py:make_digits"}
    module = resources.files("edge.demo") / "digits_torch.py"
    (folder / "digits_torch.py").write_text(module.read_text(encoding="utf-8"), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as work:
        progress("writing scikit-learn's handwritten digits: 1,797 images of 8x8 pixels", None)
        isolate.call("edge.demo.train:write_data", {"folder": str(folder)}, workdir=Path(work), progress=progress)
        for framework in frameworks:
            progress(f"training a small network with {framework}", None)
            isolate.call(f"edge.demo.train:{framework}", {"folder": str(folder)}, workdir=Path(work), progress=progress)
    codec.write_atomically(folder / _MARK, _settings(sources[frameworks[0]], targets))
    artifacts = []
    for framework in frameworks:
        settings = project.flat(project.read_file(folder / _MARK))
        settings |= {"source": str(folder / sources[framework]), "name": f"digits-{framework}"}
        artifacts += pipeline.build(project.resolve(settings), progress)
    return artifacts


def _settings(source: str, targets: Sequence[str]) -> str:
    names = ", ".join(f'"{t}"' for t in targets)
    return f"""# Written by `edgekit demo`; run `edgekit build` in this folder to build again.
[model]
source = "{source}"
task = "classification"

[data]
calibration = "digits.npz"   # x_train calibrates, x_test evaluates
evaluation = "digits.npz"

[build]
targets = [{names}]
output = "artifacts"

[budgets]
max_drop = "1%"
"""
