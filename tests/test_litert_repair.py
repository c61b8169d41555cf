"""Each defect of the quantizers is reproduced with the bare package and gone with the repair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.calibration.ranges import MinMax, Ranges
from edge.errors import QuantizationError, SourceError
from edge.targets.litert import aeq, calibrate, flatbuffer, prepare, quantize, repair, session
from tests.tflite_builder import GraphBuilder, Samples, normal_samples

INT8 = recipes.named("int8")


def _bare(program: bytes, samples: Samples, recipe: recipes.Recipe = INT8) -> bytes:
    """Quantize by ai-edge-quantizer with good ranges, but without any repair."""
    model = flatbuffer.load(program)
    prepare.quantizable(model, static=True)
    plain = flatbuffer.dump(model)
    return aeq.quantize(plain, recipe, calibrate.collect(plain, samples, MinMax()))


def _ours(program: bytes, samples: Samples, recipe: recipes.Recipe = INT8) -> quantize.Quantized:
    return quantize.quantize(flatbuffer.load(program), recipe, samples)


def _error(program: bytes, quantized: bytes, samples: Samples, output: str) -> Any:
    """Return the largest absolute error per value of the last axis, over all samples."""
    source: Any = session.LiteRTSession(program, kernels="builtin", threads=1)
    built: Any = session.LiteRTSession(quantized, kernels="builtin", threads=1)
    width = source.signature.outputs[0].shape[-1]
    differences = [session.run_float(built, s.inputs)[output] - source.run(s.inputs)[output] for s in samples]
    return np.abs(np.concatenate([d.reshape(-1, width) for d in differences])).max(axis=0)


def _attention(fill: float) -> bytes:
    rng = np.random.default_rng(1)
    builder = GraphBuilder()
    x, keep = builder.input("x", (1, 8)), builder.input("keep", (1, 8), "bool")
    scores = builder.fully_connected(x, rng.standard_normal((8, 8)), np.zeros(8))
    mask = builder.const("mask", np.full((1, 8), fill, np.float32))
    masked = builder.op("SELECT_V2", [keep, scores, mask], (1, 8), name="masked")
    builder.output(builder.op("SOFTMAX", [masked], (1, 8)), "p")
    return builder.build()


def _attention_samples() -> Samples:
    rng = np.random.default_rng(2)
    rows = [rng.random((1, 8)) > 0.4 for _ in range(16)]
    return Samples(
        [{"x": rng.standard_normal((1, 8)).astype(np.float32), "keep": row | (np.arange(8) == 0)} for row in rows]
    )


def test_huge_mask_loses_all_scores_without_repair() -> None:
    """The defect: a mask of -3e38 makes one int8 step 1e36, so that all scores are equal."""
    program, samples = _attention(-3e38), _attention_samples()
    assert _error(program, _bare(program, samples), samples, "p").max() > 0.2


@pytest.mark.parametrize("fill", [-3e38, -np.inf])
def test_huge_mask_is_bounded(fill: float) -> None:
    """The repair: masked attention in int8 is within 0.03 of float, and the report says what was done."""
    program, samples = _attention(fill), _attention_samples()
    made = _ours(program, samples)
    assert _error(program, made.program, samples, "p").max() < 0.03
    assert [f.rule for f in made.findings] == ["MASK_BOUNDED"]


def test_bounding_keeps_the_float_outputs() -> None:
    """The bounded mask gives the float outputs of the infinite one to 1e-5."""
    program, samples = _attention(-np.inf), _attention_samples()
    model = flatbuffer.load(program)
    magnitude = repair.patch_masks(model, samples)
    assert magnitude in {2.0**n for n in range(4, 15)}
    assert _error(program, flatbuffer.dump(model), samples, "p").max() < 1e-5


def test_mask_that_reaches_an_output_is_an_error() -> None:
    """Where -inf itself is the output no finite value acts the same, which is said."""
    builder = GraphBuilder()
    x, keep = builder.input("x", (1, 8)), builder.input("keep", (1, 8), "bool")
    mask = builder.const("mask", np.full((1, 8), -np.inf, np.float32))
    builder.output(builder.op("SELECT_V2", [keep, x, mask], (1, 8)), "y")
    with pytest.raises(QuantizationError, match="'mask' holds values beyond"):
        _ours(builder.build(), _attention_samples())


def _recurrent() -> bytes:
    """A model whose output `state` is also read inside the graph, by a concatenation with another scale."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    state = builder.op("TANH", [builder.fully_connected(x, rng.standard_normal((8, 8)), np.zeros(8))], (1, 8), name="h")
    joined = builder.op("CONCATENATION", [state, x], (1, 16))
    builder.output(builder.fully_connected(joined, rng.standard_normal((8, 16)), np.zeros(8)), "y")
    builder.output(state, "state")
    return builder.build()


def _signature_points_right(program: bytes) -> bool:
    model = flatbuffer.load(program)
    targets = [entry.tensorIndex for entry in model.signatureDefs[0].outputs]
    return targets == list(model.subgraphs[0].outputs)


def test_signature_output_points_wrong_without_repair() -> None:
    """The defect: the signature of ai-edge-quantizer's program names another tensor than the subgraph's output."""
    assert not _signature_points_right(_bare(_recurrent(), normal_samples({"x": (1, 8)})))


@pytest.mark.parametrize("scheme", ["int8", "int8x16"])
def test_signature_output_is_mended(scheme: str) -> None:
    """The repair: signature and subgraph agree, and the state read through the signature is right."""
    samples = normal_samples({"x": (1, 8)})
    made = _ours(_recurrent(), samples, recipes.named(scheme))
    assert _signature_points_right(made.program)
    assert _error(_recurrent(), made.program, samples, "state").max() < 0.06


def test_mending_counts_what_was_wrong() -> None:
    """`mend_signature` reports one wrong entry, and none the second time."""
    samples = normal_samples({"x": (1, 8)})
    source, made = flatbuffer.load(_recurrent()), flatbuffer.load(_bare(_recurrent(), samples))
    assert [repair.mend_signature(made, source), repair.mend_signature(made, source)] == [1, 0]


def _dead_channels(scale: float) -> bytes:
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)) * 0.3
    weights[1] *= scale
    builder = GraphBuilder()
    x = builder.input("x", (1, 8, 8, 3))
    builder.output(builder.conv(x, weights, [0.1, 0.7, 0.9, 0.2]), "y")
    return builder.build()


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_dead_channel_loses_its_bias_without_repair(scale: float) -> None:
    """The defect: the int32 bias of a channel with weights of almost 0 overflows and the constant 0.7 is gone."""
    program, samples = _dead_channels(scale), normal_samples({"x": (1, 8, 8, 3)})
    assert _error(program, _bare(program, samples), samples, "y")[1] > 0.5


@pytest.mark.parametrize("scale", [0.0, 1e-9])
@pytest.mark.parametrize("name", ["int8", "int8x16"])
def test_dead_channel_keeps_its_bias(scale: float, name: str) -> None:
    """The repair: its error is no larger than one step of the output, and the others are untouched."""
    program, samples = _dead_channels(scale), normal_samples({"x": (1, 8, 8, 3)})
    made = _ours(program, samples, recipes.named(name))
    found = flatbuffer.graph(flatbuffer.load(made.program)).tensors
    step = next(t.quantization.scale[0] for t in found if t.name == "conv_2d_0" and t.quantization)
    assert _error(program, made.program, samples, "y")[1] <= 1.1 * step + 0.003 * 0.7


def test_healthy_channels_are_not_edited() -> None:
    """Ordinary weights pass unchanged."""
    model = flatbuffer.load(_dead_channels(1.0))
    ranges = Ranges(limits={"x": (-3.0, 3.0)}, samples=1, estimator="minmax")
    assert repair.lift_dead_channels(model, ranges, 255) == 0


def _nan_at(position: int) -> Samples:
    rows = [{"x": np.ones((1, 8), np.float32)} for _ in range(4)]
    rows[position]["x"][0, 3] = np.nan
    return Samples(rows)


def _plain() -> bytes:
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    builder.output(builder.fully_connected(x, np.eye(8), np.zeros(8)), "y")
    return builder.build()


def test_nan_in_calibration_data_is_refused() -> None:
    """NaN in a sample, which both quantizers accept silently, names the sample and the input."""
    from edge.errors import DataError

    with pytest.raises(DataError, match="Calibration sample 3: input 'x' holds NaN"):
        _ours(_plain(), _nan_at(2))


def test_nan_that_the_model_computes_is_refused() -> None:
    """A logarithm of a negative number names its tensor and the sample."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    builder.output(builder.op("LOG", [x], (1, 8), name="log"), "y")
    with pytest.raises(QuantizationError, match="computes nan in tensor 'log' for calibration sample 1"):
        _ours(builder.build(), Samples([{"x": np.full((1, 8), -1, np.float32)}]))


def test_a_generator_is_refused() -> None:
    """One-time iterables, which ai-edge-quantizer exhausts before calibrating, are refused in plain words."""
    from edge.errors import DataError

    generator: Any = iter(normal_samples({"x": (1, 8)}))
    with pytest.raises(DataError, match="one-time list_iterator"):
        quantize.quantize(flatbuffer.load(_plain()), INT8, generator)


@pytest.mark.parametrize(("samples", "words"), [(None, "needs calibration data"), (Samples([]), "has no samples")])
def test_no_calibration_is_refused(samples: Any, words: str) -> None:
    """A static recipe without data, or with none in it, is an error."""
    from edge.errors import DataError

    with pytest.raises(DataError, match=words):
        quantize.quantize(flatbuffer.load(_plain()), INT8, samples)


def test_int16_add_uses_general_scales() -> None:
    """ADD in int16 runs: the schema's default says that its scales are powers of 2, which they are not."""
    builder = GraphBuilder()
    x, y = builder.input("x", (1, 8)), builder.input("y", (1, 8))
    builder.output(builder.op("ADD", [x, y], (1, 8)), "z")
    rng = np.random.default_rng(3)
    samples = Samples(
        [{"x": rng.random((1, 8), np.float32), "y": 9 * rng.random((1, 8), np.float32)} for _ in range(4)]
    )
    made = _ours(builder.build(), samples, recipes.named("int8x16"))
    assert made.coverage.cost == (0, 0)
    assert _error(builder.build(), made.program, samples, "z").max() < 0.002


def test_a_clamp_over_tiny_activations_loads() -> None:
    """ReLU6 over activations of 1e-9 gives an int8 program that LiteRT loads: 6 in steps of the output is an int32."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8, 8, 2))
    weights = np.full((3, 3, 3, 2), 1e-10, np.float32)
    builder.output(builder.conv(x, weights, np.zeros(3), fusedActivationFunction=3), "y")
    program, samples = builder.build(), normal_samples({"x": (1, 8, 8, 2)})
    with pytest.raises(SourceError, match="no_integer_overflow"):
        session.LiteRTSession(_bare(program, samples), kernels="builtin", threads=1)
    made = _ours(program, samples)
    opened = session.LiteRTSession(made.program, kernels="builtin", threads=1)
    assert opened.run({"x": np.ones((1, 8, 8, 2), np.int8)})["y"].shape == (1, 8, 8, 3)
