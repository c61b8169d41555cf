"""Whether calibration data is enough: ranges that still grow would be wider with more samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edge.findings import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.calibration.ranges import Estimator

# A tensor grows where the second half of the samples widens its interval by this share.
GROWTH = 0.25
_SHARE = 0.1
_LEAST = 50


class Growth:
    """An estimator around another one that also notes each tensor's extremes per half of the samples.

    A tensor's samples are numbered by its updates, so it needs no knowledge of the loop; `total` is their number.
    """

    def __init__(self, estimator: Estimator, total: int) -> None:
        self.name, self.passes = estimator.name, estimator.passes
        self._estimator, self._half = estimator, total // 2
        self._seen: dict[str, int] = {}
        self._early: dict[str, tuple[float, float]] = {}
        self._all: dict[str, tuple[float, float]] = {}

    def start_pass(self, number: int) -> None:
        """Count anew in the first pass."""
        self._estimator.start_pass(number)

    def update(self, tensor: str, values: NDArray[np.float32]) -> None:
        """Note the extremes and hand the values on; raise what the estimator raises."""
        self._estimator.update(tensor, values)
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        number = self._seen[tensor] = self._seen.get(tensor, 0) + 1
        for known in (self._early, self._all) if number <= self._half else (self._all,):
            before = known.get(tensor, (low, high))
            known[tensor] = (min(before[0], low), max(before[1], high))

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the estimator's intervals."""
        return self._estimator.limits()

    def growing(self) -> dict[str, float]:
        """Return the share by which the second half widened each tensor's interval, of those above 25 %."""
        return growth(self._early, self._all) if self._half * 2 >= _LEAST else {}

    def findings(self) -> tuple[Finding, ...]:
        """Return a RANGES_GROW where more than a tenth of the tensors still grow."""
        return growth_findings(self.growing(), len(self._all), 2 * self._half)


def growth(early: Mapping[str, tuple[float, float]], whole: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return by what share intervals grew, of those that grew by more than 25 %. Worked number: 2 to 3 wide -> 0.5."""
    found = {}
    for name, (low, high) in whole.items():
        first = early.get(name)
        if first is None or first[1] <= first[0]:
            continue
        share = (high - low) / (first[1] - first[0]) - 1
        if share > GROWTH:
            found[name] = share
    return found


def growth_findings(growing: Mapping[str, float], tensors: int, samples: int) -> tuple[Finding, ...]:
    """Return the finding about growing ranges, none where at most a tenth of the tensors grow."""
    if not tensors or len(growing) <= _SHARE * tensors:
        return ()
    worst = max(growing, key=growing.__getitem__)
    return (
        Finding(
            rule="RANGES_GROW",
            severity="warning",
            op=worst,
            message=f"The second half of the {samples} calibration samples widened the ranges of {len(growing)} of "
            f"{tensors} tensors by more than {GROWTH:.0%} (most: {worst!r}, by {growing[worst]:.0%}): the data has "
            "outliers, or there is too little of it.",
            fix="Calibrate with more samples, or with an estimator that cuts off (int8-entropy, int8-tuned).",
        ),
    )
