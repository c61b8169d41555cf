"""The last comparison of a search: its choice against what the quantizers make alone, on the samples that evaluate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration.data import Dataset
from edge.calibration.search import Candidate
from edge.errors import QuantizationError
from edge.findings import Finding
from edge.measure import metrics
from edge.measure.statistics import PairedDifference
from edge.stages.bench import Bench, run_real

if TYPE_CHECKING:
    from edge.measure.metric import Metric

_ERROR = 0.05


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A program of the last comparison: its drop against the float carrier on the samples that evaluate."""

    candidate: Candidate
    difference: PairedDifference


@dataclass(frozen=True, kw_only=True)
class Final:
    """The finalists, the search's choice first; `failures` by label; `runs` invocations of a program."""

    metric: str
    samples: int
    finalists: tuple[Finalist, ...]
    failures: dict[str, str]
    runs: int

    @property
    def best(self) -> Finalist:
        """The smallest drop; among equal ones the first, so that the search's choice stays unless it is beaten."""
        return min(self.finalists, key=lambda f: f.difference.drop)

    @property
    def winner(self) -> Candidate:
        """The candidate to build."""
        return self.best.candidate

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest keeps; intervals hold for all finalists at once (Bonferroni)."""
        return {
            "samples": self.samples,
            "runs": self.runs,
            "confidence": self.best.difference.confidence,
            "finalists": [
                {
                    "recipe": f.candidate.label,
                    "value": f.difference.candidate,
                    "drop": f.difference.drop,
                    "drop_low": f.difference.low,
                    "drop_high": f.difference.high,
                    "chosen": f is self.best,
                }
                for f in self.finalists
            ],
            "failures": self.failures,
        }

    def finding(self) -> Finding:
        """Return that the choice was changed, and how far to believe the figure."""
        first, best = self.finalists[0], self.best
        found = best.difference
        bound = "" if found.high is None else f" (at most {found.high:.4g} at {found.confidence:.1%} confidence)"
        return Finding(
            rule="SEARCH_FINAL",
            severity="info",
            message=f"On the {self.samples} evaluation samples {best.candidate.label} drops {self.metric} by "
            f"{found.drop:.4g}{bound}, the search's choice {first.candidate.label} by {first.difference.drop:.4g}: "
            f"the former was taken. {len(self.finalists)} programs were compared there, which flatters the best a "
            "little.",
        )


def compare(bench: Bench, chosen: Candidate) -> Final | None:
    """Run the choice and what each quantizer makes alone over the evaluation samples, beside the float carrier.

    None without evaluation samples, and where the choice is the only finalist. Memory: the metrics' and the programs'.
    """
    rivals = [c for c in _alone(bench) if c.recipe != chosen.recipe]
    if bench.evaluation is None or not rivals:
        return None
    programs, failures, runs = _built(bench, [chosen, *rivals])
    floats, found, samples = _run(bench, programs, bench.evaluation.open(bench.signature))
    confidence = 1 - _ERROR / len(programs)
    finalists = [
        Finalist(candidate=candidate, difference=metrics.compare(floats, metric, confidence=confidence))
        for (candidate, _), metric in zip(programs, found, strict=True)
    ]
    distinct = len({id(metric) for metric in found})
    return Final(
        metric=floats.name,
        samples=samples,
        finalists=tuple(finalists),
        failures=failures,
        runs=runs + samples * (distinct + 1),
    )


def _alone(bench: Bench) -> Iterator[Candidate]:
    """Yield what costs no search: TFLiteConverter's quantizer, ai-edge-quantizer with a moving average as its own."""
    base = bench.plain
    if "ptq" not in bench.refinements:
        yield bench.candidate(base, "estimators")
        return
    yield bench.candidate(replace(base, quantizer="ptq"), "estimators")
    yield bench.candidate(replace(base, estimator="moving-average", quantizer="aeq"), "estimators")


def _built(bench: Bench, candidates: list[Candidate]) -> tuple[list[tuple[Candidate, Path]], dict[str, str], int]:
    """Return the programs as the build makes them, with all calibration samples."""
    whole = bench.split.fit == bench.calibration
    data: Dataset = bench.fit if whole else bench.calibration.open(bench.signature)
    made: list[tuple[Candidate, Path]] = []
    failures: dict[str, str] = {}
    total = 0
    for number, candidate in enumerate(candidates):
        known = bench.path_of(candidate) if whole else None
        if known is not None:
            made.append((candidate, known))
            continue
        bench.progress(f"building {candidate.label} to compare with", None)
        try:
            program, runs = bench.build(candidate, data, f"final-{number}")
        except QuantizationError as error:
            if candidate is candidates[0]:
                raise
            failures[candidate.label] = error.message
            continue
        made.append((candidate, program.path))
        total += runs
    return made, failures, total


def _run(bench: Bench, programs: list[tuple[Candidate, Path]], data: Dataset) -> tuple[Metric, list[Metric], int]:
    """Return the metric of the float carrier and of each program, one for equal files, and the number of samples."""
    label = data.first().label
    carrier, floats = bench.open_carrier(), bench.make_metric(label)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for _, path in programs]
    opened = {
        digest: (bench.open(path, candidate.recipe), bench.make_metric(label))
        for digest, (candidate, path) in zip(digests, programs, strict=True)
    }
    for sample in data:
        wanted = run_real(carrier, sample.inputs)
        expected = wanted if sample.label is None else sample.label
        floats.update(wanted, expected)
        for session, metric in opened.values():
            metric.update(run_real(session, sample.inputs), expected)
    return floats, [opened[digest][1] for digest in digests], len(floats)
