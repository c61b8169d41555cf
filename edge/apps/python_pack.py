"""`--platform python`: a package with the model, edgekit's own preprocessing, and a runner on LiteRT."""

from __future__ import annotations

from pathlib import Path

from edge.apps import naming
from edge.apps.bundle import Bundle
from edge.apps.readme import values_of
from edge.apps.render import render, template

_EDGE = Path(__file__).parents[1]
# These modules are shipped as they are, so that the package computes what the build computed.
_SHIPPED = {
    "errors": _EDGE / "errors.py",
    "signature": _EDGE / "signature.py",
    "preprocess": _EDGE / "preprocess.py",
    "affine": _EDGE / "calibration" / "affine.py",
    "postprocess": _EDGE / "postprocess.py",
}
_RESULTS = {
    "classification": "list[Classification]",
    "detection": "list[Detection]",
    "segmentation": "NDArray[np.int32]",
    "embedding": "NDArray[np.float32]",
    "raw": "list[NDArray[np.float32]]",
}


def files(bundle: Bundle) -> dict[str, bytes]:
    """Return the project's files by path."""
    module = naming.snake(bundle.name)
    names = [t.identifier for t in bundle.contract.inputs]
    values = {
        **values_of(bundle),
        "MODULE": module,
        "PYTHON_PARAMETERS": ", ".join(f"{n}: Array" for n in names),
        "PYTHON_ARGUMENTS": ", ".join(names),
        "PYTHON_EXAMPLE": ", ".join(names),
        "PYTHON_RESULT": _RESULTS[bundle.contract.postprocess.kind],
    }
    home = f"src/{module}"
    made = {
        "pyproject.toml": render(template("python/pyproject.toml.txt"), values),
        "README.md": render(template("python/README.md"), values),
        "tests/test_golden.py": render(template("python/test_golden.py.txt"), values),
        f"{home}/__init__.py": render(template("python/init.py.txt"), values),
        f"{home}/__main__.py": render(template("python/main.py.txt"), values),
        f"{home}/golden.py": render(template("python/golden.py.txt"), values),
        f"{home}/py.typed": "",
        f"{home}/_edgekit/__init__.py": '"""Modules of edgekit, shipped unchanged but for their imports."""\n',
    }
    for name, path in _SHIPPED.items():
        made[f"{home}/_edgekit/{name}.py"] = _shipped(path, f"{module}._edgekit")
    packed = {f"{home}/data/{path}": data for path, data in bundle.resources.items()}
    return {path: text.encode() for path, text in made.items()} | packed


def _shipped(path: Path, home: str) -> str:
    text = path.read_text(encoding="utf-8")
    return text.replace("from edge.calibration import", f"from {home} import").replace("from edge.", f"from {home}.")
