"""`edgekit diagnose`: the ladder, the named culprit and fixes with their effect, from the stage to the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from edge.calibration.ranges import MinMax, Ranges
from edge.cli import diagnose as command
from edge.devices.ladder import diagnose_stage
from edge.errors import ConfigError, UsageError
from edge.isolate import no_progress
from edge.stages.diagnosing import best_fix, diagnose
from edge.targets.litert import calibrate, heads, probe
from tests.refine_models import ConvNet, conv_net
from tests.test_search import CLEAN, PLANTED, _request
from tests.tflite_builder import GraphBuilder, normal_samples

RUNGS = ["float carrier", "weights only", "activations only", "int8, reference kernels", "int8, xnnpack kernels"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The diagnosis of a network with a planted culprit in layer 1."""
    return diagnose(_request(tmp_path_factory.mktemp("planted"), PLANTED, count=400), no_progress)


def test_the_ladder_has_all_rungs_and_the_first_that_loses(planted: Any) -> None:
    """Float keeps everything; the planted network loses by its weights and by its activations."""
    assert [r["name"] for r in planted["ladder"]] == RUNGS
    assert [r["loses"] for r in planted["ladder"]] == [False, True, True, True, True]
    assert planted["culprit"] == "both"


def test_the_planted_layer_is_named_with_the_fix_that_was_measured(planted: Any) -> None:
    """The culprit leads the table and the finding, which says how much equalizing brought."""
    assert planted["layers"][0]["output"] == "layer_1"
    finding = next(f for f in planted["findings"] if f["rule"] == "CULPRIT")
    assert finding["op"] == "layer_1"
    assert finding["fix"].startswith("Equalize channels (int8-equalized): drop 0.0")
    effects = {f["fix"]: f for f in planted["fixes"]}
    assert effects["equalize channels"]["drop"] < 0.1 < effects["equalize channels"]["drop_before"]
    assert effects["keep layer_1 float"]["drop"] < 0.1


def test_the_cost_is_stated_and_small(planted: Any) -> None:
    """Ranking all layers costs less than ten passes over the samples."""
    cost = planted["cost"]
    assert cost["forward_passes"] == pytest.approx(cost["layer_runs"] / planted["samples"], abs=0.01)
    assert cost["layer_runs"] <= 3200


def test_only_activations_to_blame(tmp_path: Path) -> None:
    """Logits that one int8 scale cannot hold are a matter of activations, of the layer that makes them."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    weights = np.vstack([rng.standard_normal((4, 8)), rng.standard_normal((1, 8)) * 200])
    logits = builder.fully_connected(x, weights, [0, 0, 0, 0, -2000.0], name="logits")
    builder.output(builder.op("SOFTMAX", [logits], (1, 5), name="end"), "y")
    request = _request(tmp_path, CLEAN, count=400)
    program = builder.build()
    (tmp_path / "float.tflite").write_bytes(program)
    data = rng.standard_normal((400, 8)).astype(np.float32)
    classes = [int(o["y"].argmax()) for o in probe.outputs(program, [{"x": v[None]} for v in data])]
    np.savez(tmp_path / "data.npz", x=data, y=np.asarray(classes))
    from edge import codec
    from edge.targets.litert import contract, flatbuffer

    request["signature"] = codec.to_json(contract.signature_of(flatbuffer.load(program)))
    answer = diagnose(request, no_progress)
    assert answer["culprit"] == "activations"
    assert (answer["layers"][0]["output"], answer["layers"][0]["part"]) == ("logits", "activations")
    fix = next(f for f in answer["findings"] if f["rule"] == "CULPRIT")["fix"]
    assert fix.startswith("Tune the ranges (int8-tuned)")


def test_other_runtimes_are_refused(tmp_path: Path) -> None:
    """The ladder needs a runtime whose int8 form can be taken apart."""
    with pytest.raises(
        UsageError, match="Programs of coreml cannot be diagnosed; accepted: litert, edgetpu, executorch"
    ):
        diagnose(_request(tmp_path, CLEAN, count=60, runtime="coreml"), no_progress)


def _fix(name: str, *, db: float, operators: int) -> dict[str, Any]:
    effect = {"fix": name, "recipe": "int8", "failure": None, "drop": 0.0, "drop_before": 0.5, "snr_db": db}
    return {**effect, "snr_db_before": 5.0, "operators_float": operators, "operators_float_before": 3}


def test_a_fix_without_another_float_operator_goes_first() -> None:
    """Operators that were float before do not count against a fix; where only float ones help, they are named."""
    fixes = [_fix("keep a float", db=40, operators=4), _fix("equalize channels", db=30, operators=3)]
    assert best_fix(fixes).startswith("Equalize channels (int8): drop 0 instead of 0.5, 30 dB instead of 5")
    assert best_fix(fixes[:1]).startswith("Keep a float")
    loud = [_fix("tune the ranges", db=8.0, operators=3), _fix("keep the front end float", db=25.0, operators=18)]
    assert best_fix(loud).startswith("Keep the front end float")
    assert best_fix([_fix("correct biases", db=5.5, operators=3)]).startswith("Nothing tried here helps")


def test_a_device_is_the_last_rung(tmp_path: Path) -> None:
    """The same program through the agent of another process loses what it loses here, sample by sample."""
    request = {**_request(tmp_path, PLANTED, count=240), "device": "local", "compiled": None}
    ladder = diagnose_stage({**request, "device_kernels": "xnnpack"}, no_progress)["ladder"]
    assert [r["name"] for r in ladder] == [*RUNGS, "int8, on local (measured)"]
    assert {**ladder[-1], "name": ""} == {**ladder[-2], "name": ""}


# --- heads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "expected"), [(1.0, []), (1.5, []), (600.0, ["HEAD_SCALE_CLASH"])])
def test_joined_branches_of_different_size_are_found(factor: float, expected: list[str]) -> None:
    """Boxes in pixels beside scores below 1 clash; branches within 16-fold do not."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4))
    boxes = builder.fully_connected(x, np.eye(4) * factor, np.zeros(4), name="boxes")
    scores = builder.op("LOGISTIC", [x], (1, 4), name="scores")
    builder.output(builder.op("CONCATENATION", [boxes, scores], (1, 8), name="joint"), "y")
    program = builder.build()
    samples: Any = normal_samples({"x": (1, 4)})
    ranges = calibrate.collect(program, samples, MinMax())
    found = heads.find_clashes(program, ranges)
    assert [f.rule for f in found] == expected
    assert all(f.severity == "error" and f.op == "joint" for f in found)


def test_a_joint_inside_of_the_network_is_a_warning() -> None:
    """What is joined before another layer can be brought to one size there; a reshape hides nothing."""
    ranges = Ranges(limits={"a": (0.0, 100.0), "b": (0.0, 1.0)}, samples=1, estimator="minmax")
    severities = []
    for last in ("FULLY_CONNECTED", "RESHAPE"):
        builder = GraphBuilder()
        joint = builder.op("CONCATENATION", [builder.input("a", (1, 2)), builder.input("b", (1, 2))], (1, 4))
        made = (
            builder.fully_connected(joint, np.eye(4), np.zeros(4))
            if last == "FULLY_CONNECTED"
            else builder.op("RESHAPE", [joint, builder.const("shape", [1, 2, 2])], (1, 2, 2))
        )
        builder.output(made, "y")
        severities += [f.severity for f in heads.find_clashes(builder.build(), ranges)]
    assert severities == ["warning", "error"]


# --- the command -------------------------------------------------------------------------------------------------


def _run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command("other")(lambda: None)
    command.register(app)
    return app(["diagnose", *arguments], standalone_mode=False)


def test_the_command_prints_one_json_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A source with its data gives a diagnosis on stdout, talk goes to stderr; the float source is the first rung."""
    _request(tmp_path, ConvNet(centred=True), count=240)
    source, data = str(tmp_path / "float.tflite"), str(tmp_path / "data.npz")
    code = _run(source, "--calibration", data, "--calibration-samples", "60", "--json")
    printed = json.loads(capfd.readouterr().out)
    assert code == 0
    assert printed["schema"] == "edgekit.diagnosis/1"
    assert [r["name"] for r in printed["ladder"]] == ["float source", *RUNGS]
    assert printed["target"] == "linux"
    assert _run(source, "--calibration", data, "--calibration-samples", "60", "--quiet") == 0
    shown = capfd.readouterr()
    assert "activations only" in shown.out
    assert "tune the ranges" in shown.out
    assert shown.err == "" or "XNNPACK" in shown.err


@pytest.mark.parametrize(
    ("device", "said"), [("local", "The ladder ends on this host"), ("coral:usb:0", "runs no program on coral:usb:0")]
)
def test_devices_that_are_no_rung_are_refused(tmp_path: Path, device: str, said: str) -> None:
    """This host is a rung already, and an attached Edge TPU is asked by `edgekit check`; nothing is built before."""
    _request(tmp_path, CLEAN, count=60)
    with pytest.raises(UsageError, match=said):
        _run(str(tmp_path / "float.tflite"), "--calibration", str(tmp_path / "data.npz"), "--device", device)


def test_the_command_needs_data(tmp_path: Path) -> None:
    """Without calibration data there is nothing to diagnose with."""
    (tmp_path / "float.tflite").write_bytes(conv_net(ConvNet()))
    with pytest.raises(ConfigError, match="--calibration"):
        _run(str(tmp_path / "float.tflite"))
