"""`edgekit check --baseline`: a loss is a regression only where the samples show it, and each one is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from edge import artifact, baseline, checkup, isolate, pipeline, project, verdict
from edge.artifact import Artifact
from edge.baseline import Limits
from edge.errors import ArtifactError
from edge.targets import registry
from tests.small_models import classifier, labelled_data
from tests.tflite_builder import GraphBuilder


def _built(folder: Path, name: str, model: bytes, recipe: str = "int8") -> Artifact:
    (folder / f"{name}.tflite").write_bytes(model)
    settings = {
        "source": str(folder / f"{name}.tflite"),
        "name": name,
        "targets": ["linux"],
        "recipe": recipe,
        "calibration": str(folder / "data.npz"),
        "output": str(folder / "out"),
        "latency": "none",
    }
    (made,) = pipeline.build(project.resolve(settings))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data and three artifacts: good, the same as float32, and worse."""
    place = tmp_path_factory.mktemp("baseline")
    np.savez(place / "data.npz", **labelled_data())
    _built(place, "good", classifier())
    _built(place, "large", classifier(), "float32")
    _built(place, "worse", classifier(disturbed=0.8))
    return place


def held(folder: Path, name: str, before: str, limits: Limits | None = None, latency: str = "none") -> Artifact:
    """Return an artifact checked and held against another."""
    request = checkup.Request(evaluation=str(folder / "data.npz"), latency_profile=latency)
    checked = checkup.check(folder / "out" / f"{name}-linux", request)
    place = folder / "out" / f"{before}-linux"
    return baseline.held_against(checked, place, request, limits or Limits(), isolate.no_progress)


def severities(found: Artifact) -> dict[str, str]:
    """Return the severity of each finding about the baseline."""
    return {f.rule: f.severity for f in found.manifest.findings if f.rule.startswith("BASELINE_")}


def test_an_artifact_keeps_what_it_is_itself(folder: Path) -> None:
    """Against itself nothing is worse: no error, and the verdict stays."""
    found = held(folder, "good", "good")
    assert severities(found) == {"BASELINE_SIZE": "info", "BASELINE_ACCURACY": "info"}
    assert found.manifest.verdict == "pass"


def test_a_worse_classifier_fails_with_its_interval(folder: Path) -> None:
    """A loss that 400 paired samples show is an error with drop and interval, and the verdict is fail."""
    found = held(folder, "worse", "good")
    assert severities(found)["BASELINE_ACCURACY"] == "error"
    assert found.manifest.verdict == "fail"
    assert "95 % interval" in found.manifest.reasons[0]


def test_a_loss_within_the_limit_is_none(folder: Path) -> None:
    """With a limit above the interval's lower end the same loss is told, and no error."""
    found = held(folder, "worse", "good", Limits(drop=0.99))
    assert severities(found)["BASELINE_ACCURACY"] == "info"


def test_a_larger_program_fails(folder: Path) -> None:
    """A float program against its int8 baseline is over the size; the other way round it is not."""
    assert severities(held(folder, "large", "good"))["BASELINE_SIZE"] == "error"
    assert severities(held(folder, "good", "large"))["BASELINE_SIZE"] == "info"


def test_latency_is_compared_by_interleaved_blocks(folder: Path) -> None:
    """With a latency profile the finding has a ratio with its interval, device and mode."""
    found = held(folder, "good", "good", Limits(slowdown=0.9), latency="smoke")
    (told,) = (f for f in found.manifest.findings if f.rule == "BASELINE_LATENCY")
    assert told.severity == "info"
    assert "interval [" in told.message
    assert "measured" in told.message


def test_another_network_is_no_baseline(folder: Path, tmp_path: Path) -> None:
    """An artifact with other inputs is refused before anything is run."""
    builder = GraphBuilder()
    x = builder.input("pixels", (1, 16))
    weights, bias = np.ones((4, 16), np.float32), np.zeros(4, np.float32)
    builder.output(builder.fully_connected(x, weights, bias, name="z"), "z")
    data = labelled_data()
    np.savez(tmp_path / "data.npz", pixels=data["x"], y=data["y"])
    other = _built(tmp_path, "other", builder.build())
    request = checkup.Request(evaluation=str(folder / "data.npz"), latency_profile="none")
    checked = artifact.read(folder / "out" / "good-linux")
    with pytest.raises(ArtifactError, match="is no baseline"):
        baseline.held_against(checked, other.path, request, Limits(), isolate.no_progress)


def test_the_command_is_a_gate(folder: Path, tmp_path: Path) -> None:
    """`check --baseline` exits with 1 on a regression and writes it as a JUnit failure; without one with 0."""
    arguments = ["--evaluation", str(folder / "data.npz"), "--latency", "none", "-q"]
    good, worse, xml = folder / "out" / "good-linux", folder / "out" / "worse-linux", tmp_path / "r.xml"
    assert edgekit("check", str(good), "--baseline", str(good), *arguments).returncode == 0
    failed = edgekit("check", str(worse), "--baseline", str(good), "--report", str(xml), *arguments)
    assert failed.returncode == 1
    cases = {c.get("name"): [part.tag for part in c] for c in ET.parse(xml).iter("testcase")}
    assert cases["BASELINE_ACCURACY"] == ["failure"]
    assert cases["BASELINE_SIZE"] == ["system-out"], "what was kept is a case that passes"
    assert edgekit("check", str(good), "--max-regression", "1%", *arguments).returncode == 2


def test_what_could_not_be_compared_is_skipped(folder: Path) -> None:
    """Without evaluation data the comparison of accuracy is open: a skipped case, and no change of the verdict."""
    before, place = artifact.read(folder / "out" / "good-linux"), folder / "out" / "good-linux"
    request = checkup.Request(latency_profile="none")
    found = baseline.held_against(before, place, request, Limits(), isolate.no_progress)
    assert severities(found) == {"BASELINE_SIZE": "info", "BASELINE_ACCURACY": "warning"}
    assert found.manifest.verdict == before.manifest.verdict
    answered = verdict.outcomes(found.manifest, registry.target("linux"), found.size_bytes)
    assert {o.check: o.state for o in answered if o.check.startswith("BASELINE_")} == {
        "BASELINE_SIZE": "pass",
        "BASELINE_ACCURACY": "open",
    }


def edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    code = [sys.executable, "-c", "from edge.cli import main; main()"]
    return subprocess.run([*code, *arguments], capture_output=True, text=True, timeout=300, check=False)
