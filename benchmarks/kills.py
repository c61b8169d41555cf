"""kill -9 at random moments of a real build: what is left, and whether the next run is right.

python benchmarks/kills.py [--kills 200] [--seed 0] [--folder DIR]

Half of the kills begin with an empty cache, half with no artifact in the output folder; some meet a stage's process
instead of the build's own. A build that was done before its moment came is checked too, but not counted. After each:
no process is left; what stands in the output folder is the artifact, whole, or nothing; one that was there before
still is. Then the next run ends well with the same bytes of program, carrier and golden vectors; nothing else is left
beside it or among temporary files; the cache holds what was computed. The first that fails ends the script with exit
code 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.killing import Bench, kills


def main() -> int:
    """Kill and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-", dir=given.folder) as folder:
        bench = Bench(Path(folder) / "bench")
        print(f"a build without cache takes {bench.seconds:.1f} s here", flush=True)
        started, seen = time.monotonic(), Counter[str]()
        try:
            for number, kill in enumerate(kills(bench, given.kills, given.seed), 1):
                seen.update([f"met the {kill.victim}", f"artifact after the kill: {kill.artifact}"])
                print(f"{number:4} {kill.after_s:6.2f} s {kill.victim:6} {kill.artifact}", flush=True)
        except AssertionError as error:
            print(f"kill {number + 1 if seen else 1} of seed {given.seed}: {error}")
            return 1
        print(f"{given.kills} kills, all well, in {time.monotonic() - started:.0f} s: {dict(seen)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
