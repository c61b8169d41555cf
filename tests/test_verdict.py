"""edge.verdict: budgets against numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge import verdict
from edge.artifact import Accuracy, Manifest, Metrics
from edge.budgets import Budgets
from edge.findings import Finding
from edge.targets import registry
from tests.test_artifact import manifest

LINUX, PI = registry.target("linux"), registry.target("rpi4")


def with_accuracy(drop: float, high: float | None) -> Manifest:
    accuracy = Accuracy(
        metric="top1",
        float=0.9,
        carrier=0.9,
        quantized=0.9 - drop,
        drop=drop,
        drop_low=None if high is None else drop - 0.1,
        drop_high=high,
        samples=100,
        mode="emulated",
        kernels="xnnpack",
    )
    return replace(manifest(), metrics=Metrics(accuracy=accuracy))


@pytest.mark.parametrize(
    ("drop", "high", "expected", "rules"),
    [
        (0.002, 0.008, "pass", []),
        (0.002, 0.02, "pass", ["BUDGET_UNCERTAIN"]),
        (0.002, None, "pass", ["BUDGET_UNCERTAIN"]),
        (0.011, 0.02, "fail", []),
        (-0.01, 0.0, "pass", []),
    ],
)
def test_the_accuracy_budget(drop: float, high: float | None, expected: str, rules: list[str]) -> None:
    """The drop decides; an interval that reaches over the budget is told."""
    judged = verdict.judge(with_accuracy(drop, high), Budgets(max_drop=0.01), PI, 1)
    assert judged.verdict == expected
    assert [f.rule for f in judged.findings] == rules


def test_without_evaluation_nothing_passes() -> None:
    """An artifact whose accuracy was not checked is `unchecked`, with the reason."""
    judged = verdict.judge(manifest(), Budgets(), PI, 1)
    assert judged.verdict == "unchecked"
    assert "--evaluation" in judged.reasons[0]


def test_an_error_finding_fails() -> None:
    """A finding of severity error fails the artifact."""
    bad = Finding(rule="DEAD_OUTPUT", severity="error", message="y does not move")
    judged = verdict.judge(replace(with_accuracy(0.0, 0.0), findings=(bad,)), Budgets(), PI, 1)
    assert judged.verdict == "fail"
    assert judged.reasons == ("DEAD_OUTPUT: y does not move",)


def latency(**values: Any) -> dict[str, Any]:
    return {"mode": "measured", "verdict": "valid", "median_ms": 4.0, **values}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (latency(), "pass"),
        (latency(median_ms=6.0), "fail"),
        (latency(mode="emulated"), "unchecked"),
        (latency(verdict="invalid", reasons=["throttled"]), "unchecked"),
        (None, "unchecked"),
    ],
)
def test_the_latency_budget_needs_a_valid_measurement(record: dict[str, Any] | None, expected: str) -> None:
    """Only a valid, measured latency decides its budget."""
    made = with_accuracy(0.0, 0.0)
    judged = verdict.judge(
        replace(made, metrics=replace(made.metrics, latency=record)), Budgets(max_latency_ms=5.0), LINUX, 1
    )
    assert judged.verdict == expected


def test_the_size_budget() -> None:
    """A program over its size fails."""
    assert verdict.judge(with_accuracy(0.0, 0.0), Budgets(max_size_bytes=10), PI, 11).verdict == "fail"
    assert verdict.judge(with_accuracy(0.0, 0.0), Budgets(max_size_bytes=11), PI, 11).verdict == "pass"


def test_signal_to_noise_is_no_loss_of_a_task() -> None:
    """With unlabelled data of several outputs a drop in dB neither breaks nor keeps the accuracy budget."""
    made = with_accuracy(80.0, 90.0)
    assert made.metrics.accuracy is not None
    unlabelled = replace(made, metrics=Metrics(accuracy=replace(made.metrics.accuracy, metric="snr")))
    assert verdict.judge(unlabelled, Budgets(max_drop=0.01), PI, 1).verdict == "unchecked"
    assert verdict.judge(unlabelled, Budgets(), PI, 1).findings == ()
