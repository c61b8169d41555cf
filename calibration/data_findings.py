"""What can be told from the samples themselves, before a model sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge.calibration.data_types import Array, Role, Sample
from edge.findings import Finding
from edge.preprocess import describe
from edge.signature import Signature, TensorSpec

# Below this many samples the ranges of activations are a matter of luck.
MIN_CALIBRATION_SAMPLES = 32
# Chance and rare classes may leave out so many more.
_SPARED_CLASSES = 0.05
_NAMED_CLASSES = 8


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
class Classes:
    """Which class indices occur among the labels of samples."""

    count: int = 0
    indexed: int = 0
    seen: set[int] = field(default_factory=set)

    def add(self, label: Any) -> None:
        """Note the label of one sample; one that is no int is no class."""
        self.count += 1
        if isinstance(label, int):
            self.indexed += 1
            self.seen.add(label)

    def findings(self, signature: Signature, role: Role) -> tuple[Finding, ...]:
        """Return ONE_CLASS (evaluation) or MISSING_CLASSES, where all samples have a class.

        Missing: more classes than drawing as many samples at random would leave out, and 5 % of all. Worked number: 300
        samples of 1,000 equally frequent classes leave out 741 of them, 300 of 10 none.
        """
        if not self.indexed or self.indexed < self.count:
            return ()
        if role == "evaluation" and len(self.seen) == 1 < self.count:
            return (_one_class(self.count, *self.seen),)
        total = _class_count(signature)
        if total is None or max(self.seen) >= total or min(self.seen) < 0:
            return ()
        missing = total - len(self.seen)
        if missing <= total * (1 - 1 / total) ** self.count + _SPARED_CLASSES * total:
            return ()
        return (_missing_classes(self, total, role),)


@dataclass(kw_only=True)
class _Survey:
    count: int = 0
    digests: set[bytes] = field(default_factory=set)
    inputs: dict[str, _Seen] = field(default_factory=dict)
    classes: Classes = field(default_factory=Classes)

    def add(self, sample: Sample) -> None:
        self.count += 1
        digest = hashlib.blake2b(digest_size=16)
        for name, values in sample.inputs.items():
            digest.update(np.ascontiguousarray(values).data)
            self.inputs.setdefault(name, _Seen()).add(values)
        self.digests.add(digest.digest())
        self.classes.add(sample.label)


def inspect_samples(samples: Iterable[Sample], signature: Signature, *, role: Role) -> tuple[Finding, ...]:
    """Return findings on preprocessed samples, in one pass, keeping 16 bytes of each.

    RAW_RANGE: whole numbers such as pixels reach a float input whose preprocessing is the identity. CONSTANT_INPUT: an
    input has one value throughout. FEW_SAMPLES: fewer than 32 to calibrate with. DUPLICATE_SAMPLES: equal inputs.
    ONE_CLASS: evaluation data whose labels are all the same. MISSING_CLASSES: classes of the model without a sample.
    """
    survey = _Survey()
    for sample in samples:
        survey.add(sample)
    found = [
        f for spec in signature.inputs if spec.name in survey.inputs for f in _input_findings(spec, survey, signature)
    ]
    return (*found, *_set_findings(survey, role), *survey.classes.findings(signature, role))


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
    return found


def _class_count(signature: Signature) -> int | None:
    """Return how many classes a classifier tells apart: its labels, else the values of its only output (1 tells 2)."""
    if signature.task not in ("classification", "other"):
        return None
    if signature.labels:
        return len(signature.labels)
    if len(signature.outputs) != 1:
        return None
    shape = signature.outputs[0].shape
    if len(shape) < 2 or any(d != 1 for d in shape[:-1]) or shape[-1] < 1:
        return None
    return max(2, shape[-1])


def _one_class(count: int, label: int) -> Finding:
    return Finding(
        rule="ONE_CLASS",
        severity="warning",
        message=f"all {count} evaluation samples have the label {label}",
        fix="Give samples of every class, or accuracy says nothing.",
    )


def _missing_classes(classes: Classes, total: int, role: Role) -> Finding:
    missing = [i for i in range(total) if i not in classes.seen]
    named = ", ".join(map(str, missing[:_NAMED_CLASSES])) + (", ..." if len(missing) > _NAMED_CLASSES else "")
    why = "no accuracy is measured for" if role == "evaluation" else "ranges may be too narrow for"
    return Finding(
        rule="MISSING_CLASSES",
        severity="warning",
        message=f"the {classes.count} {role} samples have {len(classes.seen)} of the model's {total} classes; "
        f"none is of class {named}",
        fix=f"Give samples of every class: {why} what is not there.",
    )
