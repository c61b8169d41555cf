"""edge.verdict: budgets against numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge import verdict
from edge.artifact import Accuracy, Manifest, Metrics, OutputParity
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


def test_a_ruined_program_is_said_to_be_and_what_to_run_next() -> None:
    """Without a budget a third of the right answers is no PASS: the finding has the commands that may bring it back."""
    judged = verdict.judge(with_accuracy(0.6, 0.7), Budgets(), PI, 1)
    assert judged.verdict == "unchecked"
    (found,) = judged.findings
    assert found.rule == "ACCURACY_LOST"
    assert "falls from 0.9 to 0.3: this int8 program is not usable" in found.message
    fix = str(found.fix)
    assert "`edgekit diagnose net.keras --target rpi4 --calibration DATA`" in fix
    assert "--recipe auto --max-drop 1%" in fix
    assert "--recipe float16" in fix


def test_after_a_search_the_next_step_is_another_one() -> None:
    """What auto has made is not sent back to auto; a runtime without it is not sent there either."""
    searched = replace(with_accuracy(0.6, 0.7), details={"search": {}})
    other = replace(with_accuracy(0.6, 0.7), runtime="torch_mobile")
    for made in (searched, other):
        (found,) = verdict.judge(made, Budgets(), PI, 1).findings
        assert "--recipe auto" not in str(found.fix)
        assert "--recipe float16" in str(found.fix)


def test_a_small_shown_drop_is_no_ruin() -> None:
    """A tenth of the float accuracy is told, but the program passes where no budget is set."""
    judged = verdict.judge(with_accuracy(0.12, 0.13), Budgets(), PI, 1)
    assert judged.verdict == "pass"
    assert "no budget says" in judged.findings[0].message


def _with_noise(db: float | None, **changes: Any) -> Manifest:
    made = with_accuracy(80.0, 90.0)
    assert made.metrics.accuracy is not None
    outputs = tuple(OutputParity(output=n, snr_db=v, cosine=0.9, max_abs=1.0) for n, v in (("a", 40.0), ("b", db)))
    metrics = Metrics(accuracy=replace(made.metrics.accuracy, metric="snr"), parity=outputs)
    return replace(made, metrics=metrics, **changes)


@pytest.mark.parametrize(
    ("db", "expected", "said"),
    [(6.0, "unchecked", "hardly usable"), (14.0, "pass", "only labels"), (21.0, "pass", None), (None, "pass", None)],
)
def test_noise_speaks_where_no_label_does(db: float | None, expected: str, said: str | None) -> None:
    """The worst output's error decides: from a tenth of its size on it is told, from a third on the program is open."""
    judged = verdict.judge(_with_noise(db), Budgets(), PI, 1)
    assert judged.verdict == expected
    assert [f.rule for f in judged.findings] == ([] if said is None else ["NOISY_OUTPUT"])
    assert said is None or said in judged.findings[0].message


def test_float_programs_are_not_sent_to_float() -> None:
    """A float32 or float16 program's noise is no loss by quantization."""
    assert verdict.judge(_with_noise(6.0, recipe_name="float16"), Budgets(), PI, 1).findings == ()
