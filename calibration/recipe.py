"""How to quantize: scheme, granularity, range estimator, per-operator overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Scheme = Literal["float32", "float16", "dynamic", "weight-only", "int8", "int8x16"]
InputOutput = Literal["int8", "uint8", "float32"]
Granularity = Literal["channel", "tensor"]
Estimator = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]

# Schemes that quantize activations statically and so need calibration data.
STATIC_SCHEMES = frozenset({"int8", "int8x16"})


@dataclass(frozen=True, kw_only=True)
class Override:
    """Another treatment of some operators: `tensor` is a regular expression over output tensor names, `operator` a type.

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
    `per_tensor_operators` are operator types whose weights get one scale whatever the `granularity`.
    """

    scheme: Scheme = "int8"
    io: InputOutput = "int8"
    weight_bits: Literal[4, 8] = 8
    granularity: Granularity = "channel"
    estimator: Estimator = "minmax"
    overrides: tuple[Override, ...] = field(default=())
    per_tensor_operators: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.weight_bits == 4 and self.scheme not in ("weight-only", "dynamic"):
            raise ValueError(f"4-bit weights go with weight-only or dynamic, not with {self.scheme}")

    @property
    def needs_calibration(self) -> bool:
        """Whether activation ranges must be known before quantizing."""
        return self.scheme in STATIC_SCHEMES

    @property
    def name(self) -> str:
        """The short name that `--recipe` takes: `int8`, `int8x16`, `weight-only-4`, `int8-percentile`."""
        parts: list[str] = [self.scheme]
        if self.weight_bits == 4:
            parts.append("4")
        if self.granularity == "tensor":
            parts.append("per-tensor")
        if self.estimator != "minmax":
            parts.append(self.estimator)
        return "-".join(parts)


NAMES = ("float32", "float16", "dynamic", "dynamic-4", "weight-only", "weight-only-4", "int8", "int8x16")


def named(name: str, *, io: InputOutput = "int8") -> Recipe:
    """Return the recipe of that short name; raise ValueError for a name not in `NAMES`."""
    if name not in NAMES:
        raise ValueError(f"recipe {name!r} is unknown; accepted: {', '.join(NAMES)}")
    bits: Literal[4, 8] = 4 if name.endswith("-4") else 8
    scheme = name.removesuffix("-4")
    return Recipe(scheme=scheme, weight_bits=bits, io=io)  # type: ignore[arg-type]
