"""Each example is a folder that runs: its own script ends with 0 and leaves what its README promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from edge import artifact
from tests import board_setup

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
pytestmark = [pytest.mark.frameworks, pytest.mark.slow]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment where `python` and `edgekit` are those of this run; the examples share a cache."""
    cache = {"EDGEKIT_CACHE": str(tmp_path_factory.mktemp("cache")), "EDGEKIT_CACHE_LIMIT_GB": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **cache, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(name: str, folder: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """Run an example's script in a copy of its folder; return the folder and what it printed."""
    place = folder / name
    shutil.copytree(EXAMPLES / name, place)
    done = subprocess.run([str(place / "run.sh")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return place, done.stdout


def test_the_coral_classifier(tmp_path: Path, environment: dict[str, str]) -> None:
    """It trains, builds for coral and rpi4 within the budget, and checks."""
    place, _ = run("coral-classifier", tmp_path, environment)
    accuracy = artifact.read(place / "edgekit-build/digits-coral").manifest.metrics.accuracy
    assert accuracy is not None
    assert accuracy.float > 0.9


def test_the_pi_profiling(tmp_path: Path, environment: dict[str, str]) -> None:
    """The int8 program is checked and profiled over ssh, and int8 and float32 are compared by instructions."""
    with board_setup.emulated() as cache:
        place, told = run("pi-profiling", tmp_path, {**environment, "EDGEKIT_CACHE": str(cache)})
    assert "EMULATED_TIMES" in told
    assert "instructions" in told
    assert any((place / "edgekit-profiles").iterdir())


def test_the_android_app(tmp_path: Path, environment: dict[str, str]) -> None:
    """The module has the model, Kotlin code in its package, and a device test."""
    place, told = run("android-app", tmp_path, environment)
    assert "DigitsModel.kt" in told
    assert [p for p in (place / "app").rglob("*.kt") if "androidTest" in p.parts]
    assert list((place / "app").rglob("*.tflite"))


def test_the_ios_app(tmp_path: Path, environment: dict[str, str]) -> None:
    """The package has Swift code, an XCTest, and the Core ML model."""
    place, _ = run("ios-app", tmp_path, environment)
    assert (place / "app/Package.swift").is_file()
    assert [p for p in (place / "app").rglob("*.swift") if "Tests" in p.parts]
    assert list((place / "app").rglob("*.mlmodel"))


def test_the_accuracy_rescue(tmp_path: Path, environment: dict[str, str]) -> None:
    """Plain int8 loses more than five points; the searched recipe keeps the budget of one."""
    place, _ = run("accuracy-rescue", tmp_path, environment)
    plain, rescued = (artifact.read(place / f"{name}/make_net-rpi4").manifest for name in ("plain", "rescued"))
    assert plain.metrics.accuracy is not None
    assert plain.metrics.accuracy.drop > 0.05
    assert plain.verdict == "fail"
    assert rescued.metrics.accuracy is not None
    assert rescued.metrics.accuracy.drop <= 0.01
    assert rescued.verdict == "pass"


def test_the_ci_gate(tmp_path: Path, environment: dict[str, str]) -> None:
    """The script passes where one case is let through and one is stopped; the reports tell of the stopped one."""
    place, _ = run("ci-gate", tmp_path, environment)
    suite = ET.parse(place / "gate/results.xml").getroot()[0]
    assert "BASELINE_ACCURACY" in [c.get("name") for c in suite if c.find("failure") is not None]
    results = json.loads((place / "gate/findings.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
    assert "BASELINE_ACCURACY" in [r["ruleId"] for r in results if r["level"] == "error"]
    assert "FAIL" in (place / "gate/summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir()))
def test_each_example_is_listed_and_tested(folder: str) -> None:
    """A folder of examples/ has a README and a script, stands in docs/examples.md, and has a test here."""
    assert (EXAMPLES / folder / "README.md").is_file()
    assert os.access(EXAMPLES / folder / "run.sh", os.X_OK)
    assert f"`examples/{folder}`" in (ROOT / "docs/examples.md").read_text(encoding="utf-8")
    assert f"def test_the_{folder.replace('-', '_')}(" in Path(__file__).read_text(encoding="utf-8")
