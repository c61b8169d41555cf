"""Median latency of `edgekit profile` beside LiteRT's own benchmark tool, taking turns, same threads, same delegate.

    python benchmarks/latency_tool.py ARTIFACT... --rounds 15

The tool is the one in the ai-edge-litert wheel (`ai_edge_litert/tools/benchmark_litert_model.py`: the Python form of
the C++ tool, which no package index carries), with XNNPACK on one thread. It times the run alone, so it is compared to
edgekit's time of the run alone; the latency that edgekit reports has copying in and reading back in it too. A second
reference is the same run through LiteRT's C API, without any Python (edgekit's native runner). One turn of each makes a
round. Printed are the ratio to the tool as the median over the rounds, with its distribution-free interval, and ratios
of the lowest medians, for on a machine that others use too, disturbances only ever add.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from edge import artifact, profiling
from edge.measure.statistics import median_interval

# The tool, as it is, but for its median, which it rounds to 0.01 ms when it writes it: here it is printed in full.
_TOOL = """
import statistics
from ai_edge_litert.tools import benchmark_litert_model as tool
plain = statistics.median
def told(values):
    found = plain(values)
    print("MEDIAN", repr(found))
    return found
tool.statistics.median = told
tool.main()
"""
RUNS = 2000
LONGEST_S = 3.0
ALLOWED = 0.03


def tool_ms(program: Path, runs: int, threads: int) -> float:
    """Return the median of LiteRT's tool in ms."""
    command = [sys.executable, "-c", _TOOL, f"--model={program}"]
    command += [f"--num_runs={runs}", "--warmup_runs=50", f"--num_threads={threads}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("MEDIAN"))
    return float(line.split()[1])


def own_ms(path: Path, threads: int, runner: str = "python") -> tuple[float, float]:
    """Return edgekit's medians in ms: of the run alone, and with inputs copied in and outputs read back."""
    request = profiling.Request(profile="smoke", threads=threads, runner=runner, output=None)
    record = profiling.profile(path, request)
    assert record.latency is not None and record.spans is not None
    return record.spans["run_ms"], float(record.latency["median_ms"])


def main() -> None:
    """Compare for each artifact."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for path in options.artifacts:
        measure(path, options.rounds, options.threads)


def measure(path: Path, rounds: int, threads: int) -> None:
    """Compare for one artifact and print a line."""
    program = artifact.read(path).program
    runs = max(30, min(RUNS, round(1e3 * LONGEST_S / tool_ms(program, 30, threads))))
    pairs = []
    for number in range(rounds):
        if number % 2:
            own, tool = own_ms(path, threads), tool_ms(program, runs, threads)
        else:
            tool, own = tool_ms(program, runs, threads), own_ms(path, threads)
        pairs.append((tool, *own, own_ms(path, threads, "native")[0]))
    times = np.array(pairs)
    ratios = times[:, 1] / times[:, 0]
    interval = median_interval(ratios, confidence=0.95)
    spread = f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else "(too few rounds for an interval)"
    lowest = times.min(axis=0)
    best = lowest[1] / lowest[0]
    print(
        f"{path.name}: edgekit / tool of rounds {np.median(ratios):.3f} {spread}; lowest medians: LiteRT's tool "
        f"{lowest[0]:.4f} ms, C API {lowest[3]:.4f} ms, edgekit {lowest[1]:.4f} ms (with copies {lowest[2]:.4f} ms); "
        f"edgekit / tool {best:.3f}, edgekit / C API {lowest[1] / lowest[3]:.3f}: "
        f"{'within' if abs(best - 1) <= ALLOWED else 'NOT within'} {ALLOWED:.0%} of the tool",
        flush=True,
    )


if __name__ == "__main__":
    main()
