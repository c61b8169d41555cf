"""What `edgekit diagnose` shows: the ladder, the layers worst first, fixes with their measured effect."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

_MOST_LAYERS = 10


def show(answer: Mapping[str, Any]) -> None:
    """Write a diagnosis for people on stdout."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(
        f"\n[bold]{answer['recipe']} for {answer['target']}[/] ({answer['runtime']}), metric {answer['metric']}"
    )
    console.print(_ladder(answer))
    culprit = answer["culprit"]
    console.print(f"  culprit: [bold]{culprit or 'none: no rung loses what these samples could show'}[/]\n")
    console.print(_layers(answer))
    cost = answer["cost"]
    # ExecuTorch's layers are measured at their own outputs, where no sample is known to be worse than others.
    which = "first samples" if answer["runtime"] == "executorch" else "samples that quantization hurts most"
    console.print(
        f"  each on the {cost['layer_samples']} {which}: {cost['layer_runs']} runs of the network, "
        f"{cost['forward_passes']:g} passes over the data\n"
    )
    console.print(_fixes(answer))
    for f in answer["findings"]:
        console.print(
            f"  {f['severity']} {f['rule']} {f['message']}" + (f" Fix: {f['fix']}" if f["fix"] else ""), markup=False
        )


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _number(value: float | None, form: str = ".4g") -> str:
    return "" if value is None else format(value, form)


def _ladder(answer: Mapping[str, Any]) -> Any:
    table = _table("rung", answer["metric"], "drop", "95 %", "dB", "")
    for r in answer["ladder"]:
        interval = "" if r["drop_low"] is None else f"[{r['drop_low']:.4f}, {r['drop_high']:.4f}]"
        mark = "loses" if r["loses"] else ""
        table.add_row(
            r["name"],
            _number(r["metric"]),
            _number(r["drop"], ".4f"),
            interval.replace("[", "\\["),
            f"{r['snr_db']:.1f}",
            mark,
        )
    return table


def _layers(answer: Mapping[str, Any]) -> Any:
    from rich.markup import escape

    own = any(r["input_db"] is not None for r in answer["layers"])
    values = "input dB" if own else "output dB"
    table = _table("layer", "operator", "alone dB", "weights dB", values, "range", "cut off", "peak/rms", "uneven with")
    for r in answer["layers"][:_MOST_LAYERS]:
        span = "" if r["low"] is None else f"{r['low']:.3g} to {r['high']:.3g}"
        table.add_row(
            escape(r["output"]),
            r["operator"],
            f"{r['snr_db']:.1f}",
            _number(r["weights_db"], ".1f"),
            _number(r["input_db"] if own else r["output_db"], ".1f"),
            span,
            _number(r["saturated"], ".2%"),
            _number(r["peak_to_rms"], ".3g"),
            escape(r["unbalanced_with"] or ""),
        )
    return table


def _fixes(answer: Mapping[str, Any]) -> Any:
    from rich.markup import escape

    table = _table("fix", "recipe", "drop", "before", "dB", "before", "operators float")
    for f in sorted(answer["fixes"], key=lambda f: (f["failure"] is not None, -f["snr_db"])):
        if f["failure"]:
            table.add_row(escape(f["fix"]), f["recipe"], "failed", "", "", "", "")
            continue
        table.add_row(
            escape(f["fix"]),
            f["recipe"],
            f"{f['drop']:.4f}",
            f"{f['drop_before']:.4f}",
            f"{f['snr_db']:.1f}",
            f"{f['snr_db_before']:.1f}",
            str(f["operators_float"]),
        )
    return table
