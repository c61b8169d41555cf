"""edge.budgets, and what decides each budget: a number of a weaker mode never stands for one of a stronger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import budgets, verdict
from edge.artifact import Manifest, Metrics
from edge.budgets import Budgets
from edge.targets import registry
from tests.test_artifact import manifest
from tests.test_verdict import with_accuracy

PI = registry.target("rpi4")
_MODES = ("measured", "emulated", "predicted")


def parsed(**values: Any) -> Budgets:
    """Return budgets of values that must all be readable."""
    problems: list[str] = []
    found = budgets.parse(values, problems)
    assert problems == []
    return found


def judged(made: Manifest, limits: Budgets) -> Manifest:
    """Return the manifest as judged for a Raspberry Pi 4."""
    return verdict.judge(made, limits, PI, 1000)


def timed(mode: str, *, predicted: float | None = None, **values: Any) -> Manifest:
    """Return a manifest with a good accuracy and a latency."""
    made = with_accuracy(0.0, 0.001)
    latency = {"mode": mode, "verdict": "valid", "reasons": [], "median_ms": 4.0, "p90_ms": 6.0, **values}
    ways = None if predicted is None else {"rpi4": {"value": predicted, "low": 1.0, "high": 9.0}}
    return replace(made, metrics=replace(made.metrics, latency=latency, predicted_latency=ways))


def test_every_budget_has_its_writing() -> None:
    """All six budgets are read, with statistic and mode where they have one, and survive the manifest."""
    found = parsed(
        max_drop="1%",
        max_latency="5ms p90 emulated",
        max_size="500kB",
        max_memory="2MB measured",
        min_mapped="95%",
        min_delegated=0.9,
    )
    assert found == Budgets(
        max_drop=0.01,
        max_latency_ms=5.0,
        latency_statistic="p90",
        latency_mode="emulated",
        max_size_bytes=500_000,
        max_memory_bytes=2_000_000,
        memory_mode="measured",
        min_mapped=0.95,
        min_delegated=0.9,
    )
    assert Budgets.from_dict(found.as_dict()) == found
    assert parsed(max_latency="5ms@p99").latency_statistic == "p99"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("max_latency", "5ms p42"),
        ("max_latency", ""),
        ("max_latency", "-5ms"),
        ("max_memory", "2MB p90"),
        ("max_size", "much"),
        ("min_mapped", "110%"),
        ("max_drop", "one"),
    ],
)
def test_a_budget_that_cannot_be_read_is_named_with_what_is_accepted(key: str, text: str) -> None:
    """The problem names the key, the text that was given and what is accepted."""
    problems: list[str] = []
    budgets.parse({key: text}, problems)
    (problem,) = problems
    assert problem.startswith(f"{key}: ")
    assert "accepted" in problem


@given(st.sampled_from(_MODES), st.sampled_from(_MODES))
def test_a_weaker_number_never_satisfies_a_stronger_demand(mode: Any, wanted: Any) -> None:
    """A number within the limit passes only if its mode is at least as strong as asked; else the budget stays open."""
    limits = Budgets(max_latency_ms=5.0, latency_mode=wanted)
    if mode == "predicted":
        made = with_accuracy(0.0, 0.001)
        ways = {"rpi4": {"value": 4.0, "low": 1.0, "high": 9.0}}
        made = replace(made, metrics=replace(made.metrics, predicted_latency=ways))
    else:
        made = timed(mode)
    strong = _MODES.index(mode) <= _MODES.index(wanted)
    assert judged(made, limits).verdict == ("pass" if strong else "unchecked")


def test_the_statistic_that_was_asked_for_decides() -> None:
    """A median within and a p90 over the limit pass or fail by what the budget names."""
    assert judged(timed("measured"), parsed(max_latency="5ms")).verdict == "pass"
    over = judged(timed("measured"), parsed(max_latency="5ms p90"))
    assert over.verdict == "fail"
    assert "p90 latency 6.000 ms (measured)" in over.reasons[0]


def test_a_percentile_that_the_runs_do_not_give_leaves_the_budget_open() -> None:
    """`insufficient` is no number: the budget is open and the reason says so."""
    made = timed("measured", p99_ms="insufficient: 300 more runs")
    found = judged(made, parsed(max_latency="5ms p99"))
    assert found.verdict == "unchecked"
    assert "insufficient: 300 more runs" in found.reasons[0]


def test_an_invalid_measurement_gives_way_to_a_prediction_only_where_that_may_decide() -> None:
    """Invalid measured numbers never decide; a prediction does where the budget accepts one."""
    made = timed("measured", verdict="invalid", reasons=["throttled"], predicted=4.5)
    assert judged(made, parsed(max_latency="5ms")).verdict == "unchecked"
    assert "throttled" in judged(made, parsed(max_latency="5ms")).reasons[0]
    assert judged(made, parsed(max_latency="5ms predicted")).verdict == "pass"
    assert judged(made, parsed(max_latency="4.4ms predicted")).verdict == "fail"


def test_memory_is_held_against_the_board_before_the_plan() -> None:
    """What a board showed decides before what is planned; without a board a `measured` budget stays open."""
    made = with_accuracy(0.0, 0.001)
    planned = {"arena_bytes": 1_000_000, "parameter_bytes": 500_000}
    made = replace(made, metrics=replace(made.metrics, memory=planned))
    assert judged(made, parsed(max_memory="2MB")).verdict == "pass"
    assert judged(made, parsed(max_memory="1MB")).verdict == "fail"
    assert judged(made, parsed(max_memory="2MB measured")).verdict == "unchecked"
    board = {"mode": "measured", "memory": {"before_kib": 1000, "loaded_kib": 2000, "peak_kib": 4000}}
    shown = replace(made, details={"board": board})
    found = judged(shown, parsed(max_memory="2MB measured"))
    assert found.verdict == "fail"
    assert "3072000 bytes (measured)" in found.reasons[0]


def test_shares_of_operators_are_budgets() -> None:
    """Too few mapped or delegated operators fail; a runtime that knows no share leaves the budget open."""
    made = with_accuracy(0.0, 0.001)
    coral = replace(made, details={"placement": {"operators": 10, "mapped": 9}})
    assert judged(coral, parsed(min_mapped="90%")).verdict == "pass"
    assert judged(coral, parsed(min_mapped="91%")).verdict == "fail"
    phone = replace(made, details={"delegation": {"delegated_share": 0.5, "subgraphs": 2}})
    assert judged(phone, parsed(min_delegated="50%")).verdict == "pass"
    assert judged(phone, parsed(min_delegated="51%")).verdict == "fail"
    assert judged(phone, parsed(min_mapped="1%")).verdict == "unchecked"


def test_budgets_of_the_command_line_replace_single_ones() -> None:
    """A check with one budget keeps the artifact's others."""
    kept = parsed(max_drop="1%", max_latency="5ms p90").replaced_by(parsed(max_latency="9ms"))
    assert kept == parsed(max_drop="1%", max_latency="9ms median measured")


def test_without_numbers_the_metrics_are_open() -> None:
    """An artifact without any measurement fails no budget and passes none."""
    found = judged(replace(manifest(), metrics=Metrics()), parsed(max_latency="5ms", max_memory="1MB"))
    assert found.verdict == "unchecked"
    assert len(found.reasons) == 3
