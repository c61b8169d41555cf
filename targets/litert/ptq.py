"""Quantize by TFLite's own post-training quantizer, which ai-edge-litert carries: the one behind TFLiteConverter.

It works on a finished flatbuffer, needs no TensorFlow, and has integer forms that ai-edge-quantizer lacks (PRELU,
LEAKY_RELU, LSTM, MINIMUM, reductions). It knows the static schemes and no overrides.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.errors import QuantizationError
from edge.targets.litert import contract, flatbuffer

NAME = "litert-post-training"
_EXTENSION = "_pywrap_tensorflow_lite_calibration_wrapper"
# They keep values inside the operator whose ranges only the calibrator's own kernels record.
_WITH_INTERMEDIATES = frozenset({"UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "SVDF"})


def accepts(recipe: Recipe) -> bool:
    """Tell whether this quantizer can follow the recipe."""
    return recipe.needs_calibration and not recipe.overrides


def quantize(program: bytes, recipe: Recipe, ranges: Ranges, samples: Iterable[Any]) -> bytes:
    """Return the quantized flatbuffer of a prepared float one; operators without an integer form stay float.

    `samples` are read again only where the model has recurrent operators. Raises QuantizationError.
    """
    library = _library()
    try:
        model = flatbuffer.load(program)
        if _has_intermediates(model):
            model = flatbuffer.load(_with_intermediate_ranges(library, program, samples))
        _write_ranges(model, ranges)
        # The wrapper points into these bytes and does not own them: without a name here they would be freed under it.
        ready = flatbuffer.dump(model)
        wrapper = library.CalibrationWrapper(ready, [], [])
        wide = recipe.scheme == "int8x16"
        ends = [
            _number(io if io == "float32" or not wide else "int16") for io in (recipe.io, recipe.output_io or recipe.io)
        ]
        per_tensor = recipe.granularity == "tensor"
        made = wrapper.QuantizeModel(
            *ends,
            True,  # operators may stay float: the caller counts and judges them
            _number("int16" if wide else "int8"),
            _number("int64" if wide else "int32"),
            per_tensor,
            per_tensor or "FULLY_CONNECTED" in recipe.per_tensor_operators,  # dense layers have a switch of their own
        )
    except (RuntimeError, ValueError, TypeError) as error:
        lines = list(dict.fromkeys(line.strip() for line in str(error).splitlines() if line.strip()))
        raise QuantizationError(f"{NAME} failed: {' '.join(lines)[:400]}") from error
    return bytes(made)


def _library() -> Any:
    """Return the extension module; where TensorFlow is loaded already, its copy: both register the same types."""
    names = ("tensorflow.lite.python.optimize", "ai_edge_litert")
    failure: ImportError | None = None
    for package in names if "tensorflow" in sys.modules else names[1:]:
        try:
            return importlib.import_module(f"{package}.{_EXTENSION}")
        except ImportError as error:
            failure = error
    raise QuantizationError(f"{NAME} is not in this version of ai-edge-litert: {failure}")


def _number(dtype: str) -> int:
    return np.dtype(dtype).num


def _has_intermediates(model: Any) -> bool:
    return any(op.name in _WITH_INTERMEDIATES for view in flatbuffer.graphs(model) for op in view.ops)


def _with_intermediate_ranges(library: Any, program: bytes, samples: Iterable[Any]) -> bytes:
    extended = bytes(library.AddIntermediateTensors(program))
    names = contract.contract_of(flatbuffer.load(extended)).inputs
    order = sorted(names, key=names.__getitem__)
    wrapper = library.CalibrationWrapper(extended, [], [])
    for sample in samples:
        wrapper.Prepare()  # zeroes the state: samples are independent
        wrapper.FeedTensor([np.asarray(sample.inputs[name]) for name in order])
    return bytes(wrapper.Calibrate())


def _write_ranges(model: Any, ranges: Ranges) -> None:
    graph = model.subgraphs[0]
    for raw in graph.tensors:
        name = flatbuffer.text(raw.name)
        if name not in ranges or raw.isVariable:
            continue
        raw.quantization = flatbuffer.schema().QuantizationParametersT()
        low, high = ranges[name]
        raw.quantization.min, raw.quantization.max = np.asarray([low], np.float32), np.asarray([high], np.float32)
