"""What can be told from the samples themselves, before a model sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from edge.calibration.data_types import Array, Role, Sample
from edge.findings import Finding
from edge.preprocess import describe
from edge.signature import Signature, TensorSpec

# Below this many samples the ranges of activations are a matter of luck.
MIN_CALIBRATION_SAMPLES = 32


@dataclass(kw_only=True)
class _Seen:
    """Running facts of one input over all samples."""

    low: float = np.inf
    high: float = -np.inf
    whole: bool = True

    def add(self, values: Array) -> None:
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        self.whole = self.whole and bool((values == np.rint(values)).all())


@dataclass(kw_only=True)
class _Survey:
    count: int = 0
    digests: set[bytes] = field(default_factory=set)
    inputs: dict[str, _Seen] = field(default_factory=dict)
    classes: set[int] = field(default_factory=set)
    indexed: int = 0

    def add_label(self, label: Any) -> None:
        if isinstance(label, int):
            self.indexed += 1
            self.classes.add(label)

    def add(self, sample: Sample) -> None:
        self.count += 1
        digest = hashlib.blake2b(digest_size=16)
        for name, values in sample.inputs.items():
            digest.update(np.ascontiguousarray(values).data)
            self.inputs.setdefault(name, _Seen()).add(values)
        self.digests.add(digest.digest())
        self.add_label(sample.label)


def inspect_samples(samples: Iterable[Sample], signature: Signature, *, role: Role) -> tuple[Finding, ...]:
    """Return findings on preprocessed samples, in one pass, keeping 16 bytes of each.

    RAW_RANGE: whole numbers such as pixels reach a float input whose preprocessing is the identity. CONSTANT_INPUT: an
    input has one value throughout. FEW_SAMPLES: fewer than 32 to calibrate with. DUPLICATE_SAMPLES: equal inputs.
    ONE_CLASS: evaluation data whose labels are all the same.
    """
    survey = _Survey()
    for sample in samples:
        survey.add(sample)
    found = [
        f for spec in signature.inputs if spec.name in survey.inputs for f in _input_findings(spec, survey, signature)
    ]
    return (*found, *_set_findings(survey, role))


def _input_findings(spec: TensorSpec, survey: _Survey, signature: Signature) -> list[Finding]:
    seen, found = survey.inputs[spec.name], []
    if seen.low == seen.high and survey.count > 1:
        found.append(
            Finding(
                rule="CONSTANT_INPUT",
                severity="warning",
                op=spec.name,
                message=f"input {spec.name!r} is {seen.low:g} in all {survey.count} samples",
                fix="Check the data and its preprocessing: a constant tells nothing of the range of real inputs.",
            )
        )
    if _looks_raw(spec, seen) and signature.preprocess_of(spec.name).is_identity:
        found.append(
            Finding(
                rule="RAW_RANGE",
                severity="warning",
                op=spec.name,
                message=(
                    f"float input {spec.name!r} receives whole numbers from {seen.low:g} to {seen.high:g}, "
                    f"and no scale is declared (preprocessing: {describe(signature.preprocess_of(spec.name))})"
                ),
                fix="Declare what the model was trained on, such as scale=1/255 or scale=1/127.5,mean=1.",
            )
        )
    return found


def _looks_raw(spec: TensorSpec, seen: _Seen) -> bool:
    """Tell whether values are stored bytes: whole, within uint8 or int8, and spread over more than a few of them."""
    within = seen.low >= -128 and seen.high <= (255 if seen.low >= 0 else 127)
    return spec.dtype.startswith("float") and seen.whole and within and seen.high - seen.low > 16


def _set_findings(survey: _Survey, role: Role) -> list[Finding]:
    found = []
    if role == "calibration" and survey.count < MIN_CALIBRATION_SAMPLES:
        found.append(
            Finding(
                rule="FEW_SAMPLES",
                severity="warning",
                message=f"{survey.count} calibration samples; ranges are trustworthy from {MIN_CALIBRATION_SAMPLES} on",
                fix="Give 100 to 500 samples like those that the device will see.",
            )
        )
    if (copies := survey.count - len(survey.digests)) > 0:
        found.append(
            Finding(
                rule="DUPLICATE_SAMPLES",
                severity="warning" if 10 * copies > survey.count else "info",
                message=f"{copies} of {survey.count} samples are copies of another one",
                fix="Drop copies: they count double and widen nothing.",
            )
        )
    if role == "evaluation" and len(survey.classes) == 1 < survey.count == survey.indexed:
        found.append(
            Finding(
                rule="ONE_CLASS",
                severity="warning",
                message=f"all {survey.count} evaluation samples have the label {next(iter(survey.classes))}",
                fix="Give samples of every class, or accuracy says nothing.",
            )
        )
    return found
