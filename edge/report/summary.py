"""The ten-second summary of an artifact: rows of label, value and mode, shared by console and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.artifact import Accuracy, Manifest, what_ran

_PERCENT_METRICS = ("top1", "top5", "top", "agreement", "miou", "auc", "ap")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a report; `mode` is empty for what is no measurement (a size, a count)."""

    label: str
    value: str
    mode: str = ""


def size(bytes_: float) -> str:
    """Return a size for people: `812 B`, `77.6 kB`, `3.1 MB`."""
    value = float(bytes_)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _is_share(metric: str) -> bool:
    return metric.lower().startswith(_PERCENT_METRICS)


def score(metric: str, value: float) -> str:
    """Return a metric's value for people: shares as per cent, others with four digits."""
    return f"{100 * value:.2f} %" if _is_share(metric) else f"{value:.4g}"


def difference(metric: str, value: float) -> str:
    """Return a difference of a metric for people: points for shares."""
    return f"{100 * value:+.2f}" if _is_share(metric) else f"{value:+.3g}"


def _accuracy_rows(a: Accuracy) -> list[Row]:
    mode = f"{a.mode}, {what_ran(a.kernels)}"
    if a.metric.startswith("snr"):
        value = f"{a.quantized:.1f} dB, mean of {a.samples} unlabelled samples"
        return [Row(label="signal-to-noise, worst output", value=value, mode=mode)]
    unit = " points" if _is_share(a.metric) else ""
    interval = "no interval: too few samples"
    if a.drop_low is not None and a.drop_high is not None:
        interval = f"95 % interval [{difference(a.metric, a.drop_low)}, {difference(a.metric, a.drop_high)}]"
    drop = f"{difference(a.metric, a.drop)}{unit}, {interval}, {a.samples} samples"
    return [
        Row(label=f"{a.metric} float source", value=score(a.metric, a.float), mode="measured"),
        Row(label=f"{a.metric} float carrier", value=score(a.metric, a.carrier), mode=a.mode),
        Row(label=f"{a.metric} quantized", value=score(a.metric, a.quantized), mode=mode),
        Row(label="drop (float - quantized)", value=drop, mode=mode),
    ]


def _latency_rows(latency: Mapping[str, Any]) -> list[Row]:
    def ms(key: str) -> str:
        value = latency.get(key)
        return f"{value:.3f} ms" if isinstance(value, (int, float)) else str(value or "-")

    mode = f"{latency['mode']} on the host, {what_ran(latency['kernels'])}, {latency['threads']} thread(s)"
    low, high = latency.get("median_low_ms"), latency.get("median_high_ms")
    interval = f" [{low:.3f}, {high:.3f}]" if isinstance(low, float) and isinstance(high, float) else ""
    return [
        Row(label="latency median (99 % interval)", value=ms("median_ms") + interval, mode=mode),
        Row(
            label="latency p90",
            value=ms("p90_ms"),
            mode=f"{latency['mode']}, {latency['samples']} runs, {_validity(latency)}",
        ),
    ]


def _board_rows(board: Mapping[str, Any] | None) -> list[Row]:
    if not board:
        return []
    facts = board.get("facts") or {}
    what = f"{board['device']}: {facts.get('model') or facts.get('machine') or 'unknown'}"
    mode = f"{board['mode']}, {board['runner']} runner" if board.get("runner") else ""
    rows = [Row(label="checked on", value=what, mode=mode), *_tool_rows(board.get("tool"))]
    counted = (board.get("instructions") or {}).get("total")
    if counted:
        rows.append(Row(label="instructions per inference", value=f"{counted:,}", mode="emulated, exact"))
    return rows


def _tool_rows(tool: Mapping[str, Any] | None) -> list[Row]:
    """Return what an Android program told of its own runs; no budget is judged by it."""
    if not tool:
        return []
    parts = [
        f"{key} {tool[f'{key}_ms']:.3f} ms" for key in ("mean", "median", "min") if tool.get(f"{key}_ms") is not None
    ]
    value = f"{', '.join(parts)}, {tool['runs']} runs"
    mode = f"measured, its own statistics, SHA-256 {tool['sha256'][:12]}"
    return [Row(label=f"latency by {tool['tool']}", value=value, mode=mode)]


def _delegation_rows(delegation: Mapping[str, Any] | None) -> list[Row]:
    if not delegation:
        return []
    value = f"{delegation['delegated_share']:.1%} of the operators in {delegation['subgraphs']} subgraph(s)"
    return [Row(label="delegated", value=value)]


def _validity(latency: Mapping[str, Any]) -> str:
    why = "; ".join(latency.get("reasons") or ())
    said = str(latency["verdict"]).replace("_", " ")
    return f"{said}: {why}" if why and said == "invalid" else said


def _predicted_rows(predicted: Mapping[str, Any]) -> list[Row]:
    return [
        Row(
            label=predicted_label(how),
            value=f"{p['value']:.2f} ms [{p['low']:.2f}, {p['high']:.2f}]",
            mode=predicted_mode(p),
        )
        for how, p in predicted.items()
    ]


def predicted_mode(interval: Mapping[str, Any]) -> str:
    """Return the mode of a predicted interval, with how sure it is where that is known."""
    return f"predicted, {interval['rate']:.0%} interval" if "rate" in interval else "predicted"


def predicted_label(how: str) -> str:
    """Return the label of a prediction: over a link (`usb3`), or with so many threads (`threads_4`)."""
    if how.startswith("threads_"):
        count = how.removeprefix("threads_")
        return f"latency on the board, {count} thread{'' if count == '1' else 's'}"
    return f"latency over {how}"


def _rounding_rows(rounding: Mapping[str, Any] | None) -> list[Row]:
    if not rounding:
        return []
    metric = rounding["metric"]
    value = f"{score(metric, rounding['worst'])} at worst, {score(metric, rounding['baseline'])} without"
    runs = f"{rounding['runs']} runs on {rounding['samples']} samples"
    how = f"{rounding['mode']}, {runs}, one step in {rounding['rate']:.0%}"
    return [Row(label=f"{metric} with disturbed rounding", value=value, mode=how)]


def _placement_rows(details: Mapping[str, Any]) -> list[Row]:
    placement = details.get("placement")
    if not placement:
        return []
    source = placement["mode"]
    rows = [
        *_rounding_rows(details.get("rounding")),
        Row(
            label="operators on the Edge TPU",
            value=f"{placement['mapped']} of {placement['operators']} in {placement['subgraphs']} subgraph(s)",
            mode=source,
        ),
        Row(
            label="parameters on chip / streamed",
            value=f"{size(placement['on_chip_bytes'])} / {size(placement['off_chip_bytes'])}",
            mode=source,
        ),
    ]
    return [*rows, Row(label="compiled", value=details.get("compiled", "no"))]


def rows(manifest: Manifest) -> list[Row]:
    """Return the lines of the summary, most important first."""
    program = manifest.file("program")
    carrier = manifest.file("carrier")
    found: list[Row] = []
    metrics = manifest.metrics
    if metrics.accuracy:
        found += _accuracy_rows(metrics.accuracy)
    else:
        found.append(Row(label="accuracy", value="not checked: no evaluation data"))
    found += [
        Row(
            label=f"signal-to-noise {p.output}",
            value="exact" if p.snr_db is None else f"{p.snr_db:.1f} dB",
            mode=f"{metrics.accuracy.mode if metrics.accuracy else 'emulated'}, against the float source",
        )
        for p in metrics.parity
    ]
    found += _placement_rows(manifest.details)
    found += _delegation_rows(manifest.details.get("delegation"))
    if metrics.predicted_latency:
        found += _predicted_rows(metrics.predicted_latency)
    elif note := manifest.details.get("latency_note"):
        found.append(Row(label="latency on the board", value=str(note)))
    if metrics.latency:
        found += _latency_rows(metrics.latency)
    found += _board_rows(manifest.details.get("board"))
    if program:
        of = f" (float {size(carrier.bytes)})" if carrier else ""
        found.append(Row(label="size", value=size(program.bytes) + of))
    return found


@dataclass(frozen=True, kw_only=True)
class SearchTable:
    """What a search tried, for people: a caption with its cost, column titles with their mode, cells, what failed."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def search_table(manifest: Manifest) -> SearchTable | None:
    """Return the candidates of a search in the order tried, None where there was none."""
    search = manifest.details.get("search")
    if not search or not search.get("candidates"):
        return None
    tried = [c for c in search["candidates"] if not c.get("failure")]
    metric = str(search["metric"])
    return SearchTable(
        caption=_search_cost(search),
        columns=(
            "recipe",
            f"{metric} (emulated)",
            "drop, 95 % interval",
            _search_latency(tried),
            "run on this host (emulated)",
            "size",
            "",
        ),
        rows=tuple(_search_row(metric, c) for c in tried),
        notes=tuple(f"{c['recipe']}: {c['failure']}" for c in search["candidates"] if c.get("failure")),
    )


def _search_cost(search: Mapping[str, Any]) -> str:
    count = len(search["candidates"])
    cost = [f"{count} candidate{'' if count == 1 else 's'}"]
    if "forward_passes" in search:
        count = search["selection_samples"]
        cost.append(
            f"{search['forward_passes']:g} forward passes over {count} samples that choose ({search['runs']} runs)"
        )
    if "float" in search:
        cost.append(f"{search['metric']} of float {score(search['metric'], search['float'])}")
    return f"search: {', '.join(cost)}"


def _search_latency(tried: Sequence[Mapping[str, Any]]) -> str:
    how = next((c["latency_how"] for c in tried if c.get("latency_how")), None)
    return f"{predicted_label(how)} (predicted)" if how else "latency on the target (predicted)"


def _search_row(metric: str, c: Mapping[str, Any]) -> tuple[str, ...]:
    drop = difference(metric, c["drop"])
    if c.get("drop_low") is not None and c.get("drop_high") is not None:
        drop += f" [{difference(metric, c['drop_low'])}, {difference(metric, c['drop_high'])}]"
    marks = [name for name in ("chosen", "pareto") if c.get(name)]
    return (
        str(c["recipe"]),
        "-" if c.get("value") is None else score(metric, c["value"]),
        drop,
        "-" if c.get("latency_ms") is None else f"{c['latency_ms']:.3g} ms",
        f"{c['host_ms']:.3g} ms" if c.get("host_ms") else "-",
        size(c["size_bytes"]),
        ", ".join(marks).replace("pareto", "Pareto"),
    )


def headline(manifest: Manifest) -> str:
    """Return one line: what, for what, how, and the verdict."""
    verdict = {"pass": "PASS", "fail": "FAIL", "unchecked": "BUILT, NOT CHECKED"}[manifest.verdict]
    return (
        f"{manifest.name} for {manifest.target}: {verdict} "
        f"({manifest.runtime}, {manifest.recipe_name}, quantized by {manifest.quantizer})"
    )


def counted_findings(manifest: Manifest) -> Sequence[tuple[str, str]]:
    """Return (severity and rule, text) of each finding, errors first."""
    order = {"error": 0, "warning": 1, "info": 2}
    ordered = sorted(manifest.findings, key=lambda f: order[f.severity])
    return [(f"{f.severity} {f.rule}", f.text) for f in ordered]
