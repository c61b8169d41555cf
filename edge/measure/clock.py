"""Clocks for measurements: the machine's, and a fake whose time a test moves."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time. `name` goes into the report."""

    name: str

    def now_ns(self) -> int:
        """Return a time in nanoseconds that never goes back; its zero has no meaning."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """CLOCK_MONOTONIC_RAW, which no time service slews, where the system has it; else time.perf_counter_ns."""

    def __init__(self) -> None:
        raw: int | None = getattr(time, "CLOCK_MONOTONIC_RAW", None)
        self.name = "perf_counter_ns" if raw is None else "CLOCK_MONOTONIC_RAW"
        self._raw = raw

    def now_ns(self) -> int:
        """Return the time in nanoseconds."""
        return time.perf_counter_ns() if self._raw is None else time.clock_gettime_ns(self._raw)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class FakeClock:
    """A clock that stands still but for `advance` and `sleep`; `slept_s` adds up the sleeping."""

    name = "fake"

    def __init__(self) -> None:
        self._now_ns = 0
        self.slept_s = 0.0

    def now_ns(self) -> int:
        """Return the time in nanoseconds."""
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self.slept_s += seconds
        self.advance(round(seconds * 1e9))

    def advance(self, nanoseconds: int) -> None:
        """Move the time forward."""
        self._now_ns += nanoseconds
