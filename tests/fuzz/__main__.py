"""The whole budget: `python -m tests.fuzz [--cases 10000] [--seed 0] [--reader NAME]... [--isolated-cases 40]`.

Exit code 1 where a case did what it must not. `--seconds S` ends a reader's turn after that time, `--markdown FILE`
writes the table of the documentation. `--case N` with one reader runs that case alone and shows its traceback.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import harness
from tests.fuzz.readers import READERS


def main() -> int:
    """Run and print one line per reader, and each finding."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--isolated-cases", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=sorted(READERS))
    parser.add_argument("--case", type=int)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    chosen = [READERS[name] for name in given.reader or READERS]
    if given.case is not None:
        return _alone(chosen[0], given.seed, given.case)
    results = []
    print(f"{'reader':28}{'cases':>8}{'refused':>9}{'per second':>12}  findings", flush=True)
    for reader in chosen:
        cases = given.isolated_cases if reader.isolated else given.cases
        found = harness.run(reader, cases, given.seed, given.seconds)
        rate = found.cases / found.seconds if found.seconds else 0.0
        print(f"{found.reader:28}{found.cases:8}{found.refused:9}{rate:12.1f}  {len(found.findings) or 'none'}")
        for finding in found.findings:
            print(f"    case {finding.case}: {finding.what}  {finding.where}", flush=True)
        results.append(found)
        sys.stdout.flush()
    if given.markdown:
        given.markdown.write_text(_table(results, given.seed), encoding="utf-8")
    return 1 if any(r.findings for r in results) else 0


def _table(results: Sequence[harness.Result], seed: int) -> str:
    """Return the results in Markdown: date, host, and a line per reader."""
    host = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    total = f"{sum(r.cases for r in results):,} cases, {sum(len(r.findings) for r in results)} findings"
    lines = [f"{time.strftime('%Y-%m-%d', time.gmtime())}, seed {seed}, {host}: {total}.", ""]
    lines += ["| reader | cases | refused | findings |", "|---|---|---|---|"]
    lines += [f"| {r.reader} | {r.cases:,} | {r.refused:,} | {len(r.findings)} |" for r in results]
    return "\n".join(lines) + "\n"


def _alone(reader: harness.Reader, seed: int, case: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(harness.case_bytes(reader, reader.corpus(), seed, case))
        print(reader.read(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
