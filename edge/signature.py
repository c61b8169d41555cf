"""The input and output contract of a model: names, shapes, dtypes, layouts, quantization, pre- and postprocessing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

DTYPES = ("float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")
Layout = Literal["NHWC", "NCHW", "NLC", "NCL", "other"]
Resize = Literal["none", "nearest", "bilinear", "area", "antialias"]
Fit = Literal["stretch", "crop", "letterbox", "corner"]
Colour = Literal["rgb", "bgr", "gray"]
Task = Literal["classification", "regression", "segmentation", "detection", "other"]


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """Affine quantization: real = scale * (stored - zero_point).

    One scale and zero point, or one per index of dimension `axis`.
    Worked number: scale 0.5, zero point -128, stored -126 -> 0.5 * (-126 + 128) = 1.0.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None

    def __post_init__(self) -> None:
        if not self.scale or len(self.scale) != len(self.zero_point):
            raise ValueError(f"{len(self.scale)} scales with {len(self.zero_point)} zero points")
        if not all(math.isfinite(s) and s > 0 for s in self.scale):
            raise ValueError("a quantization scale must be finite and above 0")
        if len(self.scale) > 1 and self.axis is None:
            raise ValueError("per-channel quantization needs its axis")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output. `shape` includes the batch dimension; -1 marks a dimension declared as dynamic."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: Layout = "other"
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name!r} has dtype {self.dtype!r}; accepted: {', '.join(DTYPES)}")
        if any(d < -1 for d in self.shape):
            raise ValueError(f"tensor {self.name!r} has shape {self.shape}")
        if self.layout in ("NHWC", "NCHW") and len(self.shape) != 4:
            raise ValueError(f"tensor {self.name!r} of rank {len(self.shape)} cannot have layout {self.layout}")

    def __str__(self) -> str:
        layout = "" if self.layout == "other" else f" {self.layout}"
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]{layout}"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a raw sample becomes the model's input: value = (raw * scale - mean) / std, in float32.

    Images are first brought to the input's height and width: `resize` names the kernel, `fit` how the aspect ratio is
    treated (`crop`: the centre; `letterbox`: centred and padded with `pad_value`, in raw units; `corner`: the same, but
    at the top left). `colour` is the channel order the model wants. `mean` and `std` have one value, or one per
    channel, in units of raw * scale. See edge.preprocess for the exact arithmetic.
    """

    resize: Resize = "none"
    fit: Fit = "stretch"
    pad_value: float = 0.0
    colour: Colour = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"preprocess scale {self.scale!r} must be finite and not 0")
        if not self.mean or not self.std or any(not math.isfinite(s) or s == 0 for s in self.std):
            raise ValueError("preprocess mean and std need one value, or one per channel, and no std of 0")

    @property
    def is_identity(self) -> bool:
        """Whether numeric values pass unchanged."""
        return self.scale == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The typed inputs and outputs of a model, with the preprocessing per input name.

    `postprocess` is what is declared of the outputs' use, as edge.postprocess_options checks it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Mapping[str, Preprocess] = field(default_factory=dict)
    task: Task = "other"
    labels: tuple[str, ...] = ()
    postprocess: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side in (self.inputs, self.outputs):
            names = [t.name for t in side]
            if not names:
                raise ValueError("a signature needs at least one input and one output")
            if len(set(names)) != len(names):
                raise ValueError(f"tensor names are not unique: {', '.join(names)}")
        if unknown := set(self.preprocess) - {t.name for t in self.inputs}:
            raise ValueError(f"preprocessing for unknown inputs {sorted(unknown)}")

    def input(self, name: str) -> TensorSpec:
        """Return the input of that name; raise KeyError."""
        return next(t for t in self.inputs if t.name == name)

    def preprocess_of(self, name: str) -> Preprocess:
        """Return the preprocessing of an input, the identity where none is declared."""
        return self.preprocess.get(name, Preprocess())

    def with_tensors(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Signature:
        """Return the same contract over other tensors (dtypes and quantization of a built program)."""
        return replace(self, inputs=inputs, outputs=outputs)
