"""The whole budget: `python -m tests.fuzz [--cases 10000] [--seed 0] [--reader NAME]... [--isolated-cases 40]`.

Exit code 1 where a case did what it must not. `--seconds S` ends a reader's turn after that time, `--jobs N` runs N
readers at once. `--json FILE` keeps the results by reader: those of the readers that run replace what the file has.
`--page FILE` writes the table of all that are kept, else of this run, into a page of the documentation. `--case N` with
one reader runs that case alone and shows its traceback.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.fuzz import harness
from tests.fuzz.readers import READERS

_BUDGET = 10_000
_BEGIN, _END = "<!-- fuzz -->\n", "<!-- end of fuzz -->"


def main() -> int:
    """Run and print one line per reader, and each finding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=_BUDGET)
    parser.add_argument("--isolated-cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=sorted(READERS))
    parser.add_argument("--case", type=int)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    names = given.reader or list(READERS)
    if given.case is not None:
        return _alone(READERS[names[0]], given.seed, given.case)
    kept: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.is_file() else {}
    failed = False
    print(f"{'reader':28}{'cases':>8}{'refused':>9}{'per second':>12}  findings", flush=True)
    for found in _results(names, given):
        failed |= bool(found.findings)
        _print(found)
        kept[found.reader] = {**asdict(found), "seed": given.seed, "date": time.strftime("%Y-%m-%d", time.gmtime())}
        if given.json:
            given.json.write_text(json.dumps(kept, indent=1))
    if given.page:
        _write(given.page, kept)
    return 1 if failed else 0


def _results(names: Sequence[str], given: argparse.Namespace) -> Iterator[harness.Result]:
    one = partial(_run, given=given)
    if given.jobs == 1:
        yield from map(one, names)
        return
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("fork")) as pool:
        yield from pool.map(one, names)


def _run(name: str, given: argparse.Namespace) -> harness.Result:
    cases = given.isolated_cases if READERS[name].isolated else given.cases
    return harness.run(READERS[name], cases, given.seed, given.seconds)


def _print(found: harness.Result) -> None:
    rate = found.cases / found.seconds if found.seconds else 0.0
    print(f"{found.reader:28}{found.cases:8}{found.refused:9}{rate:12.1f}  {len(found.findings) or 'none'}")
    for finding in found.findings:
        print(f"    case {finding.case}: {finding.what}  {finding.where}")
    sys.stdout.flush()


def _write(page: Path, kept: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the table between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise SystemExit(f"{page} has no {_BEGIN.strip()} ... {_END}")
    page.write_text(f"{before}{_BEGIN}\n{table(kept)}\n{end}{after}", encoding="utf-8")


def table(kept: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results in Markdown: dates, seeds, host, sums, and two readers per line."""
    results = [kept[name] for name in READERS if name in kept]
    dates, seeds = sorted({r["date"] for r in results}), sorted({r["seed"] for r in results})
    host = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    total, findings = sum(r["cases"] for r in results), sum(len(r["findings"]) for r in results)
    lines = [
        f"{' and '.join(dates)}, seed {', '.join(map(str, seeds))}, {host}:",
        f"{total:,} cases of {len(results)} readers, {findings} findings. {_reach(results)}",
        "",
        "| reader | cases | refused | reader | cases | refused |",
        "|---|---|---|---|---|---|",
    ]
    cells = [f"| {r['reader']} | {r['cases']:,} | {r['refused']:,} " for r in results]
    half = -(-len(cells) // 2)
    right = [*cells[half:], *["| | | "] * (2 * half - len(cells))]
    return "\n".join([*lines, *(f"{a}{b}|" for a, b in zip(cells[:half], right, strict=True))]) + "\n"


def _reach(results: Sequence[Mapping[str, Any]]) -> str:
    own = [r["cases"] for r in results if not READERS[r["reader"]].isolated]
    full = sum(cases >= _BUDGET for cases in own)
    rest = f", the others to {min(own):,} at least" if full < len(own) else ""
    return f"{full} of the {len(own)} readers that need no process per case came to {_BUDGET:,}{rest}."


def _alone(reader: harness.Reader, seed: int, case: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(harness.case_bytes(reader, reader.corpus(), seed, case))
        print(reader.read(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
