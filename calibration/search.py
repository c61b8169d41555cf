"""The policy of a search within an accuracy budget: candidates, what was measured of them, which one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.calibration.data import open_dataset, spread
from edge.calibration.recipe import Recipe
from edge.calibration.selection import Selection
from edge.findings import Finding
from edge.signature import Signature

Group = Literal["estimators", "front end", "tuned", "corrected", "equalized", "split", "mixed", "rounded"]
DEFAULT_BUDGET = 0.01
SELECTION_SAMPLES = 500
# From so many samples that nothing else uses on, they choose; below, a third of the calibration samples does.
_LEAST_FREE = 100
_LEAST_TO_CARVE = 30
# Noise of a thousandth of the signal.
_CLOSE_DB = 30.0
_HALF_DB = 6.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One recipe to try; `options` change the target's (a cut point gives up integers throughout)."""

    recipe: Recipe
    group: Group
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured of a candidate on the selection samples, or why it could not be built (`failure`).

    `drop` against the float carrier with its 95 % interval, in the metric's unit; `host_ms` the median of one run on
    this host (emulated); `latency_ms` what the runtime predicts for the target, where it does, and `latency_how` over
    which link or with how many threads; `runs` invocations of a program.
    """

    candidate: Candidate
    drop: float = 0.0
    drop_low: float | None = None
    drop_high: float | None = None
    snr_db: float = 0.0
    size_bytes: int = 0
    operators_float: int = 0
    host_ms: float = 0.0
    latency_ms: float | None = None
    latency_how: str | None = None
    runs: int = 0
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When to stop and what to take: a drop of at most `max_drop`.

    `provable` tells whether the selection samples could show that at all: with too few of them even a program equal to
    the float one has a confidence bound above the budget, and only the estimate can decide.
    """

    max_drop: float
    provable: bool

    def met(self, outcome: Outcome) -> bool:
        """Tell whether the confidence bound of the drop keeps the budget."""
        return outcome.failure is None and outcome.drop_high is not None and outcome.drop_high <= self.max_drop

    def plausible(self, outcome: Outcome) -> bool:
        """Tell whether the estimated drop keeps the budget."""
        return outcome.failure is None and outcome.drop <= self.max_drop

    def choose(self, outcomes: Sequence[Outcome]) -> Outcome | None:
        """Return the best of outcomes in order of cost, None where all failed.

        The first that is met; else the best of those that are plausible and cost the least group kind (mixed precision
        counts as dearer than all that is integer throughout); else the best of all.
        """
        usable = [o for o in outcomes if o.failure is None]
        if met := next((o for o in usable if self.met(o)), None):
            return met
        cheap = [o for o in usable if o.candidate.group != "mixed"]
        for pool in ([o for o in cheap if self.plausible(o)], [o for o in usable if self.plausible(o)], usable):
            if pool:
                return best(_quick(pool))
        return None


def _quick(pool: Sequence[Outcome]) -> Sequence[Outcome]:
    """Return a pool without int16 activations, unless they halve the error: no CPU kernel of theirs is fast."""
    rest = [o for o in pool if o.candidate.recipe.scheme != "int8x16"]
    worth = max((o.snr_db for o in rest), default=0.0) + _HALF_DB
    return [o for o in pool if o in rest or o.snr_db >= worth] if rest else pool


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the smallest drop; among those that the samples do not tell apart, the least noise.

    Not told apart: within a quarter of the half-width of the best one's interval. From 30 dB on, less noise no longer
    decides, and the first is taken: a search over few samples would prefer what happens to fit them.
    """
    first = min(outcomes, key=lambda o: o.drop)
    width = 0.0 if first.drop_low is None or first.drop_high is None else (first.drop_high - first.drop_low) / 8
    return max((o for o in outcomes if o.drop <= first.drop + width), key=lambda o: min(o.snr_db, _CLOSE_DB))


def pareto(outcomes: Sequence[Outcome]) -> set[int]:
    """Return the positions of outcomes that no other one beats or equals in drop, run time and size at once.

    Run times are those predicted for the target where all have one, else those on this host: never one against another.
    """
    usable = [o for o in outcomes if o.failure is None]
    predicted = all(o.latency_ms is not None for o in usable)

    def cost(o: Outcome) -> tuple[float, float, int]:
        return o.drop, o.latency_ms if predicted and o.latency_ms is not None else o.host_ms, o.size_bytes

    def beaten(o: Outcome) -> bool:
        mine = cost(o)
        return any(
            all(a <= b for a, b in zip(cost(other), mine, strict=True)) and cost(other) != mine for other in usable
        )

    return {i for i, o in enumerate(outcomes) if o.failure is None and not beaten(o)}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which samples candidates are made with, and which choose among them; never those that evaluate."""

    fit: Selection
    select: Selection
    findings: tuple[Finding, ...] = ()


def split_selection(
    calibration: Selection, evaluation: Selection | None, signature: Signature, *, wanted: int = SELECTION_SAMPLES
) -> Split:
    """Return samples to choose by: those of the calibration data's location that nothing uses, from 100 of them on.

    Else a third of the calibration samples, which then do not calibrate; below 30, the same ones. Raises DataError.
    """
    source = open_dataset(calibration.location, signature, role=calibration.role)
    count = source.count if source.count is not None else sum(1 for _ in source)
    own = range(count) if calibration.indices is None else calibration.indices
    free = sorted(set(range(count)) - set(own) - _evaluating(calibration, evaluation, count))
    if len(free) >= _LEAST_FREE:
        return Split(fit=calibration, select=_part(calibration, free, spread(len(free), wanted)))
    if len(own) < _LEAST_TO_CARVE:
        return Split(fit=calibration, select=calibration, findings=(_few(len(own)),))
    chosen = set(spread(len(own), min(wanted, len(own) // 3)))
    return Split(
        fit=_part(calibration, own, [i for i in range(len(own)) if i not in chosen]),
        select=_part(calibration, own, sorted(chosen)),
    )


def _evaluating(calibration: Selection, evaluation: Selection | None, count: int) -> set[int]:
    if evaluation is None or (evaluation.location, evaluation.role) != (calibration.location, calibration.role):
        return set()
    return set(range(count) if evaluation.indices is None else evaluation.indices)


def _part(selection: Selection, pool: Sequence[int], chosen: Sequence[int]) -> Selection:
    return Selection(location=selection.location, role=selection.role, indices=tuple(sorted(pool[i] for i in chosen)))


def _few(count: int) -> Finding:
    return Finding(
        rule="SEARCHED_ON_CALIBRATION",
        severity="warning",
        message=f"Recipes were chosen on the same {count} samples that calibrate, which flatters estimators that clip.",
        fix="Give a few hundred calibration samples, with labels where there are any.",
    )
