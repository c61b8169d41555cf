"""The report as one HTML file that opens offline: a summary and plots per artifact, a table where there are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edge import codec
from edge.artifact import Accuracy, Artifact, Manifest, what_ran
from edge.report import comparison, plots, summary
from edge.report.plots import Bar, Cell, Point

_MOST_LAYERS = 20

_STYLE = """
:root { --ink: #1b1f24; --paper: #ffffff; --soft: #5b6570; --rule: #d5dae0; --a: #1f6feb; --b: #b35900; --bad: #b3261e;
  --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14171b; --soft: #a3adb8; --rule: #3a4048;
  --a: #6ea8ff; --b: #ffab5c; --bad: #ff8a80; --good: #6fdd8b; } }
* { box-sizing: border-box } body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif } h1 { font-size: 1.4rem } h2 { font-size: 1.15rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } th, td { text-align: left;
  padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; overflow-wrap: anywhere }
th { font-weight: 600 } .wide { overflow-x: auto } .mode, figcaption small { color: var(--soft) }
.verdict { font-weight: 700 } .pass { color: var(--good) } .fail { color: var(--bad) } .unchecked { color: var(--b) }
figure { margin: 1.5rem 0; break-inside: avoid } figcaption { font-weight: 600; margin-bottom: .3rem }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: var(--ink) }
.axis { stroke: var(--soft); fill: none } .line { stroke: var(--a); stroke-width: 2; fill: none }
.mark { stroke: var(--b); stroke-dasharray: 4 3; fill: none } .whisker { stroke: var(--ink); fill: none }
.bar { fill: var(--a) } .bar.loses { fill: var(--b) } .point { fill: var(--a) } .point.chosen { fill: var(--b) }
.point.front { stroke: var(--ink); stroke-width: 1.5 } .cell { fill: var(--a) }
.cell.cpu { fill: var(--paper); stroke: var(--b); stroke-width: 2 } details { color: var(--soft) }
summary { cursor: pointer } .error { color: var(--bad) } .warning { color: var(--b) }
@media print { body { margin: 0; max-width: none; color: #000; background: #fff } details { display: none } }
"""


def render(artifacts: Sequence[Artifact]) -> str:
    """Return the page."""
    names = ", ".join(dict.fromkeys(a.manifest.name for a in artifacts))
    title = f"edgekit report: {names}"
    body = [f"<h1>{escape(title)}</h1>"]
    if len(artifacts) > 1:
        body.append(_comparison(artifacts))
    body += [_artifact(a) for a in artifacts]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Nothing is loaded and nothing runs, whatever a model's names hold.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _comparison(artifacts: Sequence[Artifact]) -> str:
    table = _table(comparison.COLUMNS, [comparison.cells(comparison.record(a)) for a in artifacts])
    notes = "".join(f"<li>{escape(n)}</li>" for n in comparison.notes(artifacts))
    return (
        f'<section><h2>Side by side</h2><div class="wide">{table}</div>{f"<ul>{notes}</ul>" if notes else ""}</section>'
    )


def _artifact(artifact: Artifact) -> str:
    m = artifact.manifest
    reasons = "".join(f"<li>{escape(r)}</li>" for r in m.reasons)
    rows = [(r.label, r.value, r.mode) for r in summary.rows(m)]
    parts = [
        f'<section><h2><span class="verdict {m.verdict}">{escape(summary.headline(m))}</span></h2>',
        f"<ul>{reasons}</ul>" if reasons else "",
        _table(("", "value", "mode"), rows),
        *_figures(artifact),
        _findings(m),
        _made_with(m),
        "</section>",
    ]
    return "\n".join(p for p in parts if p)


def _figures(artifact: Artifact) -> list[str]:
    m = artifact.manifest
    found = []
    if m.metrics.accuracy:
        found.append(_ladder(m.metrics.accuracy))
    found += _signal_to_noise(m)
    found += _latency(m.metrics.latency)
    found += _placement(artifact)
    found += _memory(m)
    found += _search(m.details.get("search"))
    found += _layers(m.details.get("search"))
    return found


def _figure(title: str, mode: str, svg: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a figure with its numbers as a table, for those who do not see it."""
    data = f"<details><summary>Numbers</summary>{_table(columns, rows)}</details>"
    small = f" <small>{escape(mode)}</small>" if mode else ""
    return f"<figure><figcaption>{escape(title)}{small}</figcaption>{svg}{data}</figure>"


def _ladder(a: Accuracy) -> str:
    """From the float source over the carrier to the program, whose interval is that of the paired difference."""
    last = Bar(
        name="quantized",
        value=a.quantized,
        text=summary.score(a.metric, a.quantized),
        low=None if a.drop_high is None else a.float - a.drop_high,
        high=None if a.drop_low is None else a.float - a.drop_low,
        kind="loses" if a.drop_low is not None and a.drop_low > 0 else "plain",
    )
    steps = [
        Bar(name=name, value=value, text=summary.score(a.metric, value))
        for name, value in (("float source", a.float), ("float carrier", a.carrier))
    ]
    title = f"Accuracy ladder ({a.metric}, {a.samples} samples)"
    rows = [(b.name, b.text, "" if b.low is None else f"[{b.low:.5g}, {b.high:.5g}]") for b in (*steps, last)]
    finite = all(abs(b.value) < float("inf") for b in (*steps, last))
    svg = plots.bars(title, [*steps, last]) if finite else ""
    return _figure(title, f"{a.mode}, {what_ran(a.kernels)}", svg, ("", a.metric, "95 % interval"), rows)


def _signal_to_noise(m: Manifest) -> list[str]:
    noisy = [p for p in m.metrics.parity if p.snr_db is not None]
    if not noisy:
        return []
    bars = [Bar(name=p.output, value=max(p.snr_db or 0.0, 0.0), text=f"{p.snr_db:.1f} dB") for p in noisy]
    rows = [(p.output, f"{p.snr_db:.2f}", p.cosine, f"{p.max_abs:.4g}") for p in noisy]
    title, mode = "Signal-to-noise per output", m.metrics.accuracy.mode if m.metrics.accuracy else "emulated"
    columns = ("output", "dB", "cosine", "largest difference")
    return [_figure(title, f"{mode}, against the float source", plots.bars(title, bars, unit="dB"), columns, rows)]


def _latency(latency: Mapping[str, Any] | None) -> list[str]:
    quantiles = (latency or {}).get("quantiles_ms") or []
    if latency is None or len(quantiles) < 2:
        return []
    points = [(value, i / (len(quantiles) - 1)) for i, value in enumerate(quantiles)]
    # The last per cent may be far out: a single disturbed run would press all others to a line.
    shown = [p for p in points if p[1] <= 0.99] or points
    marks = [
        Point(x=float(latency[key]), y=0.0, name=f"{name} {latency[key]:.4g} ms")
        for name, key in (("median", "median_ms"), ("p90", "p90_ms"), ("p95", "p95_ms"))
        if isinstance(latency.get(key), (int, float))
    ]
    title = "Latency distribution: share of runs that took at most as long"
    svg = plots.line(title, shown, ("ms", "share of runs"), marks=marks)
    ran = what_ran(latency["kernels"])
    mode = f"{latency['mode']}, {latency['samples']} runs, {latency['threads']} thread(s), {ran}"
    rows = [(f"{share:.0%}", f"{value:.5g}") for value, share in points[:: max(1, len(points) // 20)]]
    return [_figure(title, mode, svg, ("share of runs", "ms"), rows)]


def _placement(artifact: Artifact) -> list[str]:
    record = artifact.manifest.file("placement")
    if record is None:
        return []
    data = codec.loads((artifact.path / record.path).read_text(encoding="utf-8"))
    operators = data["operators"]
    cells = [
        Cell(
            kind="cpu" if o["place"] == "cpu" else "accelerator",
            title=f"{o['index']}: {o['op']} on {o['place']}" + (f": {o['reason']}" if o.get("reason") else ""),
        )
        for o in operators
    ]
    away = [o for o in operators if o["place"] == "cpu"]
    title = f"Placement of {len(operators)} operators: filled on the Edge TPU, framed on the CPU ({len(away)})"
    rows = [(o["index"], o["op"], o["place"], o.get("reason") or "") for o in away] or [
        ("", "all on the Edge TPU", "", "")
    ]
    return [_figure(title, data["mode"], plots.strip(title, cells), ("", "operator", "place", "reason"), rows)]


def _memory(m: Manifest) -> list[str]:
    live = m.details.get("live_bytes")
    if not live or len(live) < 2:
        return []
    title = "Memory of tensors over one inference"
    points = [(float(i), value / 1024) for i, value in enumerate(live)]
    svg = plots.line(title, [*points, (float(len(live)), points[-1][1])], ("operator", "KiB"), steps=True)
    top = sorted(enumerate(live), key=lambda pair: -pair[1])[:_MOST_LAYERS]
    return [_figure(title, "predicted", svg, ("operator", "bytes"), top)]


def _search(search: Mapping[str, Any] | None) -> list[str]:
    tried = [c for c in (search or {}).get("candidates", ()) if not c.get("failure")]
    cost = next((k for k in ("latency_ms", "host_ms", "size_bytes") if all(c.get(k) for c in tried)), None)
    if search is None or len(tried) < 2 or cost is None:
        return []
    points = [
        Point(
            x=float(c[cost]),
            y=100 * float(c["drop"]),
            name=str(c["recipe"]),
            kind="chosen" if c["chosen"] else "front" if c["pareto"] else "plain",
        )
        for c in tried
    ]
    title = "Search: what each candidate loses and costs (diamond: chosen; ring: none is better in both)"
    rows = [(c["recipe"], f"{100 * c['drop']:+.3f}", c[cost], "yes" if c["pareto"] else "") for c in tried]
    unit = {"latency_ms": "predicted ms", "host_ms": "ms on the host", "size_bytes": "bytes"}[cost]
    svg = plots.scatter(title, points, (unit, f"drop of {search['metric']}, hundredths"))
    return [_figure(title, "emulated", svg, ("recipe", "drop", cost, "Pareto"), rows)]


def _layers(search: Mapping[str, Any] | None) -> list[str]:
    layers = []
    for layer in (search or {}).get("layers", ()):
        worst = [x for x in (layer.get("weights_db"), layer.get("output_db")) if isinstance(x, (int, float))]
        if worst:
            layers.append((f"{layer['operator']} {layer['output']}", min(worst)))
    if not layers:
        return []
    bars = [Bar(name=name, value=max(db, 0.0), text=f"{db:.1f} dB") for name, db in layers[:_MOST_LAYERS]]
    title = "Signal-to-noise with only this layer quantized, worst first"
    rows = [(name, f"{db:.2f}") for name, db in layers]
    return [_figure(title, "emulated", plots.bars(title, bars, unit="dB"), ("layer", "dB"), rows)]


def _findings(m: Manifest) -> str:
    found = summary.counted_findings(m)
    if not found:
        return ""
    items = "".join(
        f'<li><strong class="{escape(kind.split()[0])}">{escape(kind)}</strong> {escape(text)}</li>'
        for kind, text in found
    )
    return f"<h3>Findings</h3><ul>{items}</ul>"


def _made_with(m: Manifest) -> str:
    rows = [("edgekit", m.edgekit), *m.tools.items()]
    rows += [(f.path, f"{f.bytes} bytes, sha256 {f.sha256}") for f in m.files if f.role != "report"]
    return f"<details><summary>Made with, and files</summary>{_table(('', ''), rows)}</details>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
