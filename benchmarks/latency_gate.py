"""False alarms and power of the regression gate on this machine: `edgekit compare` on equal and on unequal programs.

    python benchmarks/latency_gate.py --runs 100

Equal: a program against itself. Unequal: 23 convolutions of one shape against 21, 9.5 % more work; what that is in
time is taken from all comparisons together. Both are artifacts of `edgekit build`, run on the real path (the agent in
processes of its own), while whatever else runs on the machine goes on. Writes one line of JSON per comparison to
`--output` and prints the counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edge import profiling
from edge.report.timing import ComparisonRecord

LAYERS = {"base": 21, "tenth more": 23}
CHANNELS, SIDE = 24, 32
_MAKE = """
import sys, keras
count, channels, side, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
given = made = keras.Input((side, side, channels), batch_size=1)
for _ in range(count):
    made = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")(made)
keras.Model(given, made).save(path)
"""


def built(folder: Path, name: str, layers: int) -> Path:
    """Return an artifact of so many equal convolutions, float32."""
    source, made = folder / f"{name.replace(' ', '-')}.keras", folder / f"build-{layers}"
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([sys.executable, "-c", _MAKE, *map(str, (layers, CHANNELS, SIDE, source))], check=True, env=quiet)
    command = ["build", str(source), "--target", "linux", "--recipe", "float32", "--latency", "none", "-q"]
    subprocess.run(
        [sys.executable, "-m", "edge", *command, "-o", str(made)], check=True, stdout=subprocess.DEVNULL, env=quiet
    )
    return next(made.glob("*/manifest.json"), made / "manifest.json").parent


def compared(reference: Path, candidate: Path) -> tuple[ComparisonRecord, float]:
    """Compare once; return the record and the seconds it took."""
    started = time.monotonic()
    record = profiling.compare(reference, candidate, profiling.Request(output=None))
    return record, time.monotonic() - started


def main() -> None:
    """Run both series, alternating."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("latency_gate.jsonl"))
    parser.add_argument("--artifacts", type=Path, nargs=2, help="Use these, a base and a slower one, and build none.")
    options = parser.parse_args()
    found: dict[str, list[ComparisonRecord]] = {"equal": [], "slower": []}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-gate-") as folder, options.output.open("a") as log:
        made = options.artifacts or [built(Path(folder), name, layers) for name, layers in LAYERS.items()]
        base, slower = made
        for number in range(options.runs):
            for series, candidate in (("equal", base), ("slower", slower)):
                record, took = compared(base, candidate)
                found[series].append(record)
                seconds.append(took)
                line = {"run": number, "series": series, "outcome": record.outcome, "seconds": round(took, 1)}
                ratio = record.ratio
                line |= {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high} if ratio else {}
                line |= {"launches": record.launches, "load": os.getloadavg()[0]}
                log.write(json.dumps(line) + "\n")
                log.flush()
    for series, records in found.items():
        counts = {o: sum(r.outcome == o for r in records) for o in sorted({r.outcome for r in records})}
        ratios = [r.ratio.ratio for r in records if r.ratio]
        spread = f"ratios {min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f}"
        launches = statistics.mean(r.launches for r in records)
        print(f"{series}: {len(records)} comparisons, {counts}, {spread}, {launches:.1f} processes on average")
    print(f"seconds a comparison: median {statistics.median(seconds):.1f}, at most {max(seconds):.1f}")


if __name__ == "__main__":
    main()
