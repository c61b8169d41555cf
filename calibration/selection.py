"""Which samples calibrate and which evaluate: decided once, written down, and read again by every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge.calibration.data import Dataset, Sample, open_dataset, split, spread
from edge.findings import Finding
from edge.signature import Signature

# Below this many samples a split would leave too few on either side to say anything.
LEAST_TO_SPLIT = 200
# A search chooses on so many samples that nothing else uses, at most half of those that do not calibrate.
SEARCH_SAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Samples of one data location; `indices` None means all of them."""

    location: str
    role: Literal["calibration", "evaluation"]
    indices: tuple[int, ...] | None = None

    def open(self, signature: Signature) -> Dataset:
        """Return the samples as a re-iterable stream. Raises DataError."""
        samples = open_dataset(self.location, signature, role=self.role)
        return samples if self.indices is None else samples.select(self.indices)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The selections of one build and what is to be said about them."""

    signature: Signature
    calibration: Selection | None = None
    evaluation: Selection | None = None
    findings: tuple[Finding, ...] = ()

    def verification(self) -> Iterator[Sample] | None:
        """Return samples to verify conversions with, None where there is no data."""
        chosen = self.calibration or self.evaluation
        return iter(chosen.open(self.signature)) if chosen else None


def plan(signature: Signature, request: Mapping[str, Any]) -> Plan:
    """Decide from `{calibration, evaluation, calibration_samples, evaluation_samples, search}` of the project.

    With evaluation data of its own (or separate train and test parts in one file), all of it evaluates. Otherwise, from
    200 samples on, those that did not calibrate evaluate; below that the same samples do both, which is a finding. With
    `search`, up to 500 of those that did not calibrate are left to choose a recipe by, and do not evaluate.
    """
    calibration, evaluation = request.get("calibration"), request.get("evaluation")
    wanted, most = int(request["calibration_samples"]), request.get("evaluation_samples")
    if calibration is None:
        only = _limited(evaluation, signature, most) if evaluation else None
        return Plan(signature=signature, evaluation=only)
    source = open_dataset(calibration, signature, role="calibration")
    count = _count(source)
    same = open_dataset(evaluation or calibration, signature, role="evaluation").digest() == source.digest()
    if same and not evaluation:
        return _split(calibration, signature, count, wanted, most, reserve=bool(request.get("search")))
    return Plan(
        signature=signature,
        calibration=Selection(location=calibration, role="calibration", indices=_part(count, wanted)),
        evaluation=_limited(evaluation or calibration, signature, most),
        findings=(_same_samples(count),) if same else (),
    )


def _same_samples(count: int) -> Finding:
    return Finding(
        rule="EVALUATED_ON_CALIBRATION",
        severity="warning",
        message=f"The same {count} samples calibrate and evaluate, which flatters the result a little.",
        fix="Give other labelled samples with --evaluation.",
    )


def _count(samples: Dataset) -> int:
    return samples.count if samples.count is not None else sum(1 for _ in samples)


def _part(count: int, wanted: int) -> tuple[int, ...] | None:
    return None if wanted >= count else spread(count, wanted)


def _limited(location: str, signature: Signature, most: int | None) -> Selection:
    if most is None:
        return Selection(location=location, role="evaluation")
    count = _count(open_dataset(location, signature, role="evaluation"))
    return Selection(location=location, role="evaluation", indices=_part(count, most))


def _split(location: str, signature: Signature, count: int, wanted: int, most: int | None, *, reserve: bool) -> Plan:
    if count < LEAST_TO_SPLIT:
        both = _part(count, wanted)
        return Plan(
            signature=signature,
            calibration=Selection(location=location, role="calibration", indices=both),
            evaluation=Selection(location=location, role="calibration", indices=_part(count, most or count)),
            findings=(_same_samples(count),),
        )
    calibrating, rest = split(count, min(wanted, count // 2))
    if reserve:
        chosen = set(spread(len(rest), min(SEARCH_SAMPLES, len(rest) // 2)))
        rest = tuple(index for place, index in enumerate(rest) if place not in chosen)
    if most is not None:
        rest = tuple(rest[i] for i in spread(len(rest), most))
    return Plan(
        signature=signature,
        calibration=Selection(location=location, role="calibration", indices=calibrating),
        evaluation=Selection(location=location, role="calibration", indices=rest),
    )
