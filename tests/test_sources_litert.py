"""Float `.tflite` files as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ConfigError, ConversionError, SourceError
from edge.signature import Quantization
from edge.sources import registry
from edge.sources.base import Declaration, InputDeclaration, LoadedSource
from edge.sources.verify import verify_carrier
from edge.targets.litert import flatbuffer as fb
from tests.tflite_builder import GraphBuilder

MODELS = Path(__file__).resolve().parents[1] / "../shared/models"
needs_models = pytest.mark.skipif(not MODELS.exists(), reason="the shared models are not here")


def rules(loaded: LoadedSource) -> set[str]:
    """Return the rule ids of a source's findings."""
    return {f.rule for f in loaded.findings}


def close(result: Any, expected: Any) -> None:
    """Assert equality up to float32 rounding."""
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def dense(tmp_path: Path, *, signature: bool = True, open_batch: bool = False) -> str:
    """Write y = relu-free W x + b with W of shape [2, 3]."""
    builder = GraphBuilder()
    x = builder.input("serving_default_x:0", (1, 3), dynamic=(-1, 3) if open_batch else None)
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    builder.output(builder.fully_connected(x, weights, [1.0, 2.0]), "y")
    path = tmp_path / "dense.tflite"
    path.write_bytes(builder.build(signature=signature))
    return str(path)


def test_run_computes_the_model(tmp_path: Path) -> None:
    """The reference outputs are the file's: W x + b."""
    loaded = registry.load(dense(tmp_path))
    name = loaded.signature.inputs[0].name
    result = loaded.run({name: np.array([[1, 2, 3]], np.float32)})
    close(result["y"], [[1 * 2 + 2 * 3 + 1, 3 + 8 + 15 + 2]])


def test_names_without_a_signature_come_from_the_tensors(tmp_path: Path) -> None:
    """What converters add to tensor names is taken off: serving_default_x:0 is x."""
    loaded = registry.load(dense(tmp_path, signature=False))
    assert loaded.signature.inputs[0].name == "x"


def test_declared_names_are_in_the_carrier(tmp_path: Path) -> None:
    """Declared output names reach the signature and the graph of the written flatbuffer."""
    loaded = registry.load(dense(tmp_path, signature=False), Declaration(outputs=("logits",)))
    loaded.to_litert(tmp_path / "out.tflite")
    model = fb.load(tmp_path / "out.tflite")
    names = [fb.text(e.name) for e in (*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs)]
    assert names == ["x", "logits"]
    graph = fb.graph(model)
    assert [graph.tensors[i].name for i in (*graph.inputs, *graph.outputs)] == ["x", "logits"]


def test_open_batch_becomes_one(tmp_path: Path) -> None:
    """A batch of -1 is fixed to 1 in every tensor, with a finding."""
    loaded = registry.load(dense(tmp_path, open_batch=True))
    loaded.to_litert(tmp_path / "out.tflite")
    graph = fb.graph(fb.load(tmp_path / "out.tflite"))
    assert "BATCH_FIXED" in rules(loaded)
    assert not any(-1 in t.signature_shape for t in graph.tensors)


def elementwise(tmp_path: Path) -> str:
    """Write y = x + x for x of open length."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 1), dynamic=(1, -1))
    builder.output(builder.op("ADD", [x, x], (1, 1)), "y")
    path = tmp_path / "open.tflite"
    path.write_bytes(builder.build())
    return str(path)


def test_open_dimension_needs_a_declared_shape(tmp_path: Path) -> None:
    """An open dimension other than the batch names the input and how to declare it."""
    with pytest.raises(ConfigError, match=r"'x' has the open or empty shape \[1, -1\]") as caught:
        registry.load(elementwise(tmp_path))
    assert "--shape x=1,N" in (caught.value.hint or "")


def test_declared_shape_reaches_every_tensor(tmp_path: Path) -> None:
    """With a declared length, the outputs have that length in the signature and when the carrier runs."""
    wish = Declaration(inputs={"0": InputDeclaration(shape=(1, 5))})
    loaded = registry.load(elementwise(tmp_path), wish)
    loaded.to_litert(tmp_path / "out.tflite")
    sample = {"x": np.ones((1, 5), np.float32)}
    assert loaded.signature.outputs[0].shape == (1, 5)
    assert verify_carrier(loaded, tmp_path / "out.tflite", [sample]) == ()


def test_shape_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """A declared shape must agree with the fixed dimensions."""
    with pytest.raises(ConfigError, match=r"declared as \[1, 4\]; the model takes \[1, 3\]"):
        registry.load(dense(tmp_path), Declaration(inputs={"0": InputDeclaration(shape=(1, 4))}))


def test_unknown_input_and_wrong_output_count_are_refused(tmp_path: Path) -> None:
    """Declarations of what is not there list what is there."""
    with pytest.raises(ConfigError, match="has no input 'image'; its inputs are serving_default_x:0"):
        registry.load(dense(tmp_path), Declaration(inputs={"image": InputDeclaration()}))
    with pytest.raises(ConfigError, match="the model has 1: y"):
        registry.load(dense(tmp_path), Declaration(outputs=("a", "b")))


def stored_weights(tmp_path: Path, weights: Any, quantization: Quantization | None) -> str:
    """Write a FULLY_CONNECTED whose weights pass a DEQUANTIZE operator."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 3))
    stored = builder.const("w", weights, quantization)
    real = builder.op("DEQUANTIZE", [stored], weights.shape)
    builder.output(builder.op("FULLY_CONNECTED", [x, real], (1, len(weights))), "y")
    path = tmp_path / "stored.tflite"
    path.write_bytes(builder.build())
    return str(path)


def test_float16_weights_are_used_as_float32(tmp_path: Path) -> None:
    """DEQUANTIZE of float16 constants goes; the values stay."""
    weights = np.array([[0.5, 1.25, -2.0], [3.0, 0.125, 8.0]], np.float16)
    loaded = registry.load(stored_weights(tmp_path, weights, None))
    loaded.to_litert(tmp_path / "out.tflite")
    graph = fb.graph(fb.load(tmp_path / "out.tflite"))
    assert [op.name for op in graph.ops] == ["FULLY_CONNECTED"]
    assert "WEIGHTS_EXPANDED" in rules(loaded)
    close(loaded.run({"x": np.ones((1, 3), np.float32)})["y"], [[-0.25, 11.125]])


def test_int8_weights_are_used_as_their_real_values(tmp_path: Path) -> None:
    """The real value is scale * (stored - zero point), per channel."""
    q = Quantization(scale=(0.5, 0.25), zero_point=(0, 0), axis=0)
    weights = np.array([[2, 4, -6], [8, 0, 1]], np.int8)
    loaded = registry.load(stored_weights(tmp_path, weights, q))
    close(loaded.run({"x": np.ones((1, 3), np.float32)})["y"], [[0.0, 2.25]])


def test_int4_weights_are_unpacked(tmp_path: Path) -> None:
    """Two values share a byte, the first in the low half, both with sign."""
    q = Quantization(scale=(0.5,), zero_point=(0,))
    packed = np.array([(-3 & 15) << 4 | 7, (1 << 4) | (-8 & 15), (0 << 4) | 2], np.uint8).view(np.int8)
    location = Path(stored_weights(tmp_path, packed.reshape(1, 3), q))
    model = fb.load(location)
    weights = next(t for t in model.subgraphs[0].tensors if t.name == b"w")
    weights.type, weights.shape = fb.dtype_code("int4"), [2, 3]
    real = next(t for t in model.subgraphs[0].tensors if t.name.startswith(b"dequantize"))
    real.shape = [2, 3]
    model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].shape = [1, 2]
    location.write_bytes(fb.dump(model))
    # Stored: [[7, -3, -8], [1, 2, 0]], halved.
    close(registry.load(str(location)).run({"x": np.array([[1, 10, 100]], np.float32)})["y"], [[-411.5, 10.5]])


def test_quantized_activations_are_refused(tmp_path: Path) -> None:
    """A file with integer activations is no source for a build."""
    builder = GraphBuilder()
    q = Quantization(scale=(0.1,), zero_point=(0,))
    x = builder.input("x", (1, 3), "int8", q)
    builder.output(builder.op("ADD", [x, x], (1, 3), dtype="int8", quantization=q), "y")
    path = tmp_path / "int8.tflite"
    path.write_bytes(builder.build())
    with pytest.raises(SourceError, match=r"already quantized: its activations are int8"):
        registry.load(str(path))


@pytest.mark.parametrize(
    ("custom", "part"),
    [
        ("FlexErf", "FlexErf: a TensorFlow operator"),
        ("MyOp", "MyOp: a custom operator"),
        ("edgetpu-custom-op", "is compiled for the Edge TPU already"),
    ],
)
def test_foreign_operators_are_listed(tmp_path: Path, custom: str, part: str) -> None:
    """Flex, custom and compiled operators each are named."""
    builder = GraphBuilder()
    builder.output(builder.op("CUSTOM", [builder.input("x", (1, 3))], (1, 3), custom=custom), "y")
    path = tmp_path / "custom.tflite"
    path.write_bytes(builder.build())
    with pytest.raises(SourceError, match=part):
        registry.load(str(path))


def test_one_of_several_signatures_is_chosen(tmp_path: Path) -> None:
    """Of several signatures serving_default is built with a finding, a declared one without; others are refused."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 2))
    builder.output(builder.op("ADD", [x, x], (1, 2)), "y")
    builder.build()
    first = builder.model.signatureDefs[0]
    second = builder._signature()
    second.signatureKey = b"other"
    second.outputs[0].name = b"z"
    builder.model.signatureDefs = [second, first]
    path = tmp_path / "two.tflite"
    path.write_bytes(fb.dump(builder.model))
    loaded = registry.load(str(path))
    assert ("y", {"SIGNATURE_CHOSEN"}) == (loaded.signature.outputs[0].name, rules(loaded))
    declared = registry.load(str(path), Declaration(signature="other"))
    assert ("z", set()) == (declared.signature.outputs[0].name, rules(declared))
    with pytest.raises(SourceError, match="no signature 'third'; it has other, serving_default"):
        registry.load(str(path), Declaration(signature="third"))


def test_a_batch_that_the_file_does_not_take_is_an_error(tmp_path: Path) -> None:
    """Two samples at once do not pass for one."""
    loaded = registry.load(dense(tmp_path))
    with pytest.raises(ConversionError, match="cannot run"):
        loaded.run({loaded.signature.inputs[0].name: np.ones((2, 3), np.float32)})


@needs_models
@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("negative-cases/attrnn_kws_flex_ops.tflite", "FlexTensorListReserve: a TensorFlow operator"),
        ("negative-cases/micro_speech_audio_preprocessor_float_custom_ops.tflite", "SignalRfft: a custom operator"),
        ("negative-cases/person_detect_bad_quantized_dimension.tflite", "has 8 scales on axis 3"),
        ("tflm-hello-world/hello_world_int8.tflite", "already quantized"),
        ("mlperf-vww-mobilenet/vww_96_int8.tflite", "already quantized"),
        ("tflm-mnist-lstm/trained_lstm_int8.tflite", "already quantized"),
    ],
)
def test_real_files_that_cannot_be_built(file: str, part: str) -> None:
    """Published files with foreign operators, damage or integer activations are refused with the reason."""
    with pytest.raises(SourceError, match=part):
        registry.load(str(MODELS / file))


@needs_models
@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("mlperf-vww-mobilenet/vww_96_float.tflite", {"BATCH_FIXED"}),
        ("mlperf-kws-dscnn/kws_ref_model_float32.tflite", {"BATCH_FIXED", "WEIGHTS_EXPANDED"}),
        ("mediapipe-face-tflite/face_detection_short_range.tflite", {"WEIGHTS_EXPANDED"}),
        ("tflm-mnist-lstm/trained_lstm.tflite", {"STATE_RESET"}),
    ],
)
def test_real_float_files_are_carriers(tmp_path: Path, file: str, found: set[str]) -> None:
    """Published float files load with the findings that they deserve and equal their carrier."""
    loaded = registry.load(str(MODELS / file))
    loaded.to_litert(tmp_path / "out.tflite")
    random = np.random.default_rng(0)
    samples = [{t.name: random.random(t.shape, np.float32) for t in loaded.signature.inputs} for _ in range(2)]
    assert found == rules(loaded)
    assert verify_carrier(loaded, tmp_path / "out.tflite", samples) == ()


def quantized(tmp_path: Path) -> str:
    """Write y = W x + b in int8 between QUANTIZE and DEQUANTIZE; W is [[1, -2]] at scale 0.5, b 3 at scale 0.125."""
    builder = GraphBuilder()
    q = Quantization(scale=(0.25,), zero_point=(-3,))
    x = builder.op("QUANTIZE", [builder.input("x", (1, 2))], (1, 2), dtype="int8", quantization=q)
    weights = builder.const("w", np.array([[2, -4]], np.int8), Quantization(scale=(0.5,), zero_point=(0,)))
    bias = builder.const("b", np.array([24], np.int32), Quantization(scale=(0.125,), zero_point=(0,)))
    y = builder.op("FULLY_CONNECTED", [x, weights, bias], (1, 1), dtype="int8", quantization=q)
    builder.output(builder.op("DEQUANTIZE", [y], (1, 1)), "y")
    (tmp_path / "q.tflite").write_bytes(builder.build())
    return str(tmp_path / "q.tflite")


def test_a_quantized_file_is_read_as_float_when_asked(tmp_path: Path) -> None:
    """Without the wish it is refused with the way out; with it each stored value is its real one, biases too."""
    with pytest.raises(SourceError, match="already quantized") as caught:
        registry.load(quantized(tmp_path))
    assert "--dequantize" in (caught.value.hint or "")
    loaded = registry.load(quantized(tmp_path), Declaration(dequantize=True))
    assert rules(loaded) == {"DEQUANTIZED"}
    carrier = tmp_path / "c.tflite"
    loaded.to_litert(carrier)
    assert [op.name for op in fb.graph(fb.load(carrier)).ops] == ["FULLY_CONNECTED"]
    close(loaded.run({"x": np.array([[1.1, 0.3]], np.float32)})["y"], [[1.1 - 2 * 0.3 + 3]])


@needs_models
def test_an_integer_lstm_stays_refused() -> None:
    """Steps that only the integer form has are not undone."""
    with pytest.raises(SourceError, match="integer UNIDIRECTIONAL_SEQUENCE_LSTM"):
        registry.load(str(MODELS / "tflm-mnist-lstm/trained_lstm_int8.tflite"), Declaration(dequantize=True))
