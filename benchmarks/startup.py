"""What the start of commands costs over bare Python: medians of interleaved runs.

python benchmarks/startup.py [--runs 21]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = ("--help", "build --help", "--version", "targets", "sources", "cache show", "devices --no-probe")


def milliseconds(command: list[str]) -> float:
    """Return the wall time of one run."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=21)
    runs = parser.parse_args().runs
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        **{f"edgekit {c}": [sys.executable, "-c", f"from edge.cli import main; main({c.split()})"] for c in COMMANDS},
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(milliseconds(command))
    bare = statistics.median(times["python -c pass"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:26}{median:8.0f} ms, {median - bare:+5.0f} over bare Python (median of {runs})")
    print("at most 100 ms over bare Python are allowed for --help, 500 for commands that list")


if __name__ == "__main__":
    main()
