"""The decision of a comparison: groups of blocks from several processes, and what follows from their interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.measure.comparison import (
    CONFIDENCE,
    LOOKS,
    Comparison,
    Launch,
    block_ratio,
    decide,
    launch_of,
    look_confidence,
)

GROUPS = 4


def _launch(ratios: list[float], controls: list[float] | None = None) -> Launch:
    ones = (1.0,) * len(ratios)
    return Launch(ratios=tuple(ratios), controls=tuple(controls or ones), reference_ms=ones, candidate_ms=tuple(ratios))


def _constant(ratio: float, count: int = LOOKS[0]) -> list[Launch]:
    return [_launch([ratio] * GROUPS) for _ in range(count)]


def _simulated(rng: np.random.Generator, ratio: float) -> Comparison:
    """Return a comparison of programs on a machine whose speed wanders, with processes that differ by 1 %."""
    launches: list[Launch] = []
    for look, until in enumerate(LOOKS, 1):
        while len(launches) < until:
            own = ratio * np.exp(rng.normal(0, 0.01))
            noise = rng.normal(0, 0.02, GROUPS) + np.where(rng.random(GROUPS) < 0.1, rng.normal(0, 0.3, GROUPS), 0)
            launches.append(_launch(list(own * np.exp(noise))))
        found = decide(launches, 0.05, look=look)
        if found.outcome in ("slower", "faster", "no slower"):
            break
    return found


def test_rows_become_ratios_of_block_medians() -> None:
    """Two groups of A B B A, B being 1.5 times A: both ratios are 1.5, and A's later block against its earlier is 2."""
    rows = [
        (group, place, side, ns, 0)
        for group in (0, 1)
        for place, side, ns in ((0, 0, 100), (1, 1, 225), (2, 1, 225), (3, 0, 200))
        for _ in range(4)
    ]
    launch = launch_of(np.array(rows, np.int64))
    assert launch.ratios == (1.5, 1.5)
    assert launch.controls == (2.0, 2.0)


def test_runs_that_lost_their_processor_do_not_count() -> None:
    """Of eight runs of B five were preempted and took ten times as long: the three others give the ratio."""
    rows = [(0, place, 0, 100, 0) for place in (0, 3) for _ in range(4)]
    rows += [(0, 1, 1, 110, 0)] * 3 + [(0, 1, 1, 1000, 1)] + [(0, 2, 1, 1000, 2)] * 4
    assert launch_of(np.array(rows, np.int64)).ratios[0] == pytest.approx(1.1)


def test_where_all_runs_lost_their_processor_all_count() -> None:
    """A program whose every run is interrupted is still measured."""
    rows = [(0, place, side, 100 + 20 * side, 1) for place, side in enumerate((0, 1, 1, 0)) for _ in range(4)]
    assert launch_of(np.array(rows, np.int64)).ratios == (1.2,)


@pytest.mark.parametrize(
    ("ratio", "outcome"), [(1.0, "no slower"), (1.04, "no slower"), (1.06, "slower"), (1.1, "slower"), (0.9, "faster")]
)
def test_a_clear_ratio_decides(ratio: float, outcome: str) -> None:
    """Without noise the side of the threshold decides, at the first look."""
    found = decide(_constant(ratio), 0.05, look=1)
    assert (found.outcome, found.looks, found.groups) == (outcome, 1, LOOKS[0] * GROUPS)


def test_an_interval_around_the_threshold_is_undecided() -> None:
    """Processes on both sides of 5 % decide nothing."""
    found = decide([*_constant(1.0, 5), *_constant(1.1, 5)], 0.05, look=2)
    assert found.outcome == "undecided"


def test_too_few_processes_are_invalid_with_the_reasons() -> None:
    """Processes that were left out leave too few: no ratio, and the reason once."""
    found = decide(_constant(1.0, LOOKS[0] - 1), 0.05, look=1, invalid=["throttled", "throttled"])
    assert (found.outcome, found.ratio, found.reasons) == ("invalid", None, ("throttled",))


def test_a_machine_that_changes_within_a_group_is_invalid() -> None:
    """Where the reference is 20 % slower than itself a moment before, nothing can be said of another program."""
    found = decide([_launch([1.0] * GROUPS, [1.2] * GROUPS)] * LOOKS[0], 0.05, look=1)
    assert found.outcome == "invalid"
    assert "against itself gives 1.200" in found.reasons[0]


def test_looks_share_the_confidence() -> None:
    """The chances of being wrong at the looks add up to that of the whole."""
    assert len(LOOKS) * (1 - look_confidence()) == pytest.approx(1 - CONFIDENCE)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 2.0), st.floats(1e-3, 0.2), st.integers(0, 1000))
def test_the_interval_holds_the_estimate_and_turns_with_it(ratio: float, spread: float, seed: int) -> None:
    """Multiplying all ratios multiplies estimate and ends, and the estimate lies between them."""
    values = ratio * np.exp(np.random.default_rng(seed).normal(0, spread, (6, GROUPS)))
    found, doubled = (block_ratio(v.tolist(), resamples=500) for v in (values, 2 * values))
    assert found.low <= found.ratio <= found.high
    assert (doubled.low, doubled.ratio, doubled.high) == pytest.approx((2 * found.low, 2 * found.ratio, 2 * found.high))


def test_equal_programs_are_never_called_slower_and_a_tenth_is_found() -> None:
    """On a simulated machine with process effects and outliers: of 30 each, no false alarm and at least 28 found."""
    rng = np.random.default_rng(5)
    equal = [_simulated(rng, 1.0).outcome for _ in range(30)]
    slower = [_simulated(rng, 1.1).outcome for _ in range(30)]
    assert equal.count("slower") == 0
    assert slower.count("slower") >= 28
