"""`edgekit reproduce`: the same inputs give the same bytes, from another folder too; what differs is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge import artifact, codec, pipeline, project, reproduction
from edge.artifact import Artifact
from edge.calibration.data import Sample
from edge.errors import ArtifactError
from edge.findings import Finding
from edge.reproduction import Places
from edge.stages import importing, rounding
from tests.small_models import classifier, labelled_data


def _checkout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "net.tflite").write_bytes(classifier())
    np.savez(folder / "data.npz", **labelled_data())
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with net.tflite and data.npz."""
    return _checkout(tmp_path_factory.mktemp("made") / "checkout")


def _build(checkout: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.chdir(checkout)
    settings = {"source": "net.tflite", "targets": [target], "calibration": "data.npz", "max_drop": "5%"}
    (made,) = pipeline.build(project.resolve({**settings, "output": "out"}))
    return artifact.read(checkout / "out" / made.path.name)


@pytest.mark.parametrize("target", ["coral", "rpi4"])
def test_a_build_repeats_in_another_checkout(
    checkout: Path, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a second checkout the same program comes, byte by byte, and the same manifest but for times."""
    made = _build(checkout, target, monkeypatch)
    monkeypatch.chdir(_checkout(tmp_path / "second"))
    found = reproduction.reproduce(made.path, Places())
    assert found.differences == ()
    assert found.outcome == "identical"
    again = _build(tmp_path / "second", target, monkeypatch)
    assert again.program.read_bytes() == made.program.read_bytes()


def _samples(values: int, count: int = 32) -> list[Sample]:
    return [Sample(id=str(i), inputs={"x": np.zeros((1, values), np.float32)}) for i in range(count)]


@pytest.mark.parametrize(
    ("values", "count", "batched"),
    [(16, 500, False), (16, 2001, True), (150_528, 55, False), (150_528, 56, True), (16, None, True)],
)
def test_the_size_of_the_data_decides_on_batches(values: int, count: int | None, batched: bool) -> None:
    """A batch is rounded otherwise in its last bits: whether there is one follows from the data and from no clock."""
    assert importing._worth_batching(_samples(values), count) is batched
    assert importing._worth_batching(_samples(values, 31), count) is False


@pytest.mark.parametrize(("macs", "samples"), [(0, 200), (100_000, 200), (1_000_000, 125), (300_000_000, 16)])
def test_the_size_of_the_network_decides_on_disturbed_samples(macs: int, samples: int) -> None:
    """How many samples run with disturbed rounding follows from the network: other machines tell the same."""
    assert rounding._affordable(macs) == samples


def test_other_data_is_told_by_its_digest(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other calibration samples the programs differ, and the digest of the data is among the differences."""
    made = _build(checkout, "rpi4", monkeypatch)
    data = labelled_data()
    changed = {name: values * 2 if values.dtype.kind == "f" else values for name, values in data.items()}
    np.savez(tmp_path / "other.npz", **changed)
    found = reproduction.reproduce(made.path, Places(calibration=str(tmp_path / "other.npz")))
    assert found.outcome == "different"
    assert "calibration.digest" in {d.where for d in found.differences}


def test_what_is_timed_is_no_difference(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of this host, and the finding that depends on them, are other ones at each build; other facts count."""
    made = _build(checkout, "rpi4", monkeypatch)
    slow = Finding(rule="INT8_NOT_FASTER", severity="warning", message="int8 is not faster")
    details = {**made.manifest.details, "against_float32": {"ratio": 0.9}}
    other = replace(made, manifest=replace(made.manifest, findings=(*made.manifest.findings, slow), details=details))
    assert reproduction.compare(made, other).outcome == "identical"
    other = replace(made, manifest=replace(made.manifest, details={**details, "macs": 7}))
    assert [d.where for d in reproduction.compare(made, other).differences] == ["details.macs"]


def test_another_version_of_a_tool_is_named(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions that are not as recorded are listed apart, since they may explain the rest."""
    made = _build(checkout, "rpi4", monkeypatch)
    older = replace(made, manifest=replace(made.manifest, edgekit="0.0.1"))
    found = reproduction.compare(older, made)
    assert [(v.where, v.recorded) for v in found.versions] == [("edgekit", "0.0.1")]
    assert found.outcome == "same program"


def test_a_manifest_without_settings_is_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact that does not say how it was built is refused, with what to do."""
    made = _build(checkout, "rpi4", monkeypatch)
    with artifact.writing(tmp_path / "old") as work:
        (work / "model.tflite").write_bytes(made.program.read_bytes())
        artifact.write_manifest(work, replace(made.manifest, settings={}), {"model.tflite": "program"})
    with pytest.raises(ArtifactError, match="does not say how it was built"):
        reproduction.reproduce(tmp_path / "old", Places())


@pytest.mark.parametrize("settings", [{"source": 3}, {"sauce": "x"}, {"source": "a", "name": "b", "targets": "c"}])
def test_settings_that_do_not_fit_are_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    """A manifest with settings of another form gives one error, no traceback."""
    made = _build(checkout, "rpi4", monkeypatch)
    with artifact.writing(tmp_path / "odd") as work:
        (work / "model.tflite").write_bytes(made.program.read_bytes())
        artifact.write_manifest(work, replace(made.manifest, settings=settings), {"model.tflite": "program"})
    with pytest.raises(ArtifactError, match="settings cannot be read"):
        reproduction.reproduce(tmp_path / "odd", Places())


def test_the_command_says_what_came_of_it(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command exits with 0 and prints a record whose program is the same."""
    made = _build(checkout, "rpi4", monkeypatch)
    code = [sys.executable, "-c", "from edge.cli import main; main()", "reproduce", str(made.path), "-q", "--json"]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300, check=True)
    assert codec.from_json(reproduction.Reproduction, json.loads(done.stdout)).program is True
