"""How to quantize: scheme, granularity, range estimator, per-operator overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Scheme = Literal["float32", "float16", "dynamic", "weight-only", "int8", "int8x16"]
InputOutput = Literal["int8", "uint8", "float32"]
Granularity = Literal["channel", "tensor"]
Estimator = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]
WeightEstimator = Literal["minmax", "mse"]
# ptq: TFLite's post-training quantizer, the one of TFLiteConverter; aeq: ai-edge-quantizer.
Quantizer = Literal["ptq", "aeq"]

# Schemes that quantize activations statically and so need calibration data.
STATIC_SCHEMES = frozenset({"int8", "int8x16"})
DEFAULT_PERCENTILE = 99.99
_PER_TENSOR, _WEIGHTS_MSE, _TUNED = "per-tensor", "weights-mse", "tuned"
_EQUALIZED, _ROUNDED, _CORRECTED, _SPLIT = "equalized", "rounded", "corrected", "split outputs"
_ALL = frozenset({_WEIGHTS_MSE, _TUNED, _EQUALIZED, _ROUNDED, _CORRECTED, _SPLIT, *get_args(Quantizer)})
# What each runtime can refine; one that is not here has the estimators of activation ranges at most.
REFINEMENTS: Mapping[str, frozenset[str]] = {
    "litert": _ALL,
    "edgetpu": _ALL,
    "executorch": frozenset({_WEIGHTS_MSE, _EQUALIZED, _CORRECTED}),
}


@dataclass(frozen=True, kw_only=True)
class Override:
    """Another treatment of operators: `tensor` is a regular expression over output tensor names, `operator` a type.

    `scheme` is `float32` (keep float) or one that the runtime takes. Later overrides win.
    """

    operator: str = "*"
    tensor: str = ".*"
    scheme: Scheme = "float32"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to quantize.

    `scheme`: `int8` has int8 activations and weights, int32 biases; `int8x16` int16 activations, int8 weights,
    int64 biases; `dynamic` int8 weights with activations quantized at run time; `weight-only` weights of `weight_bits`
    dequantized at run time; `float16` half-precision weights. `io` is the dtype at the program's ends for `int8`.
    `output_io`, where given, is that of its outputs.
    `per_tensor_operators` are operator types whose weights get one scale whatever the `granularity`.

    For the static schemes: `estimator` chooses activation ranges, `percentile` belongs to the estimator of that name;
    `tune_ranges` then moves the ends of the worst ones by what the outputs lose; `equalize` balances channels between
    layers first; `adaptive_rounding` then chooses for each weight of the worst layers the step above or below it;
    `bias_correction` removes the mean error of each channel afterwards. `split_outputs` gives branches of
    different size that an output joins (boxes and scores) scales of their own. `weights` chooses the step of int8
    weights, per channel or tensor: by the largest one, or with the least squared error.
    `quantizer` is the one that makes the program; None: the first whose program is integer throughout.
    """

    scheme: Scheme = "int8"
    io: InputOutput = "int8"
    output_io: InputOutput | None = None
    split_outputs: bool = False
    weight_bits: Literal[4, 8] = 8
    granularity: Granularity = "channel"
    estimator: Estimator = "minmax"
    overrides: tuple[Override, ...] = field(default=())
    per_tensor_operators: tuple[str, ...] = field(default=())
    percentile: float = DEFAULT_PERCENTILE
    tune_ranges: bool = False
    equalize: bool = False
    bias_correction: bool = False
    weights: WeightEstimator = "minmax"
    adaptive_rounding: bool = False
    quantizer: Quantizer | None = None

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile {self.percentile:g}; accepted: above 50, at most 100")
        if self._refined and self.scheme not in STATIC_SCHEMES:
            raise ValueError(f"{self.scheme} has no activation ranges to estimate, equalize or correct")
        if self.weight_bits == 4 and self.scheme not in ("weight-only", "dynamic"):
            raise ValueError(f"4-bit weights go with weight-only or dynamic, not with {self.scheme}")

    @property
    def needs_calibration(self) -> bool:
        """Whether activation ranges must be known before quantizing."""
        return self.scheme in STATIC_SCHEMES

    @property
    def _refined(self) -> bool:
        return self.corrects or self.estimator != "minmax"

    @property
    def refinements(self) -> frozenset[str]:
        """Return what it changes beyond the ranges of activations, in the words of `REFINEMENTS`."""
        asked = {
            _WEIGHTS_MSE: self.weights != "minmax",
            _TUNED: self.tune_ranges,
            _EQUALIZED: self.equalize,
            _ROUNDED: self.adaptive_rounding,
            _CORRECTED: self.bias_correction,
            _SPLIT: self.split_outputs,
        }
        own = {self.quantizer} if self.quantizer else set()
        return frozenset({name for name, wanted in asked.items() if wanted} | own)

    @property
    def corrects(self) -> bool:
        """Whether it changes more than the ranges of activations, which not all runtimes do."""
        return bool(self.refinements)

    @property
    def kind(self) -> str:
        """The name without refinements, one of `NAMES`: what a target says that it runs."""
        return f"{self.scheme}-4" if self.weight_bits == 4 else self.scheme

    @property
    def name(self) -> str:
        """The short name that `--recipe` takes: `int8`, `weight-only-4`, `int8-percentile-99.9-equalized-corrected`."""
        parts: list[str] = [self.kind]
        if self.granularity == "tensor":
            parts.append(_PER_TENSOR)
        if self.estimator != "minmax":
            parts.append(self.estimator)
        if self.estimator == "percentile" and self.percentile != DEFAULT_PERCENTILE:
            parts.append(f"{self.percentile:g}")
        parts += [_WEIGHTS_MSE] * (self.weights == "mse") + [_TUNED] * self.tune_ranges + [_EQUALIZED] * self.equalize
        parts += [_ROUNDED] * self.adaptive_rounding + [_CORRECTED] * self.bias_correction
        parts += [self.quantizer] if self.quantizer else []
        return "-".join(parts)


NAMES = ("float32", "float16", "dynamic", "dynamic-4", "weight-only", "weight-only-4", "int8", "int8x16")
REFINED = "int8[-per-tensor][-ESTIMATOR][-weights-mse][-tuned][-equalized][-rounded][-corrected][-ptq|-aeq]"
_NAME = re.compile(
    rf"(?P<kind>{'|'.join(sorted(NAMES, key=len, reverse=True))})(?P<tensor>-{_PER_TENSOR})?"
    rf"(?:-(?P<estimator>{'|'.join(get_args(Estimator))}))?(?:(?<=percentile)-(?P<percentile>\d+(?:\.\d+)?))?"
    rf"(?P<weights>-{_WEIGHTS_MSE})?(?P<tuned>-{_TUNED})?(?P<equalized>-{_EQUALIZED})?(?P<rounded>-{_ROUNDED})?"
    rf"(?P<corrected>-{_CORRECTED})?(?:-(?P<quantizer>{'|'.join(get_args(Quantizer))}))?"
)


def named(name: str, *, io: InputOutput = "int8") -> Recipe:
    """Return the recipe of that short name, `int8-mse-equalized` for example; raise ValueError for another one."""
    found = _NAME.fullmatch(name)
    if found is None:
        estimators = ", ".join(get_args(Estimator))
        raise ValueError(
            f"recipe {name!r} is unknown; accepted: {', '.join(NAMES)}, and {REFINED} with ESTIMATOR one of "
            f"{estimators}, or percentile-99.9"
        )
    kind = found["kind"]
    return Recipe(
        scheme=kind.removesuffix("-4"),  # type: ignore[arg-type]
        weight_bits=4 if kind.endswith("-4") else 8,
        io=io,
        granularity="tensor" if found["tensor"] else "channel",
        estimator=found["estimator"] or "minmax",  # type: ignore[arg-type]
        percentile=float(found["percentile"] or DEFAULT_PERCENTILE),
        tune_ranges=bool(found["tuned"]),
        equalize=bool(found["equalized"]),
        bias_correction=bool(found["corrected"]),
        weights="mse" if found["weights"] else "minmax",
        adaptive_rounding=bool(found["rounded"]),
        quantizer=found["quantizer"],  # type: ignore[arg-type]
    )


def lacking(runtime: str, recipe: Recipe, *, searching: bool = False) -> str | None:
    """Return why a runtime cannot make a recipe's refinements, or search for them; None where it can."""
    known = REFINEMENTS.get(runtime, frozenset())
    if searching and not known:
        return f"{runtime} has no form of auto; accepted for: {', '.join(REFINEMENTS)}"
    if odd := sorted(recipe.refinements - known):
        have = [name for name, words in REFINEMENTS.items() if recipe.refinements <= words]
        return f"{runtime} makes no int8 program with {', '.join(odd)}; accepted for: {', '.join(have)}"
    return None
