"""The latency protocol, on a clock that the test moves, and once on this machine."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.codec import dumps, from_json, to_json
from edge.measure.clock import FakeClock, SystemClock
from edge.measure.environment import Environment, read_environment
from edge.measure.latency import (
    PROFILES,
    Latency,
    Measured,
    Profile,
    Setting,
    WarmUp,
    measure,
    timer_overhead_ns,
    warm_up,
)

QUIET = Environment(cpus=2, affinity=(0, 1), busy_s=100.0, steal_s=0.0, own_s=5.0)
SETTING = Setting(mode="emulated", threads=1, kernels="xnnpack", load_ms=12.5, first_ms=3.0)
NO_WARM_UP = WarmUp(runs=10, seconds=0, cap_s=30)
MS = 1_000_000


def _taking(clock: FakeClock, durations: Iterator[int]) -> Callable[[], None]:
    return lambda: clock.advance(next(durations))


def _measured(durations: Iterator[int], profile: Profile, *readings: Environment) -> Measured:
    clock = FakeClock()
    environments = itertools.cycle(readings or (QUIET,))
    return measure(
        _taking(clock, durations), profile=profile, setting=SETTING, clock=clock, environment=lambda: next(environments)
    )


def _rules(latency: Latency) -> dict[str, str]:
    return {reason.rule: reason.severity for reason in latency.reasons}


def _profile(*, runs: int = 64, strict: bool = False, **changes: object) -> Profile:
    return replace(
        Profile(name="test", runs=runs, seconds=0, max_seconds=1000, strict=strict, warm_up=NO_WARM_UP),
        **changes,  # type: ignore[arg-type]
    )


def test_profiles_are_those_of_the_trusted_harnesses() -> None:
    """Runs and seconds of the four profiles that mirror MLPerf, and of `smoke`, which is shorter."""
    facts = {name: (profile.runs, profile.seconds, profile.max_seconds) for name, profile in PROFILES.items()}
    assert facts == {
        "smoke": (64, 1, 30),
        "quick": (128, 10, 60),
        "standard": (1024, 60, 600),
        "submission": (64, 600, 3600),
        "sustained": (64, 1800, 3600),
    }


def test_a_profile_that_cannot_be_met_is_refused() -> None:
    """A maximum below the minimum is a mistake."""
    with pytest.raises(ValueError, match="profile 'test' asks for 64 runs, 10 to 5 s"):
        _profile(seconds=10, max_seconds=5)


def test_result_of_a_steady_program() -> None:
    """A program of exactly 2 ms: every figure is 2 ms, 64 runs give p90 but neither p95 nor p99, verdict valid."""
    latency, samples = _measured(itertools.repeat(2 * MS), _profile())
    assert samples.tolist() == [2 * MS] * 64
    assert (latency.median_ms, latency.min_ms, latency.mean_ms, latency.p90.value) == (2, 2, 2, 2)
    assert (latency.std_ms, latency.cv, latency.mad_ms) == (0, 0, 0)
    assert (latency.p95.value, latency.p95.runs_missing, latency.p99.runs_missing) == (None, 66, 598)
    assert (latency.verdict, latency.reasons, latency.runs, latency.samples) == ("valid", (), 64, 64)
    assert latency.duration_s == pytest.approx(0.128)


def test_result_goes_to_json_and_back() -> None:
    """The record is plain data without NaN."""
    latency = _measured(itertools.cycle([MS, 2 * MS, 9 * MS]), _profile(window_s=0.05)).latency
    data = to_json(latency)
    assert "NaN" not in dumps(data)
    assert from_json(Latency, data) == latency


def test_both_runs_and_seconds_must_be_reached() -> None:
    """With 10 ms a run, 64 runs take 0.64 s: a minimum of 6 s means 600 runs."""
    latency = _measured(itertools.repeat(10 * MS), _profile(seconds=6)).latency
    assert (latency.runs, latency.duration_s) == (600, 6.0)


def test_the_maximum_time_ends_it_with_a_warning() -> None:
    """With 1 s a run and at most 20 s, 20 of 64 runs are done, the percentile is insufficient, and both are said."""
    latency = _measured(itertools.repeat(1000 * MS), _profile(max_seconds=20)).latency
    assert latency.runs == 20
    assert str(latency.p90) == "insufficient, 44 more runs"
    assert latency.verdict == "valid_with_warnings"
    assert latency.reasons[0].message == "20 of 64 runs fitted into 20 s"


def test_a_program_slower_than_the_maximum_still_runs_once() -> None:
    """One run that takes longer than the maximum gives a median and no interval."""
    latency = _measured(itertools.repeat(60_000 * MS), _profile(max_seconds=20)).latency
    assert (latency.runs, latency.median_ms, latency.median_interval) == (1, 60_000, None)
    assert _rules(latency)["TOO_FEW_RUNS"] == "warning"


def test_warm_up_waits_for_count_time_and_stability() -> None:
    """Times that fall by 20 % a run become stable only when they stop falling; the timed runs are the stable ones."""
    falling = [round(100 * MS * 0.8**step) for step in range(12)]
    durations = itertools.chain(falling, itertools.repeat(8 * MS))
    latency, samples = _measured(durations, _profile())
    assert latency.warm_up_stable
    assert latency.warm_up_runs >= len(falling) + 5
    assert set(samples.tolist()) == {8 * MS}


@pytest.mark.parametrize(("duration_ms", "runs"), [(1, 500), (100, 10), (0.1, 5000)])
def test_warm_up_takes_ten_runs_and_half_a_second(duration_ms: float, runs: int) -> None:
    """For a steady program both minima decide, whichever is later; slow ones take ten runs."""
    clock = FakeClock()
    assert warm_up(_taking(clock, itertools.repeat(round(duration_ms * MS))), WarmUp(), clock) == (runs, True)


def test_warm_up_ends_at_its_cap() -> None:
    """Times that keep rising are given up after 30 s, and that is a warning."""
    latency = _measured((10 * MS * (2 + step) for step in itertools.count()), _profile(runs=9)).latency
    assert not latency.warm_up_stable
    assert _rules(latency)["UNSTABLE_WARM_UP"] == "warning"


def test_cooldown_sleeps_before_the_warm_up() -> None:
    """The time asked for is slept on the clock, once."""
    clock = FakeClock()
    run = _taking(clock, itertools.repeat(MS))
    measure(run, profile=_profile(cooldown_s=300), setting=SETTING, clock=clock, environment=lambda: QUIET)
    assert clock.slept_s == 300


def test_load_and_first_run_are_kept_apart() -> None:
    """What the caller measured is in the record and in no statistic."""
    latency = _measured(itertools.repeat(MS), _profile()).latency
    assert (latency.setting.load_ms, latency.setting.first_ms, latency.median_ms) == (12.5, 3.0, 1.0)


@pytest.mark.parametrize(
    ("growth", "strict", "severity"), [(1.1, False, "warning"), (1.1, True, "invalid"), (1.3, False, "invalid")]
)
def test_drift_beyond_5_percent(growth: float, strict: bool, severity: str) -> None:
    """A last third 10 % slower is a warning in a short profile and invalid in a strict one; 30 % is always invalid."""
    durations = itertools.chain([MS] * 10, [MS] * 30, [round(growth * MS)] * 30)
    latency = _measured(durations, _profile(runs=60, strict=strict)).latency
    assert _rules(latency)["DRIFT"] == severity


def test_drift_within_5_percent_is_valid() -> None:
    """A last third 4 % slower is let pass, in a strict profile too."""
    durations = itertools.chain([MS] * 40, [round(1.04 * MS)] * 30)
    assert _measured(durations, _profile(runs=60, strict=True)).latency.verdict == "valid"


def test_outliers_alone_are_a_warning() -> None:
    """One run of a hundredfold time raises the coefficient of variation, not the median: still usable."""
    durations = itertools.chain([MS] * 30, [100 * MS], itertools.repeat(MS))
    latency = _measured(durations, _profile(strict=True)).latency
    assert latency.cv > 0.10
    assert _rules(latency) == {"OUTLIERS": "warning"}
    assert latency.verdict == "valid_with_warnings"


@pytest.mark.parametrize(("strict", "verdict"), [(False, "valid_with_warnings"), (True, "invalid")])
def test_a_wide_spread_is_graver_in_a_strict_profile(strict: bool, verdict: str) -> None:
    """Times that spread evenly over +-25 % have no median worth a gate."""
    times = (round(MS * (0.75 + 0.5 * share)) for share in itertools.cycle(np.random.default_rng(0).random(997)))
    latency = _measured(times, _profile(runs=400, strict=strict)).latency
    assert "SPREAD" in _rules(latency)
    assert latency.verdict == verdict


@pytest.mark.parametrize("strict", [False, True])
def test_throttling_makes_every_measurement_invalid(strict: bool) -> None:
    """A bit of get_throttled that appears during the runs means that another machine was measured."""
    after = replace(QUIET, throttled=0x50005)
    latency = _measured(itertools.repeat(MS), _profile(strict=strict), replace(QUIET, throttled=0), after).latency
    assert latency.verdict == "invalid"
    assert latency.reasons[0].message == "the board was throttled: get_throttled 0x0 before, 0x50005 after"


def test_earlier_throttling_is_a_warning() -> None:
    """Bits that only remember are said and forgiven."""
    latency = _measured(itertools.repeat(MS), _profile(), replace(QUIET, throttled=0x50000)).latency
    assert _rules(latency) == {"THROTTLED_EARLIER": "warning"}


@pytest.mark.parametrize(
    ("others", "strict", "expected"),
    [
        (0.2, True, {}),
        (0.8, True, {"BACKGROUND_LOAD": "warning"}),
        (1.6, False, {"OVERSUBSCRIBED": "warning"}),
        (1.6, True, {"OVERSUBSCRIBED": "invalid"}),
    ],
)
def test_load_of_other_processes(others: float, strict: bool, expected: dict[str, str]) -> None:
    """On two processors one busy neighbour is a warning; more than that competes with the one thread measured."""
    after = replace(QUIET, busy_s=100 + 64 * (1 + others), own_s=5.0 + 64)
    latency = _measured(itertools.repeat(1000 * MS), _profile(strict=strict), QUIET, after).latency
    assert _rules(latency) == expected


def test_stolen_time_and_a_saving_governor_are_warnings() -> None:
    """Both are facts about the machine that the reader must know."""
    from edge.measure.environment import FrequencyPolicy

    before = replace(QUIET, frequencies=(FrequencyPolicy(name="policy0", governor="ondemand"),))
    latency = _measured(itertools.repeat(1000 * MS), _profile(), before, replace(QUIET, steal_s=2.0)).latency
    assert _rules(latency) == {"STEAL": "warning", "GOVERNOR": "warning"}


def test_long_measurements_keep_every_second_sample() -> None:
    """With room for 100, 1000 runs are all counted and timed; at most 100 are kept, evenly spread."""
    clock = FakeClock()
    durations = (MS + step for step in itertools.count())
    latency, samples = measure(
        _taking(clock, durations),
        profile=_profile(runs=1000),
        setting=SETTING,
        clock=clock,
        environment=lambda: QUIET,
        max_samples=100,
    )
    assert latency.runs == 1000
    assert 50 <= samples.size < 100
    assert set(np.diff(samples)) == {16}
    assert latency.samples == samples.size


def test_windows_of_a_long_measurement() -> None:
    """Windows of 1 s over 100 ms runs hold ten runs each, with their own median."""
    durations = itertools.chain([100 * MS] * 10, [100 * MS] * 20, [103 * MS] * 60)
    windows = _measured(durations, _profile(runs=40, window_s=1.0)).latency.windows
    assert [window.runs for window in windows[:3]] == [10, 10, 10]
    assert [window.median_ms for window in windows[:3]] == [100, 100, 103]
    assert windows[1].start_s == 1.0


def test_timer_overhead_is_measured_and_judged() -> None:
    """A clock that takes 100 us to read is too slow for runs of 1 ms."""

    class SlowClock(FakeClock):
        def now_ns(self) -> int:
            self.advance(100_000)
            return super().now_ns()

    clock = SlowClock()
    assert timer_overhead_ns(clock) == 100_000
    run = _taking(clock, itertools.repeat(MS))
    latency = measure(run, profile=_profile(), setting=SETTING, clock=clock, environment=lambda: QUIET).latency
    assert _rules(latency) == {"TIMER_OVERHEAD": "warning"}


def test_the_garbage_collector_is_off_while_timed_and_back_after_a_failure() -> None:
    """Runs see it disabled after the warm-up; an error of the program passes through and leaves it enabled."""
    clock, seen = FakeClock(), []

    def run() -> None:
        seen.append(gc.isenabled())
        clock.advance(MS)
        if len(seen) == 20:
            raise RuntimeError("program failed")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="program failed"):
        measure(run, profile=_profile(), setting=SETTING, clock=clock, environment=lambda: QUIET)
    assert seen == [True] * 10 + [False] * 10
    assert gc.isenabled()


def test_a_real_program_on_this_machine() -> None:
    """Sleeping 2 ms is measured as 2 to 4 ms, on the raw monotonic clock where there is one."""
    profile = _profile(seconds=0.2, max_seconds=2)
    latency, samples = measure(lambda: time.sleep(0.002), profile=profile, setting=SETTING)
    assert 2.0 <= latency.median_ms < 4.0
    assert samples.size >= 64
    assert latency.clock == ("CLOCK_MONOTONIC_RAW" if hasattr(time, "CLOCK_MONOTONIC_RAW") else "perf_counter_ns")
    assert 0 < latency.timer_overhead_ns < 100_000


def test_system_clock_sleeps_and_goes_forward() -> None:
    """Time passes by at least what was slept."""
    clock = SystemClock()
    start = clock.now_ns()
    clock.sleep(0.01)
    assert clock.now_ns() - start >= 9_000_000


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_environment_of_a_board(tmp_path: Path) -> None:
    """The files of a Raspberry Pi are read into the record."""
    policy = "sys/devices/system/cpu/cpufreq/policy0/"
    root = _tree(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/stat": "cpu  100 0 50 1000 5 1 2 30 0 0\ncpu0 1 1 1\n",
            policy + "scaling_governor": "ondemand\n",
            policy + "scaling_cur_freq": "600000\n",
            policy + "scaling_max_freq": "1500000\n",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        },
    )
    found = read_environment(root)
    assert found.cpu_model == "Raspberry Pi 4 Model B Rev 1.4"
    (frequency,) = found.frequencies
    assert (frequency.governor, frequency.current_khz, frequency.min_khz) == ("ondemand", 600000, None)
    assert found.temperatures_c == {"thermal_zone0:cpu-thermal": 48.312}
    assert (found.throttled, found.throttled_now) == (0x50005, True)
    assert found.busy_s is not None
    assert found.steal_s is not None
    assert found.steal_s / found.busy_s == pytest.approx(30 / 153)


def test_environment_of_a_system_that_tells_nothing(tmp_path: Path) -> None:
    """Without /proc and /sys the record has gaps, no error, and goes to JSON."""
    found = read_environment(tmp_path)
    assert (found.frequencies, found.temperatures_c, found.throttled, found.busy_s) == ((), {}, None, None)
    assert from_json(Environment, to_json(found)) == found
