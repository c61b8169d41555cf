"""Cross-validate the roofline of the Raspberry Pi boards on published latencies, and fit its constants.

    python benchmarks/pi_latency.py            the table: published, predicted without the row's group, error
    python benchmarks/pi_latency.py --check    exit 1 where the mean error is above 35 % or coverage below the rate
    python benchmarks/pi_latency.py --refit    the [hardware.roofline] tables of targets/catalog/rpi*.toml

Constants are maximum a posteriori: log-normal noise, log-normal priors for what all cores share, and a deviation of
each core from it. A group (MobileNet v1, v2, v3, SSDLite, EfficientDet) is left out whole, on every board: a model that
the user brings is of a family that was never seen. Where no other group was measured on a core (EfficientDet
on the Pi 5), the core's facts and the other cores must do, as they must for a new board.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pi_architectures import ARCHITECTURES, as_float

from edge.targets.litert import work as counting
from edge.targets.roofline import RATES, Board, Load, load_of, milliseconds

PUBLISHED = Path(__file__).with_name("pi_published_latency.csv")
MAX_ERROR = 0.35
RATE = 0.8
# Relative precision of a published number: other systems, versions, loads.
NOISE = 0.15
# How far a core's constant may lie from the shared one, as the standard deviation of its logarithm.
DEVIATION = 0.3

CORE_OF = {"rpi3": "a53", "rpi3+": "a53", "rpi-zero2": "a53", "rpi4": "a72", "rpi5": "a76"}
# What the makers say of each core and board, as the scale of the shares that are fitted. MACs in a cycle: 128-bit
# vector multiply-accumulates in a cycle (Arm's software optimization guides: one on A53 and A72, two on A76) times
# lanes; int8 widens to 16 bits on A53 and A72 and uses SDOT on A76. Bandwidth in GB/s: LPDDR2-900, LPDDR4-3200,
# LPDDR4X-4267 with 32 lines.
# Cache: last level (raspberrypi.com/documentation/computers/processors.html).
# unsigned: what uint8 convolutions reach of int8's rate, as instructions of one inference of MobileNet v2 1.0 224 in
# int8 over those in uint8 (TensorFlow 1 quantization), counted exactly under emulation: 132.3 M / 135.1 M on A53,
# 114.1 M / 131.6 M on A72, 49.6 M / 131.6 M on A76, whose dot products XNNPACK uses for int8 only.
PEAK = {
    "a53": {"float32": 4, "int8": 8, "unsigned": 0.979, "memory": 3.6, "cache_kb": 512},
    "a72": {"float32": 4, "int8": 8, "unsigned": 0.867, "memory": 12.8, "cache_kb": 1024},
    "a76": {"float32": 8, "int8": 32, "unsigned": 0.377, "memory": 17.1, "cache_kb": 2048},
}
# [value, standard deviation of its logarithm]: shares of the peak, and constants that all cores share.
PRIOR = {
    "dense_float32": (0.5, 0.4),
    "dense_int8": (0.5, 0.4),
    "depthwise_float32": (0.25, 0.6),
    "depthwise_int8": (0.15, 0.6),
    "core": (0.25, 0.5),
    "memory": (0.4, 0.4),
    "cache_bytes_per_cycle": (2.0, 0.7),
    "operator_kcycles": (10.0, 0.5),
}
SHARED = {"scaling": (0.9, 0.05), "overlap_loss": (0.3, 0.5)}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published latency in ms, with what its model makes the board do."""

    model: str
    board: str
    clock_mhz: float
    arithmetic: str
    threads: int
    ms: float
    group: str
    load: Load


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row predicted by constants that never saw its group."""

    row: Row
    predicted: float

    @property
    def log_error(self) -> float:
        """ln(predicted / published)."""
        return math.log(self.predicted / self.row.ms)


@functools.cache
def load_on(core: str, model: str, size: int, arithmetic: str) -> Load:
    """Return what an architecture makes a core do."""
    graph = ARCHITECTURES[model](size)
    found, reason = counting.work_of([as_float(graph) if arithmetic == "float32" else graph])
    assert reason is None, reason
    return load_of(found, PEAK[core]["cache_kb"])


def rows() -> list[Row]:
    """Return the published table."""
    lines = [line for line in PUBLISHED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        Row(
            **{key: r[key] for key in ("model", "board", "arithmetic", "group")},
            clock_mhz=float(r["clock_mhz"]),
            threads=int(r["threads"]),
            ms=float(r["ms"]),
            load=load_on(CORE_OF[r["board"]], r["model"], int(r["input"]), r["arithmetic"]),
        )
        for r in csv.DictReader(lines)
    ]


def board_of(core: str, clock_mhz: float, found: Mapping[str, float]) -> Board:
    """Return a board from the fitted shares of a core and the facts of it."""
    peak = PEAK[core]
    rates = {name: peak[name.partition("_")[2]] * found[name] for name in RATES if name in found}
    rates["dense_uint8"] = peak["unsigned"] * rates["dense_int8"]
    return Board(
        clock_mhz=clock_mhz,
        cores=4,
        cache_kb=peak["cache_kb"],
        core_gb_per_s=peak["memory"] * found["core"],
        memory_gb_per_s=peak["memory"] * found["memory"],
        cache_bytes_per_cycle=found["cache_bytes_per_cycle"],
        operator_kcycles=found["operator_kcycles"],
        scaling=min(1.0, found["scaling"]),
        overlap_loss=found["overlap_loss"],
        **rates,
    )


def predict(row: Row, constants: Mapping[str, Mapping[str, float]]) -> float:
    """Return the predicted milliseconds of a row."""
    core = CORE_OF[row.board]
    return milliseconds(row.load, board_of(core, row.clock_mhz, constants[core]), row.threads)


def fit(training: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the constants by core."""
    from scipy.optimize import least_squares

    shared = {**PRIOR, **SHARED}
    centre = np.log([value for value, _ in shared.values()])
    width = np.array([deviation for _, deviation in shared.values()])
    # Many rows of one family on one core are less than as many facts.
    count = Counter((r.group, CORE_OF[r.board], r.arithmetic) for r in training)
    weights = np.array([count[r.group, CORE_OF[r.board], r.arithmetic] ** -0.25 for r in training]) / NOISE

    def constants(theta: NDArray[np.float64]) -> dict[str, dict[str, float]]:
        common = centre + width * theta[: len(shared)]
        found = {}
        for number, core in enumerate(PEAK):
            own = theta[len(shared) + number * len(PRIOR) :][: len(PRIOR)]
            values = common + DEVIATION * np.concatenate([own, np.zeros(len(SHARED))])
            found[core] = dict(zip(shared, np.exp(values).tolist(), strict=True))
        return found

    def residuals(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        guess = constants(theta)
        misses = np.array([math.log(predict(r, guess) / r.ms) for r in training]) * weights
        return np.concatenate([misses, theta])

    start = np.zeros(len(shared) + len(PEAK) * len(PRIOR))
    return constants(least_squares(residuals, start, max_nfev=60).x)


def cross_validate(table: Sequence[Row]) -> list[Outcome]:
    """Predict each group from the others."""
    outcomes = []
    for group in dict.fromkeys(r.group for r in table):
        constants = fit([r for r in table if r.group != group])
        outcomes += [Outcome(row=r, predicted=predict(r, constants)) for r in table if r.group == group]
    return outcomes


def log_width(outcomes: Iterable[Outcome], rate: float = RATE) -> float:
    """Return the log-width that covers at `rate`, each (group, core, arithmetic) counting as one.

    The conformal quantile of leave-one-group-out errors: with n cells the ceil((n + 1) * rate)-th smallest of the
    cells' mean absolute errors, at most the largest, and at least what covers `rate` of the single rows.
    """
    found = list(outcomes)
    cells: dict[tuple[str, str, str], list[float]] = {}
    for o in found:
        key = (o.row.group, CORE_OF[o.row.board], o.row.arithmetic)
        cells.setdefault(key, []).append(abs(o.log_error))
    means = sorted(float(np.mean(errors)) for errors in cells.values())
    of_cells = means[min(len(means), math.ceil((len(means) + 1) * rate)) - 1]
    singles = sorted(abs(o.log_error) for o in found)
    of_rows = singles[min(len(singles), math.ceil((len(singles) + 1) * rate)) - 1]
    return max(of_cells, of_rows)


def mean_error(outcomes: Sequence[Outcome]) -> float:
    """Return the mean absolute relative error."""
    return float(np.mean([abs(o.predicted / o.row.ms - 1) for o in outcomes]))


def coverage(outcomes: Sequence[Outcome], width: float) -> float:
    """Return the share of published values inside an interval of that log-width."""
    return float(np.mean([abs(o.log_error) <= width for o in outcomes]))


def show(outcomes: Sequence[Outcome], width: float) -> None:
    """Print the table of outcomes."""
    print(f"{'model':22} {'board':6} {'dtype':8} {'threads':>7} {'published':>9} {'predicted':>9} {'error':>7}  inside")
    for o in outcomes:
        r, error = o.row, o.predicted / o.row.ms - 1
        inside = "yes" if abs(o.log_error) <= width else "no"
        what = f"{r.model:22} {r.board:6} {r.arithmetic:8} {r.threads:7}"
        print(f"{what} {r.ms:9.1f} {o.predicted:9.1f} {error:+7.1%}  {inside}")


def refit(table: Sequence[Row]) -> str:
    """Return the tables for the catalogue."""
    return "\n".join(
        f"# {board}\n" + "\n".join(f"{name} = {value:.4g}" for name, value in values.items()) + "\n"
        for board, values in fitted(table).items()
    )


def fitted(table: Sequence[Row], outcomes: Sequence[Outcome] | None = None) -> dict[str, dict[str, float]]:
    """Return the table `hardware.roofline` of each board of the catalogue."""
    constants, width = fit(table), log_width(outcomes or cross_validate(table))
    found = {}
    for name in ("rpi-zero2", "rpi3", "rpi4", "rpi5"):
        board = board_of(CORE_OF[name], 1.0, constants[CORE_OF[name]])
        values = {k: v for k, v in vars(board).items() if k not in ("clock_mhz", "cores")}
        # A board that nobody measured may deviate as a core does.
        own = width if any(r.board == name for r in table) else math.hypot(width, DEVIATION)
        found[name] = {**values, "log_width": own, "rate": RATE}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where the target is missed")
    parser.add_argument("--refit", action="store_true", help="print the tables for the catalogue")
    options = parser.parse_args(arguments)
    table = rows()
    if options.refit:
        print(refit(table))
        return 0
    outcomes = cross_validate(table)
    width = log_width(outcomes)
    print("Leave one group out")
    show(outcomes, width)
    error, covered = mean_error(outcomes), coverage(outcomes, width)
    print(f"\nmean absolute error {error:.1%} (at most {MAX_ERROR:.0%}); interval x/{math.exp(width):.2f}")
    print(f"inside {covered:.1%} (stated {RATE:.0%})")
    return int(options.check and (error > MAX_ERROR or covered < RATE))


if __name__ == "__main__":
    sys.exit(main())
