"""Smaller weights and activations by coremltools, and the same weights in the form that runs here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration.recipe import Recipe
from edge.errors import QuantizationError
from edge.targets.coreml.convert import tools
from edge.targets.torch_common import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

# Smaller tensors stay as they are: their scales would weigh as much as is saved.
_LEAST_ELEMENTS = 512
_LEVELS = 127
# Share of integer weights that must agree for a tensor of the source to be taken for one of the package.
_MATCH = 0.99


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One weight of a package as integers, the same shape as its float form."""

    name: str
    values: Array


def weights(model: Any) -> Any:
    """Return the model with weights of 512 elements or more as int8: symmetric, one scale per output channel.

    Raises QuantizationError where the model has no such weight.
    """
    with tools():
        import coremltools.optimize.coreml as optimize

        settings = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=_LEAST_ELEMENTS
        )
        made = optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=settings))
    if not stored(made):
        raise QuantizationError(
            f"Weight quantization changed nothing: the model has no weight of more than {_LEAST_ELEMENTS} elements.",
            hint="Use the recipe float16.",
        )
    return made


def refuse_activations() -> None:
    """Raise QuantizationError where this host cannot calibrate a Core ML program."""
    if sys.platform != "darwin":
        raise QuantizationError(
            f"Quantizing the activations of a Core ML program means running it, and this is {sys.platform}, not macOS.",
            hint="Build on a Mac, use the recipe weight-only (int8 weights) or float16 here, or "
            "`--runtime executorch` for int8 activations.",
        )


def activations(model: Any, samples: Iterable[Mapping[str, Any]]) -> Any:
    """Return the model with int8 activations, symmetric, ranges from feature dictionaries; macOS only.

    Raises QuantizationError.
    """
    refuse_activations()
    with tools():
        import coremltools.optimize.coreml as optimize
        from coremltools.optimize.coreml import experimental

        settings = experimental.OpActivationLinearQuantizerConfig(mode="linear_symmetric")
        config = optimize.OptimizationConfig(global_config=settings)
        try:
            return experimental.linear_quantize_activations(model, config, list(samples))
        except Exception as error:  # the system's compiler and coremltools each have their own kinds
            raise QuantizationError(
                f"Core ML cannot quantize the activations: {type(error).__name__}: {first_line(error)}",
                hint="Use the recipe weight-only, or minimum_deployment_target iOS17.",
            ) from error


def stored(model: Any) -> tuple[Stored, ...]:
    """Return the integer weights of a model that was just quantized."""
    found = []
    for function in model._mil_program.functions.values():
        for op in function.operations:
            if op.op_type == "constexpr_affine_dequantize":
                found.append(Stored(name=op.name, values=np.asarray(op.quantized_data.val)))
            elif op.op_type == "constexpr_blockwise_shift_scale":
                found.append(Stored(name=op.name, values=np.asarray(op.data.val)))
    return tuple(found)


def emulate(program: Any, held: tuple[Stored, ...], recipe: Recipe) -> tuple[int, int]:
    """Give an exported program, in place, the weights of the package; return how many tensors were found, and not.

    A normalization that the converter folded into a weight scales whole output channels: scales change, integers do not
    (but for their sign), so tensors are recognized by their integers. The others are rounded to float16.
    """
    import torch

    left = list(held)
    state: dict[str, Any] = program.state_dict
    with torch.no_grad():
        for tensor in state.values():
            if not tensor.is_floating_point():
                continue
            rounded = tensor.half().to(tensor.dtype) if recipe.scheme != "float32" else tensor
            at, values = _recognized(tensor.detach().float().numpy(), left)
            if at is not None:
                left.pop(at)
                rounded = torch.from_numpy(values).to(tensor.dtype)
            tensor.copy_(rounded)
    return len(held) - len(left), len(left)


def _recognized(weight: Array, held: list[Stored]) -> tuple[int | None, Array]:
    """Return the index of the stored weight that this one became, and this one quantized in the same way."""
    for axis in range(min(weight.ndim, 2)):
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-30) / _LEVELS
        integers = np.rint(weight / scale)
        for at, one in enumerate(held):
            if any(_agree(form, one.values) for form in _forms(integers)):
                return at, np.asarray(integers * scale, np.float32)
    return None, weight


def _forms(integers: Array) -> Iterator[Array]:
    """Yield a weight as Core ML may store it: as it is, transposed, an LSTM's gates in the order i, f, o, g."""
    yield integers
    if integers.ndim == 2:
        yield integers.T
        if len(integers) % 4 == 0:
            i, f, g, o = np.split(integers, 4)
            yield np.concatenate([i, f, o, g])


def _agree(one: Array, two: Array) -> bool:
    """Tell whether integers agree within one step (halves round differently in float16), signs aside."""
    if one.shape != two.shape:
        return False
    close = np.abs(np.abs(one) - np.abs(two.astype(np.float64))) <= 1
    varied = len(np.unique(np.abs(two))) > 2
    return bool(varied and close.mean() >= _MATCH)
