"""Whether calibration data is enough: ranges that still grow, or that other data exceeds, would be wider with more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edge.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge.calibration.ranges import Estimator
    from edge.signature import TensorSpec

# A tensor grows where the second half of the samples widens its interval by this share.
GROWTH = 0.25
_SHARE = 0.1
_LEAST = 50
# Estimators that cut off lose up to a tenth of this on purpose.
_CUT_SHARE = 0.01
_ENDS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


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


class InputSaturation:
    """How many real values of integer inputs lie beyond what their scale and zero point can hold.

    They are cut off on the device: the range that was calibrated is too narrow for the data. `see` takes real values of
    any shape by input name; a value within one step of the end is not counted.
    """

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._ends: dict[str, tuple[float, float]] = {}
        self._cut: dict[str, list[int]] = {}
        for spec in inputs:
            q = spec.quantization
            if q is not None and spec.dtype in _ENDS and len(q.scale) == 1:
                low, high = ((end - q.zero_point[0]) * q.scale[0] for end in _ENDS[spec.dtype])
                self._ends[spec.name] = (low - q.scale[0], high + q.scale[0])
                self._cut[spec.name] = [0, 0]

    def see(self, inputs: Mapping[str, NDArray[np.generic]]) -> None:
        """Count one sample's values."""
        for name, (low, high) in self._ends.items():
            values = np.asarray(inputs[name], np.float64)
            self._cut[name][0] += int(((values < low) | (values > high)).sum())
            self._cut[name][1] += int(values.size)

    def findings(self) -> tuple[Finding, ...]:
        """Return INPUT_SATURATED for each input of which more than 1 % is cut off."""
        shares = {name: cut / count for name, (cut, count) in self._cut.items() if count}
        return tuple(
            Finding(
                rule="INPUT_SATURATED",
                severity="warning",
                op=name,
                message=f"{share:.1%} of the values that input {name!r} gets on evaluation lie beyond the calibrated "
                f"range of {self._ends[name][0]:.4g} to {self._ends[name][1]:.4g} and are cut off.",
                fix="Calibrate with data like that which evaluates; check that both have the same preprocessing.",
            )
            for name, share in shares.items()
            if share > _CUT_SHARE
        )
