"""Quantize by ai-edge-quantizer, with ranges of our own: its default calibration is a moving average that clips."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Override, Recipe, Scheme
from edge.errors import MissingPackageError, QuantizationError
from edge.targets.litert import flatbuffer

if TYPE_CHECKING:
    from edge.calibration.recipe import Granularity

NAME = "ai-edge-quantizer"
_ENDS = ("INPUT", "OUTPUT")
# Where the quantizer's name of an operator is not the flatbuffer's.
_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}


def quantize(program: bytes, recipe: Recipe, ranges: Ranges | None) -> bytes:
    """Return the quantized flatbuffer of a prepared float one; `ranges` is needed by the static schemes.

    Operators that the package does not know stay float without a word: see `coverage`. Raises QuantizationError.
    """
    try:
        from ai_edge_quantizer import quantizer
    except ImportError as error:
        raise MissingPackageError(
            "Quantizing needs the package ai-edge-quantizer, which is not installed.",
            hint="pip install 'edgekit[litert]'",
        ) from error
    try:
        made = quantizer.Quantizer(program)
        _add_scheme(made, "*", ".*", recipe.scheme, recipe.weight_bits, recipe.granularity, number=0)
        for operator in recipe.per_tensor_operators:
            _add_scheme(made, operator, ".*", recipe.scheme, recipe.weight_bits, "tensor", number=0)
        for number, override in enumerate(recipe.overrides, start=1):
            _add_override(made, override, recipe, _written(program, override), number)
        _add_ends(made, recipe)
        statistics = None if ranges is None else _statistics(program, ranges)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own interpreter, and of bias overflow: `repair.widen_scales`
            result = made.quantize(statistics, enable_progress_bar=False, enable_progress_report=False)
    except QuantizationError:
        raise
    except Exception as error:  # the package raises what its internals raise
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise QuantizationError(
            f"{NAME} failed: {first.strip()[:400]}", hint="Keep the named operator float with an override."
        ) from error
    return bytes(result.quantized_model)


def _scope(regex: str, number: int) -> str:
    """Make the regular expression unique: the package orders rules by expression, and the last one must win."""
    return f"(?:{regex})(?#{number:04d})"


def _operator(name: str) -> Any:
    from ai_edge_quantizer import qtyping

    try:
        return qtyping.TFLOperationName(_NAMES.get(name, name))
    except ValueError:
        return None


def _written(program: bytes, override: Override) -> str:
    """Return an expression for the outputs of the operators that an override matches.

    The package searches in all output names of an operator, each followed by `;`: a user's `^name$` would never match.
    """
    if override.tensor == ".*":
        return ".*"
    views = flatbuffer.graphs(flatbuffer.load(program))
    names = {v.tensors[op.outputs[0]].name for v in views for op in v.ops if op.outputs}
    matching = sorted(re.escape(name) for name in names if re.search(override.tensor, name))
    return f"^(?:{'|'.join(matching)});" if matching else "(?!)"


def _add_override(made: Any, override: Override, recipe: Recipe, scope: str, number: int) -> None:
    if _operator(override.operator) is None:
        if override.scheme == "float32":
            return  # unknown to the package: it stays float anyway
        raise QuantizationError(
            f"{NAME} has no integer form of {override.operator}, for which an override asks {override.scheme}."
        )
    _add_scheme(made, override.operator, scope, override.scheme, 8, recipe.granularity, number=number)


def _add_scheme(
    made: Any, operator: str, regex: str, scheme: Scheme, bits: int, granularity: Granularity, *, number: int
) -> None:
    from ai_edge_quantizer import qtyping

    scope, name = _scope(regex, number), _operator(operator)
    weights = qtyping.QuantGranularity.TENSORWISE if granularity == "tensor" else qtyping.QuantGranularity.CHANNELWISE
    if scheme == "float32":
        made.update_quantization_recipe(scope, name, algorithm_key="no_quantize")
    elif scheme == "float16":
        made.add_weight_only_config(scope, name, 16, algorithm_key="float_casting")
    elif scheme in ("int8", "int8x16"):
        made.add_static_config(scope, name, 8 if scheme == "int8" else 16, 8, weights)
    else:
        add = made.add_dynamic_config if scheme == "dynamic" else made.add_weight_only_config
        add(scope, name, 8, weights)
        if bits == 4:  # operators without a 4-bit form fall back to the 8-bit rule before
            add(f"{scope}(?#4)", name, 4, weights)


def _add_ends(made: Any, recipe: Recipe) -> None:
    from ai_edge_quantizer import qtyping

    if recipe.scheme not in ("int8", "int8x16"):
        return
    for number, (end, io) in enumerate(zip(_ENDS, (recipe.io, recipe.output_io or recipe.io), strict=True)):
        scope = _scope(".*", 9000 + number)
        if io == "float32":
            made.update_quantization_recipe(scope, qtyping.TFLOperationName(end), algorithm_key="no_quantize")
        elif io == "uint8" and recipe.scheme == "int8":
            unsigned = qtyping.TensorQuantizationConfig(8, symmetric=False, dtype=qtyping.TensorDataType.UINT)
            config = qtyping.OpQuantizationConfig(
                activation_tensor_config=unsigned,
                weight_tensor_config=qtyping.TensorQuantizationConfig(8, symmetric=True),
                compute_precision=qtyping.ComputePrecision.INTEGER,
            )
            made.update_quantization_recipe(scope, qtyping.TFLOperationName(end), config)


def _statistics(program: bytes, ranges: Ranges) -> dict[str, dict[str, Any]]:
    """Return the ranges as the package wants them: arrays of the tensor's rank, each of one element."""
    made = {}
    for tensor in flatbuffer.graph(flatbuffer.load(program)).tensors:
        if tensor.name in ranges:
            ones = (1,) * len(tensor.shape)
            low, high = (np.full(ones, value, np.float32) for value in ranges[tensor.name])
            made[tensor.name] = {"min": low, "max": high}
    return made
