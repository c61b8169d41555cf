"""What a board did while it was measured: frequency, temperature, throttling and power over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edge.measure.latency_record import Reason, Verdict

MAX_FREQUENCY_FALL = 0.05
_THROTTLED_NOW = 0xF
# Which power each source reads: that of the board's rails, of what a sensor sits in, of the phone, of the processor.
SOURCES = {
    "pmic": "the rails of the Raspberry Pi's power controller",
    "sensor": "the board's power sensor",
    "battery": "the battery",
    "rapl": "the processor package (RAPL)",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The board's state at a time of the measurement; nothing where the system does not tell. Power in watts."""

    at_s: float
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    frequencies_khz: Mapping[str, int] = field(default_factory=dict)
    throttled: int | None = None
    power_w: float | None = None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of one inference in mJ: mean power while running times the median latency; `net_mj` above idle power.

    `source` says whose power it is. It is read between runs, so it holds for the board and not for single runs.
    """

    source: str
    idle_w: float | None
    running_w: float
    per_inference_mj: float
    net_mj: float | None
    readings: int


def energy(trace: Sequence[Reading], source: str | None, idle_w: Sequence[float], mean_ms: float) -> Energy | None:
    """Return the energy of one inference where the board tells its power, else None. `mean_ms` is that of the runs."""
    # The first reading is made before any run has been timed.
    running = [r.power_w for r in trace[1:] if r.power_w is not None]
    if source is None or not running:
        return None
    watts, idle = float(np.mean(running)), float(np.mean(idle_w)) if idle_w else None
    return Energy(
        source=SOURCES.get(source, source),
        idle_w=idle,
        running_w=watts,
        per_inference_mj=watts * mean_ms,
        net_mj=None if idle is None else max(0.0, watts - idle) * mean_ms,
        readings=len(running),
    )


def reasons(trace: Sequence[Reading], *, strict: bool) -> Iterator[Reason]:
    """Yield why a measurement with this trace is not simply valid: throttled at any time, or a frequency that fell."""
    held = [r for r in trace if (r.throttled or 0) & _THROTTLED_NOW]
    if held:
        text = (
            f"the board was throttled {held[0].at_s:.0f} s after the start: get_throttled {held[0].throttled or 0:#x}"
        )
        yield Reason(rule="THROTTLED_DURING", severity="invalid", message=text)
    severity: Literal["warning", "invalid"] = "invalid" if strict else "warning"
    for policy in trace[0].frequencies_khz if trace else ():
        values = [r.frequencies_khz[policy] for r in trace[1:] if policy in r.frequencies_khz]
        third = len(values) // 3
        if not third:
            continue
        first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
        if last < first * (1 - MAX_FREQUENCY_FALL):
            text = f"the frequency of {policy} fell from {first / 1e3:.0f} to {last / 1e3:.0f} MHz"
            yield Reason(rule="FREQUENCY_FELL", severity=severity, message=text)


def verdict_of(found: Sequence[Reason]) -> Verdict:
    """Return the verdict that follows from all reasons."""
    if any(reason.severity == "invalid" for reason in found):
        return "invalid"
    return "valid_with_warnings" if found else "valid"


def hottest(trace: Sequence[Reading]) -> tuple[float, float] | None:
    """Return the highest temperature at the start and over all, in degrees Celsius, or None."""
    values = [max(r.temperatures_c.values()) for r in trace if r.temperatures_c]
    return (values[0], max(values)) if values else None
