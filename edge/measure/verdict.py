"""Whether a latency measurement can be trusted, and why not.

Throttling makes every measurement invalid, for then another machine was measured. A disturbance (drift, wide spread,
too few processors) makes a strict profile invalid, whose numbers may decide a gate; in the short profiles, which run on
shared hosts during a build, it is a warning unless it is gross. A high coefficient of variation alone is a warning:
one preempted run raises it, and neither the median nor its interval moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.measure.environment import Environment
from edge.measure.latency_record import Latency, Reason, Verdict

MAX_CV = 0.10
MAX_DRIFT = 0.05
GROSS_DRIFT = 0.20
MAX_HALF_WIDTH = 0.05
GROSS_HALF_WIDTH = 0.20
MAX_BACKGROUND_CPUS = 0.25
MAX_STEAL = 0.01
MAX_TIMER_SHARE = 0.01
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


def drift(values: NDArray[np.float64]) -> float:
    """Return median(last third) / median(first third) - 1; 0 below 9 values."""
    third = values.size // 3
    first = float(np.median(values[:third])) if third >= 3 else 0.0
    return float(np.median(values[-third:])) / first - 1 if first > 0 else 0.0


def _per_second(before: float | None, after: float | None, duration_s: float) -> float:
    return (after - before) / duration_s if before is not None and after is not None and duration_s > 0 else 0.0


def background_cpus(before: Environment, after: Environment, duration_s: float) -> float:
    """Return how many processors other processes kept busy, on average; 0 where the system does not tell."""
    busy = _per_second(before.busy_s, after.busy_s, duration_s)
    return max(0.0, busy - _per_second(before.own_s, after.own_s, duration_s))


def _graded(rule: str, size: float, limit: float, gross: float, message: str, *, strict: bool) -> Iterator[Reason]:
    if size > limit:
        severity: Literal["warning", "invalid"] = "invalid" if strict or size > gross else "warning"
        yield Reason(rule=rule, severity=severity, message=message)


def _spread(latency: Latency, values: NDArray[np.float64]) -> Iterator[Reason]:
    strict, median = latency.profile.strict, latency.median_ms
    interval = latency.median_interval
    if interval is None:
        yield Reason(
            rule="TOO_FEW_RUNS",
            severity="invalid" if strict else "warning",
            message=f"{latency.samples} runs give no 99 % interval of the median; 8 are needed",
        )
    elif median > 0:
        width = (interval.high - interval.low) / 2 / median
        text = f"the 99 % interval of the median is +-{width:.1%} wide, above {MAX_HALF_WIDTH:.0%}"
        yield from _graded("WIDE_INTERVAL", width, MAX_HALF_WIDTH, GROSS_HALF_WIDTH, text, strict=strict)
    change = drift(values)
    text = f"the last third of the runs took {change:+.1%} against the first, beyond {MAX_DRIFT:.0%}"
    yield from _graded("DRIFT", abs(change), MAX_DRIFT, GROSS_DRIFT, text, strict=strict)
    robust = _MAD_TO_SIGMA * latency.mad_ms / median if median > 0 else 0.0
    text = f"the spread without outliers is {robust:.1%} of the median, above {MAX_CV:.0%}"
    yield from _graded("SPREAD", robust, MAX_CV, np.inf, text, strict=strict)
    if latency.cv > MAX_CV and robust <= MAX_CV:
        text = f"the coefficient of variation is {latency.cv:.1%}, above {MAX_CV:.0%}: single runs were disturbed"
        yield Reason(rule="OUTLIERS", severity="warning", message=text)


def _machine(latency: Latency) -> Iterator[Reason]:
    before, after, seconds = latency.before, latency.after, latency.duration_s
    if before.throttled_now or after.throttled_now or (before.throttled or 0) != (after.throttled or 0):
        text = (
            f"the board was throttled: get_throttled {before.throttled or 0:#x} before, {after.throttled or 0:#x} after"
        )
        yield Reason(rule="THROTTLED", severity="invalid", message=text)
    elif before.throttled:
        text = f"the board was throttled earlier since it started: get_throttled {before.throttled:#x}"
        yield Reason(rule="THROTTLED_EARLIER", severity="warning", message=text)
    others = background_cpus(before, after, seconds)
    cpus = len(before.affinity) or before.cpus
    if others + latency.setting.threads > cpus + MAX_BACKGROUND_CPUS:
        text = f"other processes kept {others:.1f} of {cpus} processors busy beside {latency.setting.threads} threads"
        yield Reason(rule="OVERSUBSCRIBED", severity="invalid" if latency.profile.strict else "warning", message=text)
    elif others > MAX_BACKGROUND_CPUS:
        text = f"other processes kept {others:.1f} of {cpus} processors busy"
        yield Reason(rule="BACKGROUND_LOAD", severity="warning", message=text)
    if (steal := _per_second(before.steal_s, after.steal_s, seconds)) > MAX_STEAL:
        text = f"the hypervisor took {steal:.1%} of a processor away"
        yield Reason(rule="STEAL", severity="warning", message=text)
    governors = sorted({policy.governor for policy in before.frequencies if policy.governor})
    if governors and governors != ["performance"]:
        text = f"the frequency governor is {', '.join(governors)}, not performance"
        yield Reason(rule="GOVERNOR", severity="warning", message=text)


def _protocol(latency: Latency) -> Iterator[Reason]:
    profile = latency.profile
    if latency.runs < profile.runs:
        text = f"{latency.runs} of {profile.runs} runs fitted into {profile.max_seconds:g} s"
        yield Reason(rule="FEWER_RUNS", severity="warning", message=text)
    if not latency.warm_up_stable:
        text = (
            f"the times were not stable after {latency.warm_up_runs} warm-up runs, at most {profile.warm_up.cap_s:g} s"
        )
        yield Reason(rule="UNSTABLE_WARM_UP", severity="warning", message=text)
    if latency.timer_overhead_ns > MAX_TIMER_SHARE * latency.median_ms * 1e6:
        text = f"reading the clock takes {latency.timer_overhead_ns} ns, above {MAX_TIMER_SHARE:.0%} of a run"
        yield Reason(rule="TIMER_OVERHEAD", severity="warning", message=text)


def judge(latency: Latency, values: NDArray[np.float64]) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict on a measurement, with all its reasons; `values` are the kept durations in ms, in order."""
    reasons = (*_machine(latency), *_spread(latency, values), *_protocol(latency))
    if any(reason.severity == "invalid" for reason in reasons):
        return "invalid", reasons
    return ("valid_with_warnings" if reasons else "valid"), reasons
