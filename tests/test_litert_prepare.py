"""Float flatbuffers are brought to one form without changing what they compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.errors import QuantizationError
from edge.signature import Quantization, Signature, TensorSpec
from edge.targets.litert import contract, flatbuffer, prepare, session
from tests.tflite_builder import GraphBuilder, i32

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)


def _run(program: bytes, **inputs: Any) -> dict[str, Any]:
    return session.LiteRTSession(program, kernels="builtin", threads=1).run(inputs)


def _prepared(program: bytes, *, static: bool = True) -> Any:
    model = flatbuffer.load(program)
    prepare.canonical(model, contract.signature_of(model))
    prepare.quantizable(model, static=static)
    return model


def _dense() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    builder.output(builder.fully_connected(x, np.eye(8), np.arange(8)), "y")
    return builder


def test_old_operator_codes_are_read() -> None:
    """A code only in the deprecated field, which ai-edge-quantizer takes for ADD, is copied to the real one."""
    builder = _dense()
    builder.model.operatorCodes[0].builtinCode = 0
    model = _prepared(builder.build())
    assert model.operatorCodes[0].builtinCode == flatbuffer.code_of("FULLY_CONNECTED")


def test_a_signature_is_added_with_the_names_of_the_model() -> None:
    """A file without SignatureDef gets one that carries the signature's names."""
    model = flatbuffer.load(_dense().build(signature=False))
    wanted = Signature(
        inputs=(TensorSpec(name="pixels", shape=(1, 8)),), outputs=(TensorSpec(name="logits", shape=(1, 8)),)
    )
    prepare.canonical(model, wanted)
    assert list(_run(flatbuffer.dump(model), pixels=X)) == ["logits"]


def test_duplicate_tensor_names_become_unique() -> None:
    """Two tensors of one name would share their statistics."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    y = builder.op("TANH", [x], (1, 8), name="same")
    builder.output(builder.op("TANH", [y], (1, 8), name="same"), "y")
    names = [t.name for t in flatbuffer.graph(_prepared(builder.build())).tensors]
    assert len(set(names)) == len(names)


def test_dynamic_batch_becomes_static() -> None:
    """A shape signature of -1 goes where the signature declares fixed shapes."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8), dynamic=(-1, 8))
    builder.output(builder.op("TANH", [x], (1, 8)), "y")
    model = flatbuffer.load(builder.build())
    fixed = Signature(inputs=(TensorSpec(name="x", shape=(1, 8)),), outputs=(TensorSpec(name="y", shape=(1, 8)),))
    prepare.canonical(model, fixed)
    assert all(-1 not in t.signature_shape for t in flatbuffer.graph(model).tensors)


def test_half_precision_weights_become_float32_constants() -> None:
    """DEQUANTIZE of a float16 constant disappears and the outputs stay."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    half = builder.op("DEQUANTIZE", [builder.const("w16", np.eye(8, dtype=np.float16) * 3)], (8, 8))
    builder.output(builder.op("FULLY_CONNECTED", [x, half], (1, 8)), "y")
    program = builder.build()
    model = _prepared(program)
    assert [op.name for op in flatbuffer.graph(model).ops] == ["FULLY_CONNECTED"]
    np.testing.assert_array_equal(_run(flatbuffer.dump(model), x=X)["y"], _run(program, x=X)["y"])


def test_stored_int8_weights_are_restored_to_float() -> None:
    """A weight-only or dynamic-range model is taken as the float model that its stored weights stand for."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    q = Quantization(scale=(0.5,), zero_point=(0,))
    weights = builder.const("w8", np.eye(8, dtype=np.int8) * 4, q)
    builder.output(builder.op("FULLY_CONNECTED", [x, weights], (1, 8), version=4), "y")
    model = _prepared(builder.build())
    np.testing.assert_allclose(_run(flatbuffer.dump(model), x=X)["y"], 2 * X, rtol=1e-6)


def test_squeeze_becomes_reshape() -> None:
    """SQUEEZE, which ai-edge-quantizer leaves float, is the RESHAPE that it equals."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 1, 8))
    builder.output(builder.op("SQUEEZE", [x], (1, 8), squeezeDims=i32([1])), "y")
    model = _prepared(builder.build())
    assert [op.name for op in flatbuffer.graph(model).ops] == ["RESHAPE"]
    np.testing.assert_array_equal(_run(flatbuffer.dump(model), x=X[None])["y"], X)


def test_quantized_model_is_refused() -> None:
    """Integer activations mean that the model is quantized already; the message says what to give instead."""
    q = Quantization(scale=(0.1,), zero_point=(0,))
    builder = GraphBuilder()
    x = builder.input("x", (1, 8), "int8", q)
    builder.output(builder.op("RELU", [x], (1, 8), dtype="int8", quantization=q), "y")
    with pytest.raises(QuantizationError, match="quantized already: 2 tensors") as caught:
        _prepared(builder.build())
    assert "float model" in str(caught.value.hint)


def test_nan_weights_are_refused_by_name() -> None:
    """A NaN in a constant names the constant."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    builder.output(builder.fully_connected(x, np.full((8, 8), np.nan)), "y")
    with pytest.raises(QuantizationError, match="'fc_0/weights' holds NaN"):
        _prepared(builder.build())


def _with_while() -> bytes:
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    builder.output(builder.op("WHILE", [x], (1, 8)), "y")
    schema = flatbuffer.schema()
    operator = builder.graph.operators[0]
    operator.builtinOptionsType = schema.BuiltinOptions.WhileOptions
    operator.builtinOptions = schema.WhileOptionsT()
    operator.builtinOptions.condSubgraphIndex = operator.builtinOptions.bodySubgraphIndex = 0
    return builder.build()


def test_control_flow_is_refused_for_static_recipes() -> None:
    """A WHILE, on which ai-edge-quantizer fails with an internal error, is refused in plain words."""
    with pytest.raises(QuantizationError, match=r"control flow \(WHILE\)") as caught:
        _prepared(_with_while())
    assert "unroll" in str(caught.value.hint).lower()


def test_control_flow_passes_for_weights_only() -> None:
    """Recipes that leave activations float do not calibrate loop bodies, so they may have them."""
    assert [op.name for op in flatbuffer.graph(_prepared(_with_while(), static=False)).ops] == ["WHILE"]
