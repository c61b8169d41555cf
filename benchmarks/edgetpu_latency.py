"""Cross-validate the Edge TPU latency model on published latencies, with the architectures rebuilt from their papers.

    python benchmarks/edgetpu_latency.py            the table: published, predicted without the row's model, error
    python benchmarks/edgetpu_latency.py --check    exit 1 where the mean error is above 20 % or coverage below the rate
    python benchmarks/edgetpu_latency.py --refit    the [fitted] and [interval] values of latency.toml

Leave-one-out: the constants are fitted again on the seven other architectures (both links), and the interval comes from
the leave-one-out errors among those seven, so nothing of a row takes part in what is printed beside it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from edgetpu_architectures import ARCHITECTURES
from numpy.typing import NDArray

from edge.targets.edgetpu import latency, memory, placement
from edge.targets.edgetpu.latency import Constants, Work

PUBLISHED = Path(__file__).with_name("edgetpu_published_latency.csv")
LINKS = ("usb3", "pcie")
MAX_ERROR = 0.20
# Relative precision of a published number (two digits, unknown host load), against which the priors weigh.
NOISE = 0.10


@dataclass(frozen=True, kw_only=True)
class Row:
    """One architecture: its work and the published milliseconds over `LINKS`."""

    model: str
    work: Work
    published: tuple[float, ...]
    use: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row predicted by constants that never saw it, with the log-width of the interval that holds for it."""

    row: Row
    predicted: tuple[float, ...]
    log_width: float

    @property
    def errors(self) -> tuple[float, ...]:
        """Relative errors over `LINKS`."""
        return tuple(p / t - 1 for p, t in zip(self.predicted, self.row.published, strict=True))

    @property
    def inside(self) -> tuple[bool, ...]:
        """Whether each published value lies in its interval."""
        pairs = zip(self.predicted, self.row.published, strict=True)
        return tuple(abs(math.log(p / t)) <= self.log_width for p, t in pairs)


def work_of(model: str, size: int) -> Work:
    """Return the work of an architecture as edgekit itself places it and plans its memory."""
    graph = ARCHITECTURES[model](size)
    placed = placement.predict(graph, min_runtime_version=14)
    plan = memory.plan(graph, placed)
    return latency.work(graph, placed.mapped, plan, invocations=placed.subgraphs)


def rows() -> list[Row]:
    """Return the published table."""
    lines = [line for line in PUBLISHED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        Row(
            model=r["model"],
            work=work_of(r["model"], int(r["input"])),
            published=(float(r["usb3_ms"]), float(r["devboard_ms"])),
            use=r["use"],
        )
        for r in csv.DictReader(lines)
    ]


def predict(row: Row, constants: Constants) -> tuple[float, ...]:
    """Return the predicted milliseconds of a row over `LINKS`."""
    links = latency.table("links")
    return tuple(latency.milliseconds(row.work, link, links[link]["host"], constants)[0] for link in LINKS)


def fit(training: Sequence[Row]) -> Constants:
    """Return the maximum a posteriori constants: log-normal noise of `NOISE`, log-normal priors of latency.toml."""
    from scipy.optimize import least_squares

    names = [f.name for f in fields(Constants)]
    prior = np.array([latency.table("prior")[name] for name in names])

    def constants(theta: NDArray[np.float64]) -> Constants:
        return Constants(**dict(zip(names, np.exp(theta).tolist(), strict=True)))

    def residuals(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        guess = constants(theta)
        misses = [np.log(np.array(predict(row, guess)) / np.array(row.published)) / NOISE for row in training]
        return np.concatenate([*misses, (theta - np.log(prior[:, 0])) / prior[:, 1]])

    return constants(least_squares(residuals, np.log(prior[:, 0])).x)


def _left_out(row: Row, training: Iterable[Row]) -> float:
    """Return the largest |ln(predicted / published)| of `row` under constants fitted on the other rows."""
    predicted = predict(row, fit([r for r in training if r is not row]))
    return max(abs(math.log(p / t)) for p, t in zip(predicted, row.published, strict=True))


def jackknife_width(training: Sequence[Row], rate: float) -> float:
    """Return the log-width that covers a new architecture at `rate`: a conformal quantile of leave-one-out errors.

    With n architectures it is the ceil((n + 1) * rate)-th smallest error, at most the largest.
    """
    errors = sorted(_left_out(row, training) for row in training)
    return errors[min(len(errors), math.ceil((len(errors) + 1) * rate)) - 1]


def cross_validate(table: Sequence[Row], rate: float) -> list[Outcome]:
    """Predict each row from the others."""
    outcomes = []
    for row in table:
        others = [r for r in table if r is not row]
        width = jackknife_width(others, rate)
        outcomes.append(Outcome(row=row, predicted=predict(row, fit(others)), log_width=width))
    return outcomes


def mean_error(outcomes: Sequence[Outcome]) -> float:
    """Return the mean absolute relative error over all rows and links."""
    return float(np.mean([abs(e) for o in outcomes for e in o.errors]))


def coverage(outcomes: Sequence[Outcome]) -> float:
    """Return the share of published values inside their intervals."""
    return float(np.mean(list(itertools.chain.from_iterable(o.inside for o in outcomes))))


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table of outcomes."""
    print(f"{'model':14} {'link':5} {'published':>9} {'predicted':>9} {'error':>7} {'interval (ms)':>17}  inside")
    for o in outcomes:
        for link, true, value, error, inside in zip(
            LINKS, o.row.published, o.predicted, o.errors, o.inside, strict=True
        ):
            low, high = value * math.exp(-o.log_width), value * math.exp(o.log_width)
            span = f"{low:.1f} to {high:.1f}"
            verdict = "yes" if inside else "no"
            print(f"{o.row.model:14} {link:5} {true:9.1f} {value:9.1f} {error:+7.1%} {span:>17}  {verdict}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where the target is missed")
    parser.add_argument("--refit", action="store_true", help="print the values for latency.toml")
    options = parser.parse_args(arguments)
    rate = float(latency.table("interval")["rate"])
    table = rows()
    training = [row for row in table if row.use == "fit"]
    final = fit(training)
    if options.refit:
        print("\n".join(f"{name} = {value:.6g}" for name, value in asdict(final).items()))
        print(f"log_width = {jackknife_width(training, rate):.4g}")
        return 0
    outcomes = cross_validate(training, rate)
    print("Leave one architecture out")
    show(outcomes)
    width = float(latency.table("interval")["log_width"])
    held_out = [Outcome(row=r, predicted=predict(r, final), log_width=width) for r in table if r.use == "check"]
    print("\nRows of the same page that were never fitted, by the constants of latency.toml")
    show(held_out)
    error, covered = mean_error(outcomes), coverage(outcomes)
    print(f"\nmean absolute error {error:.1%} (at most {MAX_ERROR:.0%}); inside {covered:.1%} (stated {rate:.0%})")
    return int(options.check and (error > MAX_ERROR or covered < rate))


if __name__ == "__main__":
    sys.exit(main())
