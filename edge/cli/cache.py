"""`edgekit cache`: show and clear the stored results of builds."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import typer

from edge.cli import options

if TYPE_CHECKING:
    from edge.cache import Entry

_EXAMPLES = """Examples:

  edgekit cache show

  edgekit cache clear
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Show or clear the stored results of builds.", epilog=_EXAMPLES)
    group.command("show", epilog=_EXAMPLES)(show)
    group.command("clear", epilog=_EXAMPLES)(clear)
    app.add_typer(group, name="cache")


def show(json_: options.Json = False) -> int:
    """Show where results are stored, how many, how large, and the limit."""
    from edge import cache

    store, limit = cache.store(), cache.limit_bytes()
    entries = store.entries()
    stages = {e.stage.rpartition(":")[2]: [x for x in entries if x.stage == e.stage] for e in entries}
    if json_:
        record = {
            "folder": str(store.folder),
            "entries": len(entries),
            "bytes": _total(entries),
            "limit_bytes": limit,
            "stages": {name: {"entries": len(es), "bytes": _total(es)} for name, es in stages.items()},
        }
        sys.stdout.write(json.dumps(record) + "\n")
        return 0
    from edge.report.summary import size

    lines = [f"{store.folder}: {len(entries)} results, {size(_total(entries))} of {size(limit)}"]
    lines += [f"  {name:<20} {len(es):>5} {size(_total(es)):>10}" for name, es in sorted(stages.items())]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def clear(json_: options.Json = False) -> int:
    """Remove all stored results; the next build computes everything anew."""
    from edge import cache

    store = cache.store()
    total, removed = _total(store.entries()), store.evict(0, wait=True)
    if json_:
        sys.stdout.write(json.dumps({"folder": str(store.folder), "removed": removed, "bytes": total}) + "\n")
        return 0
    from edge.report.summary import size

    sys.stdout.write(f"{removed} results removed, {size(total)}.\n")
    return 0


def _total(entries: list[Entry]) -> int:
    return sum(e.bytes for e in entries)
