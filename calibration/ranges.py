"""Ranges of activations: estimators that see every activation once and say which interval to represent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from edge.errors import QuantizationError
from edge.findings import Finding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.calibration.histogram import Histogram
    from edge.calibration.recipe import Recipe

    Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Interval per activation tensor, by tensor name, from `samples` samples by `estimator`, and what was found."""

    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: int
    estimator: str
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"ranges need at least 1 sample, not {self.samples}")
        for name, (low, high) in self.limits.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"tensor {name!r} has the range [{low}, {high}]")

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.limits

    def __getitem__(self, tensor: str) -> tuple[float, float]:
        return self.limits[tensor]

    def __iter__(self) -> Iterator[str]:
        return iter(self.limits)

    def __len__(self) -> int:
        return len(self.limits)

    def wider_than(self, span: float) -> dict[str, tuple[float, float]]:
        """Return the tensors whose interval is longer than `span`, in the tensor's own unit."""
        return {name: limits for name, limits in self.limits.items() if limits[1] - limits[0] > span}


class NonFiniteError(ValueError):
    """An activation holds NaN or an infinity; `tensor` names it."""

    def __init__(self, tensor: str, value: float) -> None:
        super().__init__(f"{tensor!r} holds {value}")
        self.tensor = tensor
        self.value = value


class Estimator(Protocol):
    """Sees activations one by one and keeps what it needs of them.

    An estimator that needs a second look at the data sets `passes` to 2; `start_pass` is called before each.
    """

    name: str
    passes: int

    def start_pass(self, number: int) -> None:
        """Prepare for pass `number`, counted from 0."""
        ...

    def update(self, tensor: str, values: Floats) -> None:
        """Take one sample's values of one tensor, of any shape; they are overwritten afterwards, so keep no view."""
        ...

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the interval of every tensor seen."""
        ...


class MinMax:
    """The smallest and the largest value over all samples: nothing of the calibration data is clipped."""

    name = "minmax"
    passes = 1

    def __init__(self) -> None:
        self._limits: dict[str, tuple[float, float]] = {}

    def start_pass(self, number: int) -> None:
        """Need nothing."""

    def update(self, tensor: str, values: Floats) -> None:
        """Widen the tensor's interval; raise NonFiniteError for NaN or an infinity."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())  # NaN anywhere makes both NaN
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NonFiniteError(tensor, low if not math.isfinite(low) else high)
        known = self._limits.get(tensor)
        self._limits[tensor] = (low, high) if known is None else (min(known[0], low), max(known[1], high))

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return smallest and largest value of every tensor seen."""
        return dict(self._limits)


NAMES = ("minmax", "moving-average", "percentile", "mse", "entropy")


def estimator(name: str, *, percentile: float = 99.99, levels: int = 255) -> Estimator:
    """Return a fresh estimator of that name; raise QuantizationError for one that is not there.

    `levels` is the number of steps of the integer type: 255 for int8, 65535 for int16.
    """
    from edge.calibration import estimators

    if name == "minmax":
        return MinMax()
    if name == "moving-average":
        return estimators.MovingAverage()
    try:
        rule = estimators.rule_of(name, percentile=percentile, levels=levels)
    except KeyError:
        raise QuantizationError(
            f"The range estimator {name!r} is not available; accepted: {', '.join(NAMES)}.",
            hint="Choose another estimator in the recipe.",
        ) from None
    return estimators.Histograms(name, rule)


def for_recipe(recipe: Recipe) -> Estimator:
    """Return the estimator that a static recipe asks for."""
    return estimator(recipe.estimator, percentile=recipe.percentile, levels=_levels(recipe))


def rule_for(recipe: Recipe) -> Callable[[Histogram], tuple[float, float]]:
    """Return the function from histogram to interval of a recipe with a histogram estimator; raise KeyError."""
    from edge.calibration import estimators

    return estimators.rule_of(recipe.estimator, percentile=recipe.percentile, levels=_levels(recipe))


def _levels(recipe: Recipe) -> int:
    return 65535 if recipe.scheme == "int8x16" else 255
