"""The record of a latency measurement: protocol as data, result, verdict. Times are in ms but where named otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.measure.environment import Environment
from edge.measure.statistics import Interval, PercentileEstimate
from edge.targets.base import Mode

Verdict = Literal["valid", "valid_with_warnings", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a measurement is not simply valid."""

    rule: str
    severity: Literal["warning", "invalid"]
    message: str


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Run until all hold: `runs`, `seconds`, and the median of the last `window` within `tolerance` of the one before.

    It ends after `cap_s` in any case.
    """

    runs: int = 10
    seconds: float = 0.5
    window: int = 5
    tolerance: float = 0.05
    cap_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How long to measure: at least `runs` and at least `seconds`, at most `max_seconds`.

    `strict` makes a disturbed measurement invalid that else has a warning. `window_s` asks for statistics by time
    window, `cooldown_s` is waited before the warm-up.
    """

    name: str
    runs: int
    seconds: float
    max_seconds: float
    strict: bool
    warm_up: WarmUp = WarmUp()
    cooldown_s: float = 0.0
    window_s: float | None = None

    def __post_init__(self) -> None:
        if self.runs < 1 or self.seconds < 0 or self.max_seconds < self.seconds:
            raise ValueError(f"profile {self.name!r} asks for {self.runs} runs, {self.seconds} to {self.max_seconds} s")


# Run counts and times of the MLPerf Mobile app (rapid, quick, normal) and of LoadGen's single stream; only `smoke`,
# which every build pays for, is shorter.
PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="smoke", runs=64, seconds=1, max_seconds=30, strict=False, warm_up=WarmUp(cap_s=5)),
        Profile(name="quick", runs=128, seconds=10, max_seconds=60, strict=False),
        Profile(name="standard", runs=1024, seconds=60, max_seconds=600, strict=True),
        Profile(name="submission", runs=64, seconds=600, max_seconds=3600, strict=True, cooldown_s=300),
        Profile(name="sustained", runs=64, seconds=1800, max_seconds=3600, strict=True, cooldown_s=60, window_s=60),
    )
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: where it runs, with how many threads, which kernels; load and first run as the caller saw."""

    mode: Mode
    threads: int
    kernels: str
    load_ms: float | None = None
    first_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """One stretch of time of a long measurement, from its start in seconds."""

    start_s: float
    runs: int
    median_ms: float
    p90_ms: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The result. `median_interval` has 99 % confidence and is None below 8 samples.

    `runs` were timed in `duration_s`, of which `samples` were kept. `cv` is standard deviation / mean, `mad_ms` the
    median absolute deviation. `p90`, `p95`, `p99` are upper estimates (LoadGen's early stopping), or say how many runs
    they miss.
    """

    setting: Setting
    profile: Profile
    runs: int
    samples: int
    duration_s: float
    warm_up_runs: int
    warm_up_stable: bool
    median_ms: float
    median_interval: Interval | None
    p90: PercentileEstimate
    p95: PercentileEstimate
    p99: PercentileEstimate
    min_ms: float
    mean_ms: float
    std_ms: float
    cv: float
    mad_ms: float
    clock: str
    timer_overhead_ns: int
    windows: tuple[Window, ...]
    before: Environment
    after: Environment
    verdict: Verdict = "valid"
    reasons: tuple[Reason, ...] = ()
