"""A predicted latency with the interval that goes with it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A predicted latency in milliseconds; the truth lies between `low` and `high` at the stated `rate`."""

    value: float
    low: float
    high: float
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.value <= self.high or not 0 < self.rate < 1:
            raise ValueError(f"{self.value} ms with {self.low} to {self.high} at {self.rate} is no interval")


def interval(value: float, log_width: float, rate: float) -> Interval:
    """Return value * exp(-log_width) to value * exp(log_width)."""
    spread = math.exp(log_width)
    return Interval(value=value, low=value / spread, high=value * spread, rate=rate)
