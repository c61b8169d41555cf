"""Is one program slower than another? A decision from blocks of runs that alternate, made as soon as it can be.

Runs that follow each other are not independent: a busy second is busy for hundreds of them. So nothing here counts
runs. The unit is a group of four short blocks (A B B A or B A A B), which lie within a tenth of a second or so and
share what disturbs them; each group gives one ratio, and groups come from several processes (launches), for where a
program lies in memory changes its speed by some per cent and stays so until its process ends. The interval resamples
launches, and groups within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.measure.statistics import Ratio

Floats = NDArray[np.float64]
Outcome = Literal["slower", "faster", "no slower", "undecided", "invalid"]

CONFIDENCE = 0.99
RESAMPLES = 10_000
# Launches after which it is looked whether the interval decides; the confidence is shared between the looks.
LOOKS = (6, 9, 14, 20, 30)
DEFAULT_THRESHOLD = 0.05
LEAST_QUIET = 3


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process: the ratio B / A of each group, and of A's later block over its earlier one, which should be 1."""

    ratios: tuple[float, ...]
    controls: tuple[float, ...]
    reference_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ratio candidate / reference with its interval, and what follows from it for `threshold` (0.05 is 5 %).

    `outcome`: `slower` only where the whole interval lies above 1 + threshold; `no slower` where it lies below;
    `faster` where it lies below 1 / (1 + threshold); `invalid` with `reasons`. Medians in ms over all groups.
    """

    ratio: Ratio | None
    control: Ratio | None
    threshold: float
    outcome: Outcome
    reasons: tuple[str, ...]
    launches: int
    groups: int
    looks: int
    reference_ms: float | None
    candidate_ms: float | None


def launch_of(rows: NDArray[np.int64]) -> Launch:
    """Return the groups of one process from its raw rows, shape (n, 5).

    A row is (group, place 0 to 3, side 0 or 1, nanoseconds, preemptions). Runs from which the system took the processor
    away to give it to another process say nothing of the program: where enough others are left, those count alone.
    """
    ratios, controls, sides = [], [], ([], [])  # type: tuple[list[float], list[float], tuple[list[float], list[float]]]
    for group in np.unique(rows[:, 0]):
        own = rows[rows[:, 0] == group]
        blocks = {place: own[own[:, 1] == place] for place in range(4)}
        places = {side: [p for p, b in blocks.items() if b[0, 2] == side] for side in (0, 1)}
        medians = [_typical(np.concatenate([blocks[p] for p in places[side]])) / 1e6 for side in (0, 1)]
        halves = [_typical(blocks[p]) for p in places[0]]
        ratios.append(medians[1] / medians[0])
        controls.append(halves[-1] / halves[0])
        sides[0].append(medians[0])
        sides[1].append(medians[1])
    return Launch(
        ratios=tuple(ratios), controls=tuple(controls), reference_ms=tuple(sides[0]), candidate_ms=tuple(sides[1])
    )


def _typical(rows: NDArray[np.int64]) -> float:
    """Return the median time of the undisturbed runs in ns, or of all where fewer than a quarter, or 3, are such."""
    quiet = rows[rows[:, 4] == 0, 3]
    enough = quiet.size >= max(LEAST_QUIET, rows.shape[0] / 4)
    return float(np.median(quiet if enough else rows[:, 3]))


def block_ratio(
    launches: Sequence[Sequence[float]],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ratio:
    """Return the median of the groups' ratios with a two-stage percentile bootstrap interval.

    `launches` has the ratios of each process's groups, equally many. Source of the resampling of whole blocks: Künsch,
    Annals of Statistics 17 (1989) 1217; of its two stages: Davison and Hinkley, Bootstrap Methods, section 3.8.
    """
    values = np.asarray(launches, np.float64)
    count, groups = values.shape
    rng = np.random.default_rng(seed)
    replicates = []
    rows = max(1, 2_000_000 // values.size)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        chosen = rng.integers(count, size=(size, count, 1))
        inside = rng.integers(groups, size=(size, count, groups))
        replicates.append(np.median(values[chosen, inside].reshape(size, -1), axis=1))
    low, high = np.quantile(np.concatenate(replicates), ((1 - confidence) / 2, (1 + confidence) / 2))
    return Ratio(ratio=float(np.median(values)), low=float(low), high=float(high), confidence=confidence)


def look_confidence(looks: Sequence[int] = LOOKS) -> float:
    """Return the confidence of one look, so that all of them together have CONFIDENCE (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / len(looks)


def decide(
    launches: Sequence[Launch],
    threshold: float,
    *,
    look: int,
    looks: Sequence[int] = LOOKS,
    invalid: Sequence[str] = (),
) -> Comparison:
    """Return what the launches so far say; `invalid` has the reasons why others were left out."""
    confidence = look_confidence(looks)
    usable = len(launches) >= looks[0]
    ratio = block_ratio([x.ratios for x in launches], confidence=confidence) if usable else None
    control = block_ratio([x.controls for x in launches], confidence=confidence) if usable else None
    reasons = list(invalid) if not usable else []
    if control is not None and (control.low > 1 + threshold or control.high < 1 / (1 + threshold)):
        reasons.append(f"the reference against itself gives {control.ratio:.3f}: the machine changes within a group")
    return Comparison(
        ratio=ratio,
        control=control,
        threshold=threshold,
        outcome=_outcome(ratio, threshold) if ratio and not reasons else "invalid",
        reasons=tuple(dict.fromkeys(reasons)),
        launches=len(launches),
        groups=sum(len(x.ratios) for x in launches),
        looks=look,
        reference_ms=_median([x.reference_ms for x in launches]),
        candidate_ms=_median([x.candidate_ms for x in launches]),
    )


def _outcome(ratio: Ratio, threshold: float) -> Outcome:
    if ratio.low > 1 + threshold:
        return "slower"
    if ratio.high < 1 / (1 + threshold):
        return "faster"
    return "no slower" if ratio.high < 1 + threshold else "undecided"


def _median(parts: Sequence[Sequence[float]]) -> float | None:
    values = [value for part in parts for value in part]
    return float(np.median(values)) if values else None
