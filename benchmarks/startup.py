"""What the start of `edgekit --help` costs over bare Python: medians of interleaved runs.

python benchmarks/startup.py [--runs 21]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


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
        "edgekit --help": [sys.executable, "-c", "from edge.cli import main; main(['--help'])"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(milliseconds(command))
    bare, ours = (statistics.median(values) for values in times.values())
    for name, values in times.items():
        print(f"{name:18}{statistics.median(values):8.0f} ms (median of {runs}, least {min(values):.0f})")
    print(f"edgekit's own     {ours - bare:8.0f} ms; at most 100 is allowed")


if __name__ == "__main__":
    main()
