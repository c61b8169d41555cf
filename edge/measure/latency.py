"""Latency of one callable: warm-up until stable, a timed loop, robust statistics, and a verdict on the measurement.

The protocol follows MLPerf (LoadGen's early stopping, the mobile app's run counts) and LiteRT's benchmark tool (warm-up
by count and time). Times are in milliseconds but where a name says otherwise.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.measure.clock import Clock, SystemClock
from edge.measure.environment import Environment, read_environment
from edge.measure.latency_record import PROFILES, Latency, Profile, Reason, Setting, WarmUp, Window
from edge.measure.statistics import median_interval, percentile_estimate
from edge.measure.verdict import judge

__all__ = [
    "PROFILES",
    "Latency",
    "Measured",
    "Profile",
    "Reason",
    "Setting",
    "Timing",
    "WarmUp",
    "Window",
    "is_stable",
    "measure",
    "summarize",
    "timer_overhead_ns",
    "warm_up",
]

Nanoseconds = NDArray[np.int64]

MAX_SAMPLES = 2**21  # 16 MiB each of durations and times; beyond it every second sample is dropped
_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


class Measured(NamedTuple):
    """A result and the raw durations it was made from, in nanoseconds and in order."""

    latency: Latency
    samples_ns: Nanoseconds


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The raw result of a timed loop: kept durations and start times in order, and what was seen around them."""

    samples_ns: Nanoseconds
    starts_ns: Nanoseconds
    runs: int
    duration_s: float
    warm_up_runs: int
    warm_up_stable: bool
    clock: str
    timer_overhead_ns: int
    before: Environment
    after: Environment


class _Recorder:
    """Durations and start times; when full it keeps every second one, and from then on records half as often."""

    def __init__(self, capacity: int) -> None:
        self.durations = array("q")
        self.starts = array("q")
        self.runs = 0
        self._stride = 1
        self._capacity = capacity

    def add(self, start: int, duration: int) -> None:
        if self.runs % self._stride == 0:
            self.durations.append(duration)
            self.starts.append(start)
            if len(self.durations) >= self._capacity:
                self.durations, self.starts = self.durations[::2], self.starts[::2]
                self._stride *= 2
        self.runs += 1


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def timer_overhead_ns(clock: Clock, readings: int = 1000) -> int:
    """Return the median time between two readings of the clock that follow each other."""
    times = [clock.now_ns() for _ in range(readings + 1)]
    return int(np.median(np.diff(times)))


def is_stable(durations: list[int], rule: WarmUp) -> bool:
    """Tell whether the last window's median is within the tolerance of the one before it."""
    if len(durations) < 2 * rule.window:
        return False
    before, last = (
        float(np.median(part)) for part in (durations[-2 * rule.window : -rule.window], durations[-rule.window :])
    )
    return abs(last - before) <= rule.tolerance * before


def warm_up(run: Callable[[], None], rule: WarmUp, clock: Clock) -> tuple[int, bool]:
    """Run until the rule holds or its cap is reached; return the number of runs and whether they became stable."""
    durations: list[int] = []
    begin = clock.now_ns()
    while True:
        start = clock.now_ns()
        run()
        end = clock.now_ns()
        durations.append(end - start)
        elapsed = (end - begin) / _NS_PER_S
        enough = len(durations) >= rule.runs and elapsed >= rule.seconds
        if (enough and is_stable(durations, rule)) or elapsed >= rule.cap_s:
            return len(durations), is_stable(durations, rule)


def _timed_loop(run: Callable[[], None], profile: Profile, clock: Clock, capacity: int) -> tuple[_Recorder, float]:
    recorder = _Recorder(capacity)
    now, add = clock.now_ns, recorder.add
    shortest, longest = profile.seconds * _NS_PER_S, profile.max_seconds * _NS_PER_S
    begin = now()
    elapsed = 0
    while (recorder.runs < profile.runs or elapsed < shortest) and (elapsed < longest or not recorder.runs):
        start = now()
        run()
        end = now()
        add(start - begin, end - start)
        elapsed = end - begin
    return recorder, elapsed / _NS_PER_S


def _windows(samples_ns: Nanoseconds, starts_ns: Nanoseconds, window_s: float | None) -> tuple[Window, ...]:
    if window_s is None:
        return ()
    numbers = starts_ns // int(window_s * _NS_PER_S)
    parts = ((int(number), samples_ns[numbers == number] / _NS_PER_MS) for number in np.unique(numbers))
    return tuple(
        Window(
            start_s=number * window_s,
            runs=part.size,
            median_ms=float(np.median(part)),
            p90_ms=float(np.quantile(part, 0.9)),
        )
        for number, part in parts
    )


def coefficient_of_variation(values: NDArray[np.float64]) -> float:
    """Return standard deviation / mean; 0 for a single value or a mean of 0."""
    mean = float(values.mean())
    return float(values.std(ddof=1)) / mean if values.size > 1 and mean else 0.0


def measure(
    run: Callable[[], None],
    *,
    profile: Profile,
    setting: Setting,
    clock: Clock | None = None,
    environment: Callable[[], Environment] = read_environment,
    max_samples: int = MAX_SAMPLES,
) -> Measured:
    """Measure `run`, which does one inference with its input copied in and its outputs read back.

    What `run` raises passes through. The garbage collector is off while it is timed.
    """
    clock = clock or SystemClock()
    if profile.cooldown_s:
        clock.sleep(profile.cooldown_s)
    overhead = timer_overhead_ns(clock)
    warm_runs, stable = warm_up(run, profile.warm_up, clock)
    with _without_garbage_collection():
        before = environment()
        recorder, duration_s = _timed_loop(run, profile, clock, max_samples)
        after = environment()
    timing = Timing(
        samples_ns=np.array(recorder.durations, np.int64),
        starts_ns=np.array(recorder.starts, np.int64),
        runs=recorder.runs,
        duration_s=duration_s,
        warm_up_runs=warm_runs,
        warm_up_stable=stable,
        clock=clock.name,
        timer_overhead_ns=overhead,
        before=before,
        after=after,
    )
    return Measured(summarize(timing, profile, setting), timing.samples_ns)


def summarize(timing: Timing, profile: Profile, setting: Setting) -> Latency:
    """Return the record and the verdict of a measurement that was taken here or on a device."""
    values = timing.samples_ns / _NS_PER_MS
    latency = Latency(
        setting=setting,
        profile=profile,
        runs=timing.runs,
        samples=values.size,
        duration_s=timing.duration_s,
        warm_up_runs=timing.warm_up_runs,
        warm_up_stable=timing.warm_up_stable,
        median_ms=float(np.median(values)),
        median_interval=median_interval(values),
        p90=percentile_estimate(values, 0.90),
        p95=percentile_estimate(values, 0.95),
        p99=percentile_estimate(values, 0.99),
        min_ms=float(values.min()),
        mean_ms=float(values.mean()),
        std_ms=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        cv=coefficient_of_variation(values),
        mad_ms=float(np.median(np.abs(values - np.median(values)))),
        clock=timing.clock,
        timer_overhead_ns=timing.timer_overhead_ns,
        windows=_windows(timing.samples_ns, timing.starts_ns, profile.window_s),
        before=timing.before,
        after=timing.after,
    )
    verdict, reasons = judge(latency, values)
    return replace(latency, verdict=verdict, reasons=reasons)
