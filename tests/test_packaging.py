"""The package: what is in the folders is what is installed, and the layers hold."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"edge": "edge", "targets": "edge.targets", "calibration": "edge.calibration"}


def project() -> dict[str, object]:
    data: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return data


def found_packages() -> set[str]:
    packages = set()
    for folder, name in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            # edge/targets and edge/calibration are links to the folders beside it.
            if folder != "edge" or not parts or parts[0] not in ("targets", "calibration"):
                packages.add(".".join((name, *parts)))
    return packages


def test_the_list_of_packages_is_whole() -> None:
    """Setuptools is told every package, and no other."""
    tool = project()["tool"]
    assert isinstance(tool, dict)
    listed = set(tool["setuptools"]["packages"])
    assert listed == found_packages()


def test_targets_and_calibration_are_links() -> None:
    """The folders stand at the top and are linked into the package for tools that work in place."""
    assert (ROOT / "edge/targets").is_symlink()
    assert (ROOT / "edge/calibration").is_symlink()
    assert (ROOT / "edge/targets").resolve() == ROOT / "targets"


def test_the_core_install_is_light() -> None:
    """`pip install edgekit` brings no framework."""
    data = project()["project"]
    assert isinstance(data, dict)
    names = {re.split(r"[<>=\[;]", line)[0] for line in data["dependencies"]}
    assert not names & {"tensorflow", "tensorflow-cpu", "torch", "keras", "ai-edge-litert", "executorch", "jax"}
    assert len(names) <= 8


def test_constraints_pin_what_the_extras_name() -> None:
    """The lock file pins every package that an extra asks for."""
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    data = project()["project"]
    assert isinstance(data, dict)
    for lines in data["optional-dependencies"].values():
        for line in lines:
            name = re.split(r"[<>=\[;]", line)[0].lower()
            if name not in ("edgekit", "tensorflow"):  # `tensorflow` is for systems without tensorflow-cpu
                assert name in pinned, name


def test_no_file_is_too_long() -> None:
    """No module is over 600 lines."""
    long = [
        str(path.relative_to(ROOT))
        for folder in (*FOLDERS, "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if not path.is_symlink() and len(path.read_text().splitlines()) > 600
    ]
    assert long == []
