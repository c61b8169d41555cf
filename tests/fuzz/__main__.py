"""The whole budget: `python -m tests.fuzz [--cases 10000] [--seed 0] [--reader NAME]... [--isolated-cases 40]`.

Exit code 1 where a case did what it must not. `--case N` with one reader runs that case alone and shows its traceback.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
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
    given = parser.parse_args()
    chosen = [READERS[name] for name in given.reader or READERS]
    if given.case is not None:
        return _alone(chosen[0], given.seed, given.case)
    wrong = 0
    print(f"{'reader':28}{'cases':>8}{'refused':>9}{'per second':>12}  findings", flush=True)
    for reader in chosen:
        cases = given.isolated_cases if reader.isolated else given.cases
        found = harness.run(reader, cases, given.seed)
        rate = found.cases / found.seconds if found.seconds else 0.0
        print(f"{found.reader:28}{found.cases:8}{found.refused:9}{rate:12.1f}  {len(found.findings) or 'none'}")
        for finding in found.findings:
            print(f"    case {finding.case}: {finding.what}  {finding.where}", flush=True)
        wrong += len(found.findings)
    return 1 if wrong else 0


def _alone(reader: harness.Reader, seed: int, case: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / reader.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(harness.case_bytes(reader, reader.corpus(), seed, case))
        print(reader.read(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
