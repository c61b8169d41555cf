"""Profiles and comparisons of latency: their records, and how they look on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge.artifact import what_ran
from edge.findings import Finding
from edge.report.summary import Row, size

VERSION = 1
Mode = Literal["measured", "emulated"]
Outcome = Literal["slower", "faster", "no slower", "undecided", "invalid"]
_MOST_OPERATORS = 12
_MOST_WINDOWS = 60


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """Mean time of one operator as the runtime ran it (fused, in order), its share of the sum of all."""

    index: int
    name: str
    place: str
    mean_us: float
    share: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A ratio, candidate over reference, with its interval."""

    ratio: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class ProfileRecord:
    """What `profile --json` prints and stores.

    `latency` is that of a manifest, with its verdict; `cold` has medians over fresh processes in ms (`start_ms` the
    interpreter, `import_ms`, `load_ms`, `first_ms`, `total_ms`); `spans` the medians of an inference's parts
    (`copy_in_ms`, `run_ms`, `read_back_ms`); `memory` peaks of the resident size in KiB, and the planned `arena_bytes`;
    `windows` and `trace` are over time. Null is what could not be measured; `findings` say why.
    """

    schema: int = VERSION
    artifact: str
    name: str
    target: str
    runtime: str
    program_sha256: str
    device: str
    mode: Mode
    runner: str = "python"
    facts: Mapping[str, Any]
    measured_at: str
    profile: str
    threads: int
    kernels: str
    latency: Mapping[str, Any] | None
    cold: Mapping[str, float] | None
    spans: Mapping[str, float] | None
    memory: Mapping[str, int | None]
    energy: Mapping[str, Any] | None
    instructions: Mapping[str, Any] | None
    operators: tuple[OperatorTime, ...] | None
    windows: tuple[Mapping[str, float], ...]
    trace: tuple[Mapping[str, Any], ...]
    controls: tuple[Mapping[str, Any], ...]
    findings: tuple[Finding, ...]
    samples_file: str | None


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """What `compare --device D --json` prints and stores.

    `ratio` is of times (`unit` ms) or of instructions; `control` that of the reference against itself, later over
    earlier; `launches` processes of `groups` groups in all; `left_out` why processes did not count.
    """

    schema: int = VERSION
    reference: str
    candidate: str
    device: str
    mode: Mode
    runner: str = "python"
    unit: Literal["ms", "instructions"]
    measured_at: str
    threads: int
    kernels: tuple[str, str]
    ratio: Interval | None
    control: Interval | None
    threshold: float
    outcome: Outcome
    reasons: tuple[str, ...]
    launches: int
    groups: int
    looks: int
    reference_ms: float | None
    candidate_ms: float | None
    reference_instructions: int | None = None
    candidate_instructions: int | None = None
    left_out: tuple[str, ...] = ()
    samples_file: str | None = None


def profile_rows(r: ProfileRecord) -> list[Row]:
    """Return the lines of a profile, most important first."""
    rows = list(_latency_rows(r)) if r.latency else []
    if r.instructions:
        value = f"{r.instructions['total']:,}"
        rows.append(
            Row(
                label="instructions per inference",
                value=value,
                mode=f"emulated on {r.instructions['cpu']}, {r.runner} runner",
            )
        )
    rows += _memory_rows(r)
    if r.energy:
        rows += _energy_rows(r.energy)
    rows += [Row(label=c["control"], value=_control(c)) for c in r.controls]
    return rows


def _ms(value: Any) -> str:
    return f"{value:.3f} ms" if isinstance(value, (int, float)) else str(value)


def _latency_rows(r: ProfileRecord) -> Iterator[Row]:
    latency, mode = r.latency or {}, f"{r.mode}, {what_ran(r.kernels)}, {r.threads} thread(s), {r.runner} runner"
    low, high = latency["median_low_ms"], latency["median_high_ms"]
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
    yield Row(label="median (99 % interval)", value=_ms(latency["median_ms"]) + interval, mode=mode)
    for name in ("p90", "p95", "p99"):
        mode = f"{r.mode}, at most that with 99 % confidence" if name == "p90" else r.mode
        yield Row(label=name, value=_ms(latency[f"{name}_ms"]), mode=mode)
    value = f"{_ms(latency['min_ms'])} / {_ms(latency['mean_ms'])}, {latency['samples']} runs"
    yield Row(label="fastest / mean", value=value, mode=r.mode)
    if r.spans:
        value = f"{r.spans['copy_in_ms']:.4f} / {r.spans['run_ms']:.4f} / {r.spans['read_back_ms']:.4f} ms"
        yield Row(label="copy in / run / read back", value=value, mode=f"{r.mode}, medians")
    if r.cold:
        value = f"{r.cold['total_ms']:.1f} ms: Python {r.cold['start_ms']:.1f}, imports {r.cold['import_ms']:.1f}, "
        value += f"load {r.cold['load_ms']:.2f}, first inference {r.cold['first_ms']:.2f}"
        yield Row(label="cold start", value=value, mode=f"{r.mode}, median of {r.cold['starts']:.0f} processes")


def _memory_rows(r: ProfileRecord) -> Iterator[Row]:
    peak, before = r.memory.get("peak_kib"), r.memory.get("before_kib")
    if peak is not None and before is not None:
        value = f"{size(1024 * peak)}, {size(1024 * (peak - before))} of it for runtime and program"
        yield Row(label="peak resident memory", value=value, mode=r.mode)
    if (arena := r.memory.get("arena_bytes")) is not None:
        yield Row(label="arena", value=size(arena), mode="planned")


def _energy_rows(energy: Mapping[str, Any]) -> Iterator[Row]:
    net = f", {energy['net_mj']:.2f} mJ above idle" if energy["net_mj"] is not None else ""
    value = f"{energy['per_inference_mj']:.2f} mJ{net} ({energy['running_w']:.2f} W)"
    yield Row(label="energy per inference", value=value, mode=f"measured at {energy['source']}")


def _control(c: Mapping[str, Any]) -> str:
    if c["taken"]:
        return f"{c['set']} while measuring, then {c['before']} again"
    return f"{c['before']}: this user may not set {c['set']}"


def verdict_line(r: ProfileRecord) -> str:
    """Return what the profile is worth, in a line."""
    where = f"{r.name} on {r.device} ({r.facts.get('model') or r.facts.get('machine') or 'unknown'})"
    if r.latency is None:
        return f"{where}: no latency"
    return f"{where}: {str(r.latency['verdict']).replace('_', ' ')}"


def show_profile(r: ProfileRecord) -> None:
    """Write a profile to stdout."""
    console, escape = _console()
    colour = {"valid": "green", "valid_with_warnings": "yellow", "invalid": "red"}
    verdict = str(r.latency["verdict"]) if r.latency else "valid"
    console.print(f"\n[bold {colour[verdict]}]{escape(verdict_line(r))}[/]")
    for reason in (r.latency or {}).get("reasons", ()):
        console.print(f"  {escape(reason)}")
    console.print(_rows(profile_rows(r)))
    if r.operators:
        console.print(_operators(r.operators))
    if r.windows:
        console.print(_windows(r.windows, r.trace))
    for f in r.findings:
        fix = f" Fix: {f.fix}" if f.fix else ""
        console.print(f"  [dim]{f.severity} {f.rule}[/] {escape(f.message + fix)}")
    if r.samples_file:
        console.print(f"  raw samples: {escape(r.samples_file)}", soft_wrap=True)


def _console() -> tuple[Any, Any]:
    from rich.console import Console
    from rich.markup import escape

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160), escape


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, show_header=bool(columns), padding=(0, 2), header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _rows(rows: Sequence[Row]) -> Any:
    from rich.markup import escape

    table = _table()
    for row in rows:
        table.add_row(escape(row.label), f"[bold]{escape(row.value)}[/]", f"[dim]{escape(row.mode)}[/]")
    return table


def _operators(operators: Sequence[OperatorTime]) -> Any:
    from rich.markup import escape

    table = _table("operator, slowest first", "mean", "share", "place", "position")
    slowest = sorted(operators, key=lambda o: -o.mean_us)
    for o in slowest[:_MOST_OPERATORS]:
        table.add_row(escape(o.name), f"{o.mean_us:.1f} us", f"{o.share:.1%}", o.place, str(o.index))
    if rest := slowest[_MOST_OPERATORS:]:
        us, share = sum(o.mean_us for o in rest), sum(o.share for o in rest)
        table.add_row(f"{len(rest)} others", f"{us:.1f} us", f"{share:.1%}")
    return table


def _windows(windows: Sequence[Mapping[str, float]], trace: Sequence[Mapping[str, Any]]) -> Any:
    """Return the table over time: each window with the board's state at its end."""
    table = _table("time", "runs", "median", "p90", "temperature", "frequency")
    for w, after in zip(windows[:_MOST_WINDOWS], [*windows[1:], None], strict=False):
        end = after["start_s"] if after else float("inf")
        last = [t for t in trace if w["start_s"] <= t["at_s"] < end]
        temperatures = (last[-1]["temperatures_c"] if last else {}).values()
        frequencies = (last[-1]["frequencies_khz"] if last else {}).values()
        table.add_row(
            f"{w['start_s']:.0f} s",
            f"{w['runs']:.0f}",
            _ms(w["median_ms"]),
            _ms(w["p90_ms"]),
            f"{max(temperatures):.1f} C" if temperatures else "-",
            " ".join(f"{f / 1e3:.0f} MHz" for f in frequencies) or "-",
        )
    return table


def comparison_line(r: ComparisonRecord) -> str:
    """Return the outcome of a comparison as a sentence."""
    limit = f"{r.threshold:.1%}".replace(".0%", "%")
    what = "the ratio" if r.unit == "instructions" else "the whole interval"
    said = {
        "slower": f"SLOWER: {what} lies above +{limit}",
        "faster": f"FASTER: {what} lies below 1/(1 + {limit})",
        "no slower": f"NO SLOWER: {what} lies below +{limit}",
        "undecided": f"UNDECIDED: the interval holds +{limit}, and more runs would be needed",
        "invalid": "INVALID: " + "; ".join(r.reasons),
    }
    return said[r.outcome]


def show_comparison(r: ComparisonRecord) -> None:
    """Write a comparison to stdout."""
    console, escape = _console()
    colour = {"slower": "red", "faster": "green", "no slower": "green"}.get(r.outcome, "yellow")
    console.print(f"\n[bold {colour}]{escape(comparison_line(r))}[/]")
    console.print(_rows(list(_comparison_rows(r))))
    for reason in r.left_out:
        console.print(f"  left out: {escape(reason)}")
    if r.samples_file:
        console.print(f"  raw samples: {escape(r.samples_file)}", soft_wrap=True)


def _comparison_rows(r: ComparisonRecord) -> Iterator[Row]:
    if r.unit == "instructions":
        for label, count in (("reference", r.reference_instructions), ("candidate", r.candidate_instructions)):
            yield Row(label=label, value=f"{count or 0:,} instructions", mode="emulated, exact")
    else:
        for label, ms, path in (
            ("reference", r.reference_ms, r.reference),
            ("candidate", r.candidate_ms, r.candidate),
        ):
            yield Row(label=label, value=_ms(ms) if ms is not None else "-", mode=f"{r.mode}, median, {path}")
    if r.ratio:
        exact = r.ratio.low == r.ratio.high
        interval = "" if exact else f" [{r.ratio.low:.3f}, {r.ratio.high:.3f}]"
        how = r.mode if exact else f"{r.mode}, {r.groups} groups of blocks in {r.launches} processes"
        yield Row(label="candidate / reference", value=f"{r.ratio.ratio:.3f}{interval}", mode=how)
    if r.control:
        value = f"{r.control.ratio:.3f} [{r.control.low:.3f}, {r.control.high:.3f}]"
        yield Row(label="reference / itself", value=value, mode="control: later over earlier block")
