"""Run a converted float flatbuffer against its source on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConversionError
from edge.findings import Finding
from edge.sources.base import LoadedSource
from edge.sources.carrier import check_operators, signature_tensors
from edge.sources.interpret import FloatRunner
from edge.targets.litert import flatbuffer as fb
from edge.targets.litert import learned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# Two float32 implementations of one network differ by rounding: about 1e-7 of the output's range on all the networks
# that were measured, 1e-5 after hundreds of recurrent steps. A wrong weight, axis or padding differs by above 1e-2.
MAX_RELATIVE = 1e-3
MAX_ABSOLUTE = 1e-5
MIN_SNR_DB = 60.0
# Of networks with fake quantization: where a value lies between two steps, rounding of float32 decides which it takes.
MIN_FAKE_QUANTIZED_DB = 30.0
_NEGLIGIBLE = 1e-6  # below this difference the ratio says nothing: the output may be 0 everywhere
# Of integer and Boolean outputs: a tie of two scores may fall the other way.
MIN_EQUAL = 0.999


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one output is from its reference over all samples. `snr_db` is 10 log10(sum ref^2 / sum d^2)."""

    output: str
    max_difference: float
    max_reference: float
    snr_db: float
    equal: float
    exact: bool

    @property
    def accepted(self) -> bool:
        """Whether the difference is rounding."""
        return self.accepted_from(MIN_SNR_DB)

    def accepted_from(self, least_db: float) -> bool:
        """Tell the same for another least ratio; below 60 dB the largest single difference does not count."""
        if self.exact:
            return self.equal >= MIN_EQUAL
        if self.max_difference <= _NEGLIGIBLE:
            return True
        within = self.max_difference <= MAX_RELATIVE * self.max_reference + MAX_ABSOLUTE
        return (within or least_db < MIN_SNR_DB) and self.snr_db >= least_db

    def __str__(self) -> str:
        if self.exact:
            return f"{self.output}: {self.equal:.2%} of the values are equal, accepted from {MIN_EQUAL:.1%}"
        return (
            f"{self.output}: max difference {self.max_difference:.3g} of max {self.max_reference:.3g}, "
            f"SNR {self.snr_db:.1f} dB; accepted to {MAX_RELATIVE:g} of the maximum and from {MIN_SNR_DB:g} dB"
        )


class _Sums:
    def __init__(self) -> None:
        self.worst = self.largest = self.signal = self.noise = 0.0
        self.equal = self.total = 0

    def add(self, reference: Array, result: Array) -> None:
        self.equal += int(np.sum(reference == result))
        self.total += reference.size
        a, b = reference.astype(np.float64), result.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))  # infinities and NaN of the source are its own
        with np.errstate(invalid="ignore"):
            d = np.where(same, 0.0, np.abs(a - b))
        d = np.where(np.isnan(d), np.inf, d)
        a = np.where(np.isfinite(a), a, 0.0)
        self.worst = max(self.worst, float(d.max(initial=0.0)))
        self.largest = max(self.largest, float(np.abs(a).max(initial=0.0)))
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum(d * d))


def compare(
    references: Iterable[Mapping[str, Array]], results: Iterable[Mapping[str, Array]]
) -> tuple[Difference, ...]:
    """Return the difference of each output over all samples. Raises ConversionError for another shape."""
    sums: dict[str, _Sums] = {}
    exact: dict[str, bool] = {}
    for reference, result in zip(references, results, strict=True):
        for name, expected in reference.items():
            actual = result[name]
            if expected.shape != actual.shape:
                raise ConversionError(
                    f"The output {name!r} has shape {list(actual.shape)} in the program and {list(expected.shape)} "
                    "in the source.",
                    hint="A dynamic size was baked in; declare the input's shape.",
                )
            sums.setdefault(name, _Sums()).add(expected, actual)
            exact[name] = not np.issubdtype(expected.dtype, np.floating)
    return tuple(
        Difference(
            output=name,
            max_difference=s.worst,
            max_reference=s.largest,
            snr_db=_decibel(s.signal, s.noise),
            equal=s.equal / s.total if s.total else 1.0,
            exact=exact[name],
        )
        for name, s in sums.items()
    )


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def verify_carrier(loaded: LoadedSource, path: Path, samples: Iterable[Mapping[str, Array]]) -> tuple[Finding, ...]:
    """Check the flatbuffer at `path` against `loaded` on `samples` (inputs by signature name, batch included).

    An output is accepted where its largest difference is at most 1e-3 of its largest reference value + 1e-5 and its
    signal-to-noise ratio at least 60 dB; an integer or Boolean output where 99.9 % of the values are equal. Raises
    ConversionError with the worst output, for a signature that is not the source's, and for operators with state.
    """
    program = path.read_bytes()
    model = fb.load(program, name=str(path))
    check_operators(model, "The converted program")
    inputs, outputs = [t.name for t in loaded.signature.inputs], [t.name for t in loaded.signature.outputs]
    _check_signature(model, inputs, outputs)
    runner = FloatRunner(program, inputs, outputs, kernels="optimized")
    given = list(samples)
    if not given:
        raise ConversionError("The converted program cannot be compared with its source: there are no samples.")
    least = MIN_FAKE_QUANTIZED_DB if learned.carries(model) else MIN_SNR_DB
    accept(compare([loaded.run(s) for s in given], [runner.run(s) for s in given]), len(given), least)
    return _infinities(model)


def accept(differences: Iterable[Difference], samples: int, least_db: float = MIN_SNR_DB) -> None:
    """Raise ConversionError with the worst output where any is not accepted."""
    wrong = [d for d in differences if not d.accepted_from(least_db)]
    if wrong:
        worst = min(wrong, key=lambda d: d.equal if d.exact else d.snr_db)
        raise ConversionError(
            f"The converted program computes something else than the source ({samples} inputs). {worst}.",
            hint="The converter is at fault, or the source keeps state or draws random numbers between calls.",
        )


def _check_signature(model: Any, inputs: list[str], outputs: list[str]) -> None:
    if len(model.signatureDefs or []) != 1:
        raise ConversionError(f"The converted program has {len(model.signatureDefs or [])} signatures instead of 1.")
    found = signature_tensors(model)
    graph = model.subgraphs[0]
    expected = (dict(zip(inputs, graph.inputs, strict=False)), dict(zip(outputs, graph.outputs, strict=False)))
    if [list(f) for f in found] != [inputs, outputs] or found != expected:
        raise ConversionError(
            f"The converted program has inputs {', '.join(found[0])} and outputs {', '.join(found[1])} "
            f"where the source has {', '.join(inputs)} and {', '.join(outputs)}."
        )


def _infinities(model: Any) -> tuple[Finding, ...]:
    graph = fb.graph(model)
    names = []
    for tensor in graph.tensors:
        value = graph.data(tensor.index)
        if value is not None and value.dtype == np.float32 and not np.all(np.abs(value) < 1e30):
            names.append(tensor.name)
    return tuple(
        Finding(
            rule="INFINITE_CONSTANT",
            severity="info",
            op=name,
            message=f"The constant {name!r} holds infinities (an attention mask): integers cannot store them.",
        )
        for name in names
    )
