"""How closely one program follows another, output by output; and affine quantization of arrays at a program's ends.

With `stored` values (before dequantization) given, it also tells outputs that do not move, or that hit their range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.calibration.affine import dequantize, step_sizes
from edge.errors import ConversionError
from edge.findings import Finding
from edge.signature import Quantization

Array = NDArray[Any]
Floats = NDArray[np.float64]

CARRIER_MIN_DB = 40.0
# With fake quantization a value between two steps takes either, by the last bit of float32.
FAKE_QUANTIZED_MIN_DB = 30.0
DEAD_MIN_SAMPLES = 8
DEAD_MIN_MOVEMENT = 0.01  # of the reference's largest value: a constant in float may be constant in int8
CLIPPED_MIN_SHARE = 0.01
# Of the largest value: what other kernels change in float32 outputs; and where values on the way are rounded to 8 bits
# or to float16, a step of that. Dynamic programs were seen to differ by 2.8e-3 between CPUs.
_FLOAT_TOLERANCE, _ROUNDED_TOLERANCE = 1e-3, 1e-2
_FLOAT_SCHEMES = ("float32", "weight-only")
_CLIPPED_BY_STEPS = 1.5  # a softmax of 1.0 lies one step beyond int8's end at scale 1/256, by design


def float_tolerance(scheme: str) -> float:
    """Return how far float outputs of a recipe may lie from golden ones on other kernels, as share of the largest."""
    return _FLOAT_TOLERANCE if scheme in _FLOAT_SCHEMES else _ROUNDED_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output over all samples.

    `snr_db` is 10 log10(sum ref^2 / sum (ref - out)^2), None where it is infinite (`identical`), or not defined (an
    all-zero reference, or `mismatched` values that are finite on one side only). `cosine` is None where a side is all
    zero. `end_share` is the share of stored values at an end of their range, `clipped_share` of those whose reference
    lies beyond it; both None for float outputs.
    """

    name: str
    samples: int
    identical: bool
    snr_db: float | None
    cosine: float | None
    max_abs: float
    mismatched: int = 0
    dead: bool = False
    end_share: float | None = None
    clipped_share: float | None = None

    def __str__(self) -> str:
        if self.identical:
            return f"{self.name}: identical"
        ratio = "undefined" if self.snr_db is None else f"{self.snr_db:.1f} dB"
        wrong = f", {self.mismatched} values not finite" if self.mismatched else ""
        return f"{self.name}: signal-to-noise {ratio}, largest difference {self.max_abs:.3g}{wrong}"


class _Sums:
    """Running sums of one output, in float64, over the values that are finite on both sides."""

    def __init__(self) -> None:
        self.signal = self.power = self.noise = self.product = self.max_abs = 0.0
        self.mismatched = 0

    def add(self, reference: Array, candidate: Array) -> None:
        first, second = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.all():
            rest = ~finite
            self.mismatched += int((~np.isclose(first[rest], second[rest], equal_nan=True)).sum())
            first, second = first[finite], second[finite]
        error = first - second
        self.signal += float(first @ first)
        self.power += float(second @ second)
        self.noise += float(error @ error)
        self.product += float(first @ second)
        self.max_abs = max(self.max_abs, float(np.abs(error).max(initial=0.0)))

    @property
    def identical(self) -> bool:
        return self.max_abs == 0 and not self.mismatched

    @property
    def snr_db(self) -> float | None:
        if self.mismatched or self.noise == 0 or self.signal == 0:
            return None
        return 10 * (math.log10(self.signal) - math.log10(self.noise))

    @property
    def cosine(self) -> float | None:
        length = math.sqrt(self.signal) * math.sqrt(self.power)
        return max(-1.0, min(1.0, self.product / length)) if length > 0 else None


class _Stored:
    """What the stored values of one integer output do while the reference moves."""

    def __init__(self, quantization: Quantization | None) -> None:
        self._quantization = quantization
        self._first: Array | None = None
        self._low = self._high = np.zeros(0)
        self._moved = False
        self._distinct: set[bytes] = set()
        self._ends = self._clipped = self._count = 0

    def add(self, stored: Array, reference: Array) -> None:
        real = reference.astype(np.float64)
        if self._first is None:
            self._first, self._low, self._high = stored.copy(), real, real
        self._moved = self._moved or not np.array_equal(stored, self._first)
        self._low, self._high = np.fmin(self._low, real), np.fmax(self._high, real)
        if len(self._distinct) < DEAD_MIN_SAMPLES:
            self._distinct.add(real.tobytes())
        self._count += stored.size
        limits = np.iinfo(stored.dtype)
        at_end = (stored == limits.min) | (stored == limits.max)
        self._ends += int(at_end.sum())
        if self._quantization is not None:
            scale = step_sizes(self._quantization, stored.ndim)
            beyond = np.abs(real - dequantize(stored, self._quantization)) > _CLIPPED_BY_STEPS * scale
            self._clipped += int((at_end & beyond & _outwards(stored, real, self._quantization)).sum())

    @property
    def dead(self) -> bool:
        """Whether the stored values stood still while the reference moved by a visible share of its size."""
        if self._moved or len(self._distinct) < DEAD_MIN_SAMPLES:
            return False
        size = float(max(np.abs(self._low).max(initial=0.0), np.abs(self._high).max(initial=0.0)))
        return float((self._high - self._low).max(initial=0.0)) > DEAD_MIN_MOVEMENT * size

    @property
    def shares(self) -> tuple[float, float | None]:
        """The share of stored values at an end, and of those clipped there."""
        count = max(1, self._count)
        return self._ends / count, None if self._quantization is None else self._clipped / count


def _outwards(stored: Array, real: Floats, quantization: Quantization) -> NDArray[np.bool_]:
    """Tell where the reference lies beyond the end of the range at which the stored value stands."""
    upper = stored == np.iinfo(stored.dtype).max
    held: NDArray[np.bool_] = np.where(
        upper, real > dequantize(stored, quantization), real < dequantize(stored, quantization)
    )
    return held


class Parity:
    """Collects how a candidate's outputs differ from a reference's, sample by sample, in bounded memory.

    `quantization` gives that of the stored outputs by name; it is needed only to tell clipping.
    """

    def __init__(self, quantization: Mapping[str, Quantization | None] | None = None) -> None:
        self._quantization = quantization or {}
        self._sums: dict[str, _Sums] = {}
        self._stored: dict[str, _Stored] = {}
        self._samples = 0

    def update(
        self,
        reference: Mapping[str, Array],
        candidate: Mapping[str, Array],
        stored: Mapping[str, Array] | None = None,
    ) -> None:
        """Take one sample: real-valued outputs of both by name, and the candidate's integers where it has them.

        Raises ConversionError where names or shapes differ.
        """
        if set(reference) != set(candidate):
            raise ConversionError(
                f"the program has the outputs {', '.join(sorted(candidate))}; "
                f"its source has {', '.join(sorted(reference))}"
            )
        for name, expected in reference.items():
            if expected.shape != candidate[name].shape:
                raise ConversionError(
                    f"output {name!r} has shape {candidate[name].shape}; the source gives {expected.shape}"
                )
            self._sums.setdefault(name, _Sums()).add(expected, candidate[name])
            values = (stored or {}).get(name)
            if values is not None and values.dtype.kind in "iu":
                watch = self._stored.setdefault(name, _Stored(self._quantization.get(name)))
                watch.add(values, expected)
        self._samples += 1

    def result(self) -> tuple[OutputParity, ...]:
        """Return one record per output, in the reference's order."""
        return tuple(self._record(name, sums) for name, sums in self._sums.items())

    def _record(self, name: str, sums: _Sums) -> OutputParity:
        watch = self._stored.get(name)
        ends, clipped = watch.shares if watch else (None, None)
        return OutputParity(
            name=name,
            samples=self._samples,
            identical=sums.identical,
            snr_db=sums.snr_db,
            cosine=sums.cosine,
            max_abs=sums.max_abs,
            mismatched=sums.mismatched,
            dead=watch is not None and watch.dead,
            end_share=ends,
            clipped_share=clipped,
        )


def carrier_findings(outputs: Sequence[OutputParity], *, min_db: float = CARRIER_MIN_DB) -> tuple[Finding, ...]:
    """Return an error per output in which a float carrier does not compute what its source computes."""
    return tuple(
        Finding(
            rule="CARRIER_DIFFERS",
            severity="error",
            op=output.name,
            message=f"The converted float program differs from its source in output {output}; "
            f"at least {min_db:g} dB is asked.",
            fix="Try another conversion route, or look for operators that the converter treats differently.",
        )
        for output in outputs
        if not output.identical and (output.snr_db is None or output.snr_db < min_db)
    )


def _dead(output: OutputParity) -> Finding:
    return Finding(
        rule="DEAD_OUTPUT",
        severity="error",
        op=output.name,
        message=f"Output {output.name!r} has the same stored values for {output.samples} differing inputs, "
        "while the float model's values move.",
        fix="Give more varied calibration data; where outputs of different size are joined (boxes and scores), "
        "split them so that each has its own scale.",
    )


def _saturated(output: OutputParity) -> Finding:
    return Finding(
        rule="OUTPUT_SATURATED",
        severity="warning",
        op=output.name,
        message=f"{output.clipped_share or 0:.1%} of the values of output {output.name!r} are cut off "
        "at an end of their range.",
        fix="Calibrate with data that covers the range of the inputs, or with the minmax estimator.",
    )


def output_findings(outputs: Sequence[OutputParity]) -> tuple[Finding, ...]:
    """Return the findings about the stored values of a quantized program's outputs."""
    dead = [_dead(output) for output in outputs if output.dead]
    return (*dead, *(_saturated(output) for output in outputs if (output.clipped_share or 0) > CLIPPED_MIN_SHARE))
