"""The search within an accuracy budget: its policy, its split of the data, and the whole stage on small networks."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import codec
from edge.calibration import ranges
from edge.calibration import recipe as recipes
from edge.calibration import search as policy
from edge.calibration.recipe import Recipe
from edge.calibration.search import Candidate, Outcome, Policy
from edge.calibration.selection import Selection, plan
from edge.isolate import no_progress
from edge.signature import Signature, TensorSpec
from edge.stages import searching
from edge.stages.searching import search
from edge.targets.litert import calibrate, contract, flatbuffer, probe
from tests import search_requests
from tests.refine_models import SHAPE, ConvNet, conv_net
from tests.tflite_builder import GraphBuilder


def _outcome(
    drop: float, *, half: float = 0.01, group: Any = "estimators", db: float = 30.0, **changes: Any
) -> Outcome:
    return Outcome(
        candidate=Candidate(recipe=Recipe(), group=group, label=str(drop)),
        drop=drop,
        drop_low=drop - half,
        drop_high=drop + half,
        snr_db=db,
        **changes,
    )


# --- policy ------------------------------------------------------------------------------------------------------


def test_only_the_bound_meets_a_budget() -> None:
    """An estimate within the budget whose interval reaches beyond it is plausible, not met."""
    rule = Policy(max_drop=0.01, provable=True)
    assert rule.met(_outcome(0.0))
    assert not rule.met(_outcome(0.005))
    assert rule.plausible(_outcome(0.005))
    assert not rule.plausible(_outcome(0.02))
    assert not rule.met(Outcome(candidate=_outcome(0).candidate, drop_high=None))


def test_the_first_that_meets_the_budget_is_taken() -> None:
    """Outcomes stand in order of cost: a later, better one does not replace an earlier that is good enough."""
    first, second = _outcome(0.0), _outcome(-0.01)
    assert Policy(max_drop=0.01, provable=True).choose([_outcome(0.5), first, second]) is first


def test_integer_programs_go_before_mixed_ones_while_plausible() -> None:
    """Without proof, an integer program whose estimate keeps the budget beats a float island with a smaller drop."""
    cheap, mixed = _outcome(0.005), _outcome(0.0, half=0.02, group="mixed")
    assert Policy(max_drop=0.01, provable=False).choose([cheap, mixed]) is cheap
    assert Policy(max_drop=0.001, provable=False).choose([cheap, mixed]) is mixed


def test_among_equals_the_least_noise_wins() -> None:
    """A difference that the samples do not show is decided by the signal-to-noise ratio."""
    noisy, quiet = _outcome(0.0, half=0.04, db=20), _outcome(0.002, half=0.04, db=35)
    assert policy.best([noisy, quiet]) is quiet
    assert policy.best([noisy, _outcome(0.03, half=0.04, db=50)]) is noisy


def test_noise_below_a_thousandth_does_not_decide() -> None:
    """From 30 dB on, the first in order of cost is taken where the samples do not tell drops apart."""
    cheap, dear = _outcome(0.0, half=0.04, db=31), _outcome(0.0, half=0.04, db=45)
    assert policy.best([cheap, dear]) is cheap


def test_int16_activations_have_to_halve_the_error() -> None:
    """They have no fast kernel on a CPU: without proof a float island that comes near is taken instead."""
    island, wide = _outcome(0.03, half=0.02, db=15, group="mixed"), _outcome(0.0, half=0.02, db=17, group="mixed")
    wide = replace(wide, candidate=replace(wide.candidate, recipe=recipes.named("int8x16")))
    rule = Policy(max_drop=0.001, provable=False)
    assert rule.choose([island, wide]) is wide  # only it keeps the budget
    assert rule.choose([island, replace(wide, drop=0.02)]) is island
    assert rule.choose([island, replace(wide, drop=0.02, snr_db=21)]).snr_db == 21  # type: ignore[union-attr]


def test_failures_are_never_chosen() -> None:
    """What could not be built is an outcome, but none to take."""
    failed = Outcome(candidate=_outcome(0).candidate, failure="no")
    assert Policy(max_drop=1.0, provable=True).choose([failed]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_pareto_front_is_what_nothing_beats(points: list[tuple[int, int, int]]) -> None:
    """Every outcome on the front is beaten by none; every other one is beaten by one on the front."""
    outcomes = [_outcome(d / 10, host_ms=float(t), size_bytes=s) for d, t, s in points]
    front = policy.pareto(outcomes)
    assert front

    def beats(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    for i, point in enumerate(points):
        assert (i in front) == (not any(beats(other, point) for other in points))


def test_predicted_and_host_times_are_not_compared() -> None:
    """Where one candidate has no prediction, all are compared by their time on this host."""
    fast = _outcome(0.0, host_ms=9.0, latency_ms=1.0, size_bytes=1)
    slow = _outcome(0.0, host_ms=5.0, latency_ms=2.0, size_bytes=1)
    assert policy.pareto([fast, slow]) == {0}
    assert policy.pareto([fast, slow, _outcome(0.5, host_ms=7.0, size_bytes=1)]) == {1}


# --- which samples choose ----------------------------------------------------------------------------------------

VECTOR = Signature(inputs=(TensorSpec(name="x", shape=(1, 2)),), outputs=(TensorSpec(name="y", shape=(1, 2)),))


def _data(folder: Path, count: int) -> str:
    np.savez(folder / "d.npz", x=np.zeros((count, 2), np.float32), y=np.zeros(count, np.int64))
    return str(folder / "d.npz")


@pytest.mark.parametrize(
    ("count", "calibrating", "evaluating"), [(1000, 300, 300), (400, 300, 50), (300, 300, 0), (60, 40, 20)]
)
def test_choosing_samples_never_evaluate(tmp_path: Path, count: int, calibrating: int, evaluating: int) -> None:
    """Samples that evaluate neither calibrate nor choose, and those that choose do not calibrate."""
    location = _data(tmp_path, count)
    calibration = Selection(location=location, role="calibration", indices=tuple(range(calibrating)))
    held = tuple(range(count - evaluating, count))
    evaluation = Selection(location=location, role="calibration", indices=held) if evaluating else None
    found = policy.split_selection(calibration, evaluation, VECTOR)
    fit, select = set(found.fit.indices or ()), set(found.select.indices or ())
    assert fit and select
    assert not fit & select
    assert not select & set(held if evaluating else ())
    assert fit <= set(calibration.indices or ())
    assert not found.findings


def test_few_samples_choose_for_themselves_and_say_so(tmp_path: Path) -> None:
    """Below 30 calibration samples nothing can be held out, which is a finding."""
    calibration = Selection(location=_data(tmp_path, 20), role="calibration")
    found = policy.split_selection(calibration, None, VECTOR)
    assert found.select == found.fit == calibration
    assert [f.rule for f in found.findings] == ["SEARCHED_ON_CALIBRATION"]


# --- the stage ---------------------------------------------------------------------------------------------------


def _saying(said: list[str]) -> Any:
    def progress(text: str, share: float | None = None) -> None:
        said.append(text)

    return progress


PLANTED = ConvNet(depth=4, planted=1, planted_by=9, centred=True)
CLEAN = ConvNet(centred=True)


def _request(folder: Path, net: ConvNet, *, count: int = 1200, target: str = "linux", **changes: Any) -> dict[str, Any]:
    """Write a network and data labelled by its own float outputs; return the request for a search."""
    program = conv_net(net)
    x = np.random.default_rng(5).standard_normal((count, *SHAPE[1:])).astype(np.float32)
    outputs = probe.outputs(program, [{"x": v[None]} for v in x])
    np.savez(folder / "data.npz", x=x, y=np.asarray([int(o["y"].argmax()) for o in outputs]))
    return search_requests.request(folder, program, target, **{"cache": str(folder / "cache"), **changes})


@pytest.mark.parametrize("target", ["linux", "coral"])
def test_search_repairs_a_planted_culprit(tmp_path: Path, target: str) -> None:
    """A network that plain int8 ruins comes back within the budget by integers throughout."""
    request = _request(tmp_path, PLANTED, target=target)
    answer = search(request, no_progress)
    details = answer["details"]
    rows = details["candidates"]
    plain = rows[0]
    chosen = next(row for row in rows if row["chosen"])
    assert plain["drop"] > 0.5
    assert chosen["met"]
    assert chosen["drop_high"] <= 0.08
    assert chosen["operators_float"] == 0
    assert codec.from_json(Recipe, answer["recipe"]).equalize
    assert details["provable"]
    assert details["forward_passes"] < 40
    assert (plain["latency_ms"] is None) == (target == "linux")
    assert plain["value"] == pytest.approx(details["float"] - plain["drop"])


def test_a_cpu_board_has_predicted_times(tmp_path: Path) -> None:
    """For a board with a roofline each candidate has its prediction, and says with how many threads."""
    answer = search(_request(tmp_path, CLEAN, target="rpi4"), no_progress)
    (row,) = answer["details"]["candidates"]
    assert row["latency_how"] == "threads_4"
    assert 0 < row["latency_ms"] < 1
    assert answer["details"]["modes"]["latency_ms"] == "predicted"


def test_search_stops_at_the_first_recipe_that_is_good_enough(tmp_path: Path) -> None:
    """A network that int8 hardly touches costs one candidate."""
    answer = search(_request(tmp_path, CLEAN), no_progress)
    assert [row["recipe"] for row in answer["details"]["candidates"]] == ["int8"]
    assert answer["findings"] == []


def test_search_blames_layers_where_nothing_helps(tmp_path: Path) -> None:
    """Where no recipe keeps the budget, the finding asks for training and names the layers; cut points were tried."""
    request = _request(tmp_path, CLEAN, count=300, target="coral", max_drop=-0.5)
    answer = search(request, no_progress)
    assert [f["rule"] for f in answer["findings"]] == ["NEEDS_QAT"]
    assert "layer_" in answer["findings"][0]["message"]
    groups = [row["group"] for row in answer["details"]["candidates"]]
    assert groups[-2:] == ["mixed", "rounded"]
    assert any("on the CPU" in row["recipe"] and row["operators_float"] for row in answer["details"]["candidates"])


def test_search_with_too_few_samples_says_that_it_proves_nothing(tmp_path: Path) -> None:
    """With 33 samples to choose by no bound keeps 8 %: the best estimate is taken, without float islands."""
    request = _request(tmp_path, CLEAN, count=100)
    answer = search(request, no_progress)
    assert not answer["details"]["provable"]
    assert [f["rule"] for f in answer["findings"]] == ["SEARCH_UNPROVEN"]
    assert all(row["group"] != "mixed" for row in answer["details"]["candidates"])


def test_known_outcomes_are_not_measured_again(tmp_path: Path) -> None:
    """A second search of the same content builds nothing and gives the same answer."""
    request = _request(tmp_path, PLANTED)
    first = search(request, no_progress)
    said: list[str] = []
    second = search(request, _saying(said))
    assert second == first
    assert "quantizing" not in said


def test_branches_of_different_size_are_joined_in_float(tmp_path: Path) -> None:
    """Boxes in pixels beside scores: the search keeps the scores by joining both at the end in float."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    boxes = builder.fully_connected(x, rng.standard_normal((4, 8)) * 200, np.full(4, 300.0), name="boxes")
    hidden = builder.fully_connected(x, rng.standard_normal((4, 8)), np.zeros(4), name="hidden")
    scores = builder.op("LOGISTIC", [hidden], (1, 4), name="scores")
    builder.output(builder.op("CONCATENATION", [boxes, scores], (1, 8), name="joint"), "y")
    request = _request(tmp_path, CLEAN, count=400)
    program = builder.build()
    (tmp_path / "float.tflite").write_bytes(program)
    data = rng.standard_normal((400, 8)).astype(np.float32)
    outputs = np.stack([o["y"][0] for o in probe.outputs(program, [{"x": v[None]} for v in data])])
    np.savez(tmp_path / "data.npz", x=data, y=outputs[:, 4:].argmax(axis=1))
    (tmp_path / "scores.py").write_text(
        "def accuracy(outputs, label):\n    return float(outputs['y'][0, 4:].argmax() == int(label))\n"
    )
    request["metric"] = f"{tmp_path / 'scores.py'}:accuracy"
    request["signature"] = codec.to_json(contract.signature_of(flatbuffer.load(program)))
    answer = search(request, no_progress)
    rows = answer["details"]["candidates"]
    assert rows[0]["drop"] > 0.3
    assert next(row for row in rows if row["chosen"])["group"] == "split"
    assert codec.from_json(Recipe, answer["recipe"]).output_io == "float32"
    assert answer["options"] == {"full_integer": False}


@pytest.mark.slow
def test_a_deep_network_costs_at_most_forty_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 layers, 500 samples to calibrate and 500 to choose: all that comes before mixed precision stays below 40."""
    request = _request(tmp_path, ConvNet(depth=48, centred=True), count=1000, target="coral", max_drop=-0.5)
    calibration = Selection(location=str(tmp_path / "data.npz"), role="calibration", indices=tuple(range(500)))
    request["calibration"] = codec.to_json(calibration)
    monkeypatch.setattr(searching, "_mixed", lambda bench: iter(()))
    details = search(request, no_progress)["details"]
    before = sum(row["runs"] for row in details["candidates"]) + details["selection_samples"]
    assert details["selection_samples"] == 500
    assert [row["group"] for row in details["candidates"]].count("estimators") == 6
    assert len(details["candidates"]) == 10
    assert before / 500 <= 40


def test_memory_of_calibration_does_not_grow_with_the_samples() -> None:
    """100 and 10,000 samples take the same memory: samples are streamed and histograms have a fixed size."""
    builder = GraphBuilder()
    weights = np.random.default_rng(0).standard_normal((16, 32))
    builder.output(builder.fully_connected(builder.input("x", (1, 32)), weights, name="end"), "y")
    program = builder.build()

    class Stream:
        def __init__(self, count: int) -> None:
            self.count = count

        def __iter__(self) -> Any:
            rng = np.random.default_rng(0)
            for _ in range(self.count):
                yield SimpleNamespace(inputs={"x": rng.standard_normal((1, 32)).astype(np.float32)})

    def peak(count: int) -> int:
        samples: Any = Stream(count)
        tracemalloc.start()
        calibrate.collect(program, samples, ranges.estimator("entropy"), threads=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(100), peak(10_000)
    assert many < few + 500_000


def test_a_search_leaves_samples_to_choose_by(tmp_path: Path) -> None:
    """With one data set, up to 500 samples neither calibrate nor evaluate: they choose, and never evaluate."""
    location = _data(tmp_path, 2000)
    request = {"calibration": location, "calibration_samples": 300, "evaluation_samples": None}
    plain, searching_plan = plan(VECTOR, request), plan(VECTOR, {**request, "search": True})
    assert plain.evaluation and searching_plan.evaluation and searching_plan.calibration
    assert searching_plan.calibration == plain.calibration
    assert len(plain.evaluation.indices or ()) == 1700
    assert len(searching_plan.evaluation.indices or ()) == 1200
    found = policy.split_selection(searching_plan.calibration, searching_plan.evaluation, VECTOR)
    assert len(found.select.indices or ()) == 500
    assert not set(found.select.indices or ()) & set(searching_plan.evaluation.indices or ())
    assert found.fit == searching_plan.calibration


def test_a_search_goes_on_where_an_operator_has_no_integer_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the Edge TPU the base recipe cannot be built: the rest is searched for, and cut where the float begins."""
    for group in ("_tuned", "_corrected", "_equalized", "_rounded"):
        monkeypatch.setattr(searching, group, lambda bench: iter(()))
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    hidden = builder.fully_connected(
        builder.input("x", (1, 8)), rng.standard_normal((6, 8)), np.zeros(6), name="hidden"
    )
    wave = builder.op("COS", [hidden], (1, 6), name="wave")
    builder.output(builder.fully_connected(wave, rng.standard_normal((4, 6)), np.zeros(4), name="end"), "y")
    request = _request(tmp_path, CLEAN, count=300, target="coral", max_drop=-0.5)
    program = builder.build()
    (tmp_path / "float.tflite").write_bytes(program)
    data = rng.standard_normal((600, 8)).astype(np.float32)
    labels = [int(o["y"].argmax()) for o in probe.outputs(program, [{"x": v[None]} for v in data])]
    np.savez(tmp_path / "data.npz", x=data, y=np.asarray(labels))
    request["signature"] = codec.to_json(contract.signature_of(flatbuffer.load(program)))
    answer = search(request, no_progress)
    rows = answer["details"]["candidates"]
    assert "COS" in rows[0]["failure"]
    assert rows[1]["failure"] is None
    assert answer["options"] == {"full_integer": False}
    assert any(row["group"] == "mixed" and row["latency_ms"] for row in rows)
