"""What the runtimes' own Android programs print: benchmark_model, run_model (LiteRT), executor_runner (ExecuTorch).

Formats as their sources write them (tflite/tools/benchmark/benchmark_model.cc, litert/tools/run_model.cc,
examples/portable/executor_runner/executor_runner.cpp) and as logs of several years show them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Of a size that every float and integer holds: a cut or damaged text may have any number of digits.
_NUMBER = r"[-+]?\d{1,18}(?:\.\d{1,18})?(?:[eE][-+]?\d{1,2})?"


@dataclass(frozen=True, kw_only=True)
class ToolTiming:
    """Statistics that a program tells of its own runs; None where it does not tell. `samples_ms` are single runs."""

    runs: int
    mean_ms: float
    min_ms: float | None = None
    max_ms: float | None = None
    std_ms: float | None = None
    median_ms: float | None = None
    first_ms: float | None = None
    load_ms: float | None = None
    peak_kib: int | None = None
    samples_ms: tuple[float, ...] = ()


def _found(pattern: str, text: str) -> float | None:
    """Return the last number that a pattern's group has in a text that may be cut off anywhere."""
    found = re.findall(pattern.replace("NUMBER", f"({_NUMBER})"), text)
    return float(found[-1]) if found else None


def _ms(microseconds: float | None) -> float | None:
    return None if microseconds is None else microseconds / 1e3


def _counts(text: str) -> dict[str, float]:
    """Return the fields of the last `count=...` line that is whole; the one before is of the warm-up."""
    lines = re.findall(r"\bcount=\d+[^\n]*\n", text)
    return {k: float(v) for k, v in re.findall(rf"(\w+)=({_NUMBER})(?=\s|$)", lines[-1])} if lines else {}


def benchmark_model(text: str) -> ToolTiming | None:
    """Return what LiteRT's benchmark_model tells, of any year; None where it did not come to its end."""
    end = _found(r"Inference timings in us:.*\bInference \(avg\): NUMBER(?=\s)", text)
    if end is None:
        end = _found(r"Average inference timings in us:.*\bno stats: NUMBER(?=\s)", text)
    counts = _counts(text)
    if end is None or "count" not in counts:
        return None
    peak = _found(r"Overall peak memory footprint \(MB\) via periodic monitoring: NUMBER(?=\s)", text)
    # A line of equal runs has only count and curr.
    low, high = counts.get("min", counts.get("curr")), counts.get("max", counts.get("curr"))
    return ToolTiming(
        runs=int(counts["count"]),
        mean_ms=end / 1e3,
        min_ms=_ms(low),
        max_ms=_ms(high),
        std_ms=_ms(counts.get("std")),
        median_ms=_ms(counts.get("median")),
        first_ms=_ms(_found(r"First inference: NUMBER,", text)),
        load_ms=_ms(_found(r"timings in us:.*\bInit: NUMBER,", text)),
        peak_kib=None if peak is None else round(peak * 1024),
    )


def run_model(text: str) -> ToolTiming | None:
    """Return what LiteRT's run_model tells; None where it did not come to its end."""
    mean = _found(r"All runs took average NUMBER microseconds", text)
    runs = _found(r"Run model for NUMBER times", text)
    if mean is None or runs is None:
        return None
    return ToolTiming(
        runs=int(runs),
        mean_ms=mean / 1e3,
        min_ms=_ms(_found(r"Fastest run took NUMBER microseconds", text)),
        max_ms=_ms(_found(r"Slowest run took NUMBER microseconds", text)),
        first_ms=_ms(_found(r"First run took NUMBER microseconds", text)),
    )


def executor_runner(text: str) -> ToolTiming | None:
    """Return what ExecuTorch's executor_runner tells; None where it did not come to its end, or logs nothing.

    Runners since 2026 tell every run (`Iteration 1 of 10: 5.1 ms`); older ones only the total.
    """
    total = re.findall(rf"Model executed successfully (\d{{1,12}}) time\(s\) in ({_NUMBER}) ms", text)
    if not total or not int(total[-1][0]):
        return None
    runs, spent = int(total[-1][0]), float(total[-1][1])
    samples = tuple(float(v) for v in re.findall(rf"Iteration \d+ of \d+: ({_NUMBER}) ms", text))
    whole = len(samples) == runs
    return ToolTiming(
        runs=runs,
        mean_ms=spent / runs,
        min_ms=min(samples) if whole else None,
        max_ms=max(samples) if whole else None,
        first_ms=samples[0] if whole else None,
        load_ms=_found(r"Model loaded in NUMBER ms", text),
        samples_ms=samples if whole else (),
    )


PARSERS = {"benchmark_model": benchmark_model, "run_model": run_model, "executor_runner": executor_runner}
