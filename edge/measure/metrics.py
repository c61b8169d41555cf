"""The metrics by name, the one that fits by default, and their paired comparison."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ConfigError, DataError
from edge.measure import statistics
from edge.measure.classification import Agreement, AreaUnderCurve, Binary, TopK
from edge.measure.custom_metric import CustomMetric, is_custom
from edge.measure.detection import THRESHOLDS_50, THRESHOLDS_50_95, AveragePrecision
from edge.measure.metric import Metric, is_one_hot
from edge.measure.regression import MeanAbsoluteError, PeakSignalToNoise, SignalToNoise
from edge.measure.segmentation import MeanIntersectionOverUnion
from edge.signature import Signature, TensorSpec

_PLAIN: dict[str, Callable[[str | None], Metric]] = {
    "mae": lambda output: MeanAbsoluteError(output=output),
    "psnr": lambda output: PeakSignalToNoise(output=output),
    "snr": lambda output: SignalToNoise(output=output),
    "binary": lambda output: Binary(output=output),
    "auc": lambda output: AreaUnderCurve(output=output),
    "agreement": lambda output: Agreement(output=output),
    "miou": lambda output: MeanIntersectionOverUnion(output=output),
    "ap50": lambda output: AveragePrecision(THRESHOLDS_50, output=output),
    "ap50-95": lambda output: AveragePrecision(THRESHOLDS_50_95, output=output),
}
_NUMBERED: dict[str, Callable[[float, str | None], Metric]] = {
    "top": lambda number, output: TopK(int(number), output=output),
    "psnr": lambda number, output: PeakSignalToNoise(number, output=output),
    "binary": lambda number, output: Binary(number, output=output),
}
NAMES = ("top1", "top5", *_PLAIN, "file.py:metric")


def metric_named(text: str) -> Metric:
    """Return a new metric: a name of `NAMES`, perhaps with `@OUTPUT`, or file.py:metric; raise ConfigError, DataError.

    `topK` takes any K, `psnrP` the peak value P, `binaryT` the threshold T.
    """
    if is_custom(text):
        return CustomMetric(text)
    name, _, output = text.partition("@")
    if name in _PLAIN:
        return _PLAIN[name](output or None)
    numbered = re.fullmatch(r"([a-z]+)(-?\d+(?:\.\d+)?)", name)
    if numbered and numbered[1] in _NUMBERED:
        number = float(numbered[2])
        fits = {"top": number >= 1 and number.is_integer(), "psnr": number > 0, "binary": True}
        if fits[numbered[1]]:
            return _NUMBERED[numbered[1]](number, output or None)
    raise ConfigError(f"metric {text!r} is unknown; accepted: {', '.join(NAMES)}, each also as NAME@OUTPUT")


def default_metric(signature: Signature, label: Any = None) -> Metric:
    """Return the metric that fits the outputs and an example label; None stands for data without labels.

    A class number (or one-hot vector) and an output of several classes: top1; 0 or 1 and a single output: binary; an
    integer mask: miou; boxes: ap50; other numbers: mae; no label: agreement for classes, else snr. Raises DataError
    where nothing fits, or where several outputs could be meant.
    """
    if label is None:
        return _unlabelled(signature)
    if isinstance(label, Mapping) and {"boxes", "classes"} <= set(label):
        return AveragePrecision()
    if isinstance(label, Mapping) and len(label) > 1:
        return MeanAbsoluteError()
    spec = _labelled_output(signature, label)
    values = np.asarray(next(iter(label.values())) if isinstance(label, Mapping) else label)
    make = _fitting(spec, values, signature.task)
    if make is None:
        raise DataError(
            f"no metric fits a label of shape {values.shape} and dtype {values.dtype} with output {spec}",
            hint=f"Choose one with --metric: {', '.join(NAMES)}",
        )
    return (
        _PLAIN[make](_name_if_needed(signature, spec))
        if make != "top1"
        else TopK(1, output=_name_if_needed(signature, spec))
    )


def _name_if_needed(signature: Signature, spec: TensorSpec) -> str | None:
    return spec.name if len(signature.outputs) > 1 else None


def _is_vector(spec: TensorSpec) -> bool:
    return spec.dtype != "bool" and sum(size != 1 for size in spec.shape[1:]) == 1


def _unlabelled(signature: Signature) -> Metric:
    only = signature.outputs[0] if len(signature.outputs) == 1 else None
    if signature.task in ("classification", "other") and only and _is_vector(only):
        return Agreement()
    return SignalToNoise()


def _labelled_output(signature: Signature, label: Any) -> TensorSpec:
    if isinstance(label, Mapping):
        wanted = [spec for spec in signature.outputs if spec.name in label] or list(signature.outputs)
    else:
        values = np.asarray(label)
        wanted = [spec for spec in signature.outputs if _fitting(spec, values, signature.task)]
        wanted = wanted or list(signature.outputs)
    if len(wanted) == 1:
        return wanted[0]
    raise DataError(
        f"the label could belong to any of the outputs {', '.join(spec.name for spec in wanted)}",
        hint=f"Choose one with --metric NAME@OUTPUT, such as top1@{wanted[0].name}",
    )


def _fitting(spec: TensorSpec, label: NDArray[Any], task: str) -> str | None:
    """Return the name of the metric for one output and one label, None where they do not belong together."""
    sizes = tuple(size for size in spec.shape[1:] if size != 1)
    shape = tuple(size for size in label.shape if size != 1)
    whole = label.dtype.kind in "iub"
    if not shape:
        return _fitting_scalar(spec, label, task)
    if whole and len(shape) == 2 and _is_mask(sizes, shape):
        return "miou"
    if len(shape) != len(sizes) or any(a not in (-1, b) for a, b in zip(sizes, shape, strict=True)):
        return None
    return "top1" if len(sizes) == 1 and task != "regression" and is_one_hot(label) else "mae"


def _fitting_scalar(spec: TensorSpec, label: NDArray[Any], task: str) -> str | None:
    value = float(label.reshape(-1)[0]) if label.dtype.kind in "iubf" else float("nan")
    if _is_vector(spec):
        return "top1" if (value.is_integer() and label.dtype.kind in "iub") or task == "classification" else None
    if any(size != 1 for size in spec.shape[1:]):
        return None
    two = value in (0, 1) and (label.dtype.kind in "iub" or task == "classification")
    return "binary" if two and task in ("classification", "other") else "mae"


def _is_mask(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether `sizes` is `shape` with or without one axis of classes, at either end."""

    def fits(part: tuple[int, ...]) -> bool:
        return len(part) == len(shape) and all(a in (-1, b) for a, b in zip(part, shape, strict=True))

    return fits(sizes) or fits(sizes[1:]) or fits(sizes[:-1])


def compare(
    reference: Metric, candidate: Metric, *, confidence: float = 0.95, seed: int = 0
) -> statistics.PairedDifference:
    """Return what `candidate` loses against `reference`, two instances of one metric over the same samples.

    Raises DataError where the metric is not defined for the samples.
    """
    if reference.name != candidate.name or len(reference) != len(candidate):
        raise ValueError(
            f"{reference.name} of {len(reference)} samples and {candidate.name} of {len(candidate)} are no pair"
        )
    reference.value(), candidate.value()  # raise what is wrong with the data before any resampling
    if reference.scores is not None and candidate.scores is not None:
        return statistics.paired_difference(
            reference.scores,
            candidate.scores,
            higher_is_better=reference.higher_is_better,
            confidence=confidence,
            seed=seed,
        )
    return statistics.paired_resampled(
        reference.resample,
        candidate.resample,
        len(reference),
        higher_is_better=reference.higher_is_better,
        confidence=confidence,
        resamples=reference.resamples,
        seed=seed,
    )
