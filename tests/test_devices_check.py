"""Checking an artifact on a device: golden vectors, accuracy, latency, memory, and what is never claimed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import isolate
from edge.artifact import read
from edge.cli.outcome import run as edgekit
from edge.devices import attach
from edge.devices.base import DeviceFacts, parse
from edge.devices.check import ReplaySession, check_on_device, checksum
from edge.devices.client import Agent
from edge.devices.fake import QUIET, FakeDevice
from edge.devices.programs import describe
from edge.errors import DataError
from edge.signature import Signature, TensorSpec
from edge.stages.checking import compare_golden
from edge.targets.litert.session import open_program
from tests import board_setup

ROOT = Path(__file__).resolve().parents[1]
VWW = ROOT / "../shared/models/mlperf-vww-mobilenet/vww_96_int8.tflite"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an artifact for the Pi 4 and its labelled data."""
    return board_setup.built_artifact(tmp_path_factory.mktemp("built"))


def _fake(artifact: Path, **options: Any) -> FakeDevice:
    session = open_program(artifact / "model.tflite", kernels="xnnpack", threads=1)
    return FakeDevice(lambda values: [session.run({"x": values[0]})["y"]], **options)


def test_a_faithful_device_repeats_everything(artifact: tuple[Path, Path]) -> None:
    """Golden vectors agree, accuracy is that of the manifest, the latency is measured and has its verdict."""
    path, data = artifact
    with _fake(path) as device:
        record = check_on_device(path, device, evaluation=str(data))
    assert (record["mode"], record["findings"], record["instructions"]) == ("measured", [], None)
    (golden,) = record["golden"]["outputs"]
    assert (golden["differing"], golden["top1_changed"], golden["vectors"]) == (0, 0, 16)
    assert record["accuracy"]["samples"] == 400
    assert record["accuracy"]["quantized"] > 0.9
    assert (record["latency"]["median_ms"], record["latency"]["mode"]) == (2.0, "measured")
    assert record["memory"]["peak_kib"] == 35_000


@pytest.mark.parametrize(
    ("scheme", "exact", "accepted"),
    [
        ("float32", False, False),
        ("weight-only", False, False),
        ("float16", False, True),
        ("dynamic", False, True),
        ("dynamic", True, False),
    ],
)
def test_float_outputs_may_differ_more_where_values_are_rounded_on_the_way(
    scheme: str, exact: bool, accepted: bool
) -> None:
    """5e-3 of the largest value is another CPU's rounding for dynamic and float16, and a fault of float32 or here."""
    wanted = np.linspace(-1, 1, 8, dtype=np.float32)
    signature = Signature(
        inputs=(TensorSpec(name="x", shape=(1,), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=(8,), dtype="float32"),),
    )
    session = ReplaySession(signature, [{"y": wanted + np.float32(5e-3)}], [checksum({"x": wanted[:1]})])
    golden = {"in": {"x": wanted[None, :1]}, "out": {"y": wanted[None]}, "float": {}}
    found = [f.rule for f in compare_golden(session, golden, exact=exact, scheme=scheme)]
    assert found == ([] if accepted else ["GOLDEN_MISMATCH"])


def test_a_device_that_computes_something_else_is_found(artifact: tuple[Path, Path]) -> None:
    """Wrong outputs are an error finding, with the share that differs."""
    with FakeDevice(lambda values: [np.full((1, 4), 77, np.int8)]) as device:
        record = check_on_device(artifact[0], device, profile="none")
    assert [(f["rule"], f["severity"]) for f in record["findings"]] == [("GOLDEN_MISMATCH", "error")]
    assert record["latency"] is None


def test_time_inside_an_emulator_is_no_latency(artifact: tuple[Path, Path]) -> None:
    """A device that says that it is emulated gets no latency, whatever profile is asked for, also behind ssh."""
    facts = DeviceFacts(machine="aarch64", runtimes={"ai_edge_litert": "2"}, emulated=True)
    with _fake(artifact[0], facts=facts) as device:
        record = check_on_device(artifact[0], device, profile="standard")
        assert "measure" not in device.asked
    assert (record["mode"], record["latency"]) == ("emulated", None)


def test_a_throttled_board_gives_an_invalid_latency(artifact: tuple[Path, Path]) -> None:
    """The verdict is drawn from the state of the device, not of this host."""
    with _fake(artifact[0], environments=(QUIET, {**QUIET, "throttled": 0x4})) as device:
        record = check_on_device(artifact[0], device)
    assert record["latency"]["verdict"] == "invalid"


def test_another_runtime_version_is_told(artifact: tuple[Path, Path]) -> None:
    """An older LiteRT on the device is an info with the version to install."""
    built = read(artifact[0]).manifest.tools.get("ai-edge-litert")
    with _fake(artifact[0], facts=DeviceFacts(runtimes={"ai_edge_litert": "1.0.0"})) as device:
        record = check_on_device(artifact[0], device, profile="none")
    rules = [f["rule"] for f in record["findings"]]
    assert rules == (["RUNTIME_VERSION"] if built else [])


def test_data_that_changes_between_reads_is_refused(artifact: tuple[Path, Path]) -> None:
    """The outputs of one sample are never counted for another."""
    signature = read(artifact[0]).manifest.signature
    replay = ReplaySession(signature, [{"y": np.zeros((1, 4), np.int8)}], [0])
    with pytest.raises(DataError, match="gives other samples each time it is read"):
        replay.run({"x": np.ones((1, 16), np.int8)})


def test_check_of_an_int8_model_on_an_emulated_board(artifact: tuple[Path, Path], tmp_path: Path) -> None:
    """The whole check as a stage in a child: int8 equal to the host, accuracy emulated, instructions for a latency."""
    path, data = artifact
    with board_setup.emulated():
        request = {"artifact": str(path), "device": "emulator:rpi3", "evaluation": str(data)}
        record = isolate.call("edge.devices.check:check_stage", request, workdir=tmp_path, name="device")
    assert (record["mode"], record["latency"], record["facts"]["cpu_part"]) == ("emulated", None, "0xd03")
    (golden,) = record["golden"]["outputs"]
    assert golden["differing"] <= 1
    assert golden["largest"] <= 1
    assert record["accuracy"]["samples"] == 400
    assert record["accuracy"]["quantized"] == pytest.approx(read(path).manifest.metrics.accuracy.quantized, abs=0.02)  # type: ignore[union-attr]
    counted = [f for f in record["findings"] if f["rule"] == "NOT_COUNTED"]
    assert counted or record["instructions"]["repeatable"]
    assert record["memory"]["peak_kib"] > 10_000


def test_a_program_file_is_compared_with_this_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A uint8 network that others quantized, on an A53: the command says that its kernels differ, and by how much."""
    program = tmp_path / "uint8.tflite"
    program.write_bytes(board_setup.unsigned_network())
    with board_setup.emulated():
        assert edgekit(["check", str(program), "--device", "emulator:rpi3", "-q"], debug=False) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning KERNELS_DIFFER" in said
    assert "XNNPACK rounds uint8 convolutions otherwise on a Cortex-A53" in said
    assert "emulated, python runner" in said


def test_only_programs_are_checked_without_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another file is refused with what is accepted."""
    (tmp_path / "net.onnx").write_bytes(b"")
    assert edgekit(["check", str(tmp_path / "net.onnx"), "-q"], debug=False) != 0
    assert "accepted: .tflite, .pte" in capsys.readouterr().err


@pytest.fixture
def vww() -> Iterator[Path]:
    """Return a real person detector, where it is at hand."""
    if not VWW.exists():
        pytest.skip("the model is not at hand")
    with board_setup.emulated():
        yield VWW


def test_a_real_int8_model_is_equal_on_the_board(vww: Path) -> None:
    """MLPerf's person detector, 100 images: the same integers on a Pi 3 as here."""
    session = open_program(vww, kernels="xnnpack", threads=1)
    program = describe(vww, runtime="litert", kernels="xnnpack", threads=1, signature=session.signature)
    (spec,) = session.signature.inputs
    random = np.random.default_rng(7)
    samples = [{spec.name: random.integers(-128, 128, (1, *spec.shape[1:])).astype(np.int8)} for _ in range(100)]
    with attach.opened(parse("emulator:rpi3")) as device:
        found = list(Agent(device).run(program, samples))
    for sample, output in zip(samples, found, strict=True):
        assert {k: v.tolist() for k, v in session.run(sample).items()} == {k: v.tolist() for k, v in output.items()}
