"""Adaptive rounding and weight steps with the least squared error: their arithmetic, and what they do to programs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.calibration import noise, rounding
from edge.calibration import recipe as recipes
from edge.calibration import weights as steps
from edge.targets.litert import flatbuffer, patches, probe, quantize, session
from edge.targets.litert import rounding as programs
from tests.refine_models import SHAPE, ConvNet, conv_net
from tests.tflite_builder import GraphBuilder, Samples, normal_samples

RELU, NONE = 1, 0


def _rows(*, depthwise: bool = False, count: int = 1024, levels: int = 8) -> rounding.Layer:
    """A layer with correlated inputs, as images have them, and coarse steps."""
    rng = np.random.default_rng(0)
    width = 16 * 9 if depthwise else 48
    x = np.maximum(rng.standard_normal((count, 6)) @ rng.standard_normal((6, width)), 0).astype(np.float32)
    weights = rng.standard_normal((16, 9 if depthwise else 48)).astype(np.float32)
    layer = rounding.Layer(
        inputs=x.reshape(count, 16, 9) if depthwise else x,
        wanted=np.zeros((count, 16), np.float32),
        weights=weights,
        step=(np.abs(weights).max(axis=1) * levels / 127).astype(np.float32),
        bias=rng.standard_normal(16).astype(np.float32),
        low=0.0,
        high=np.inf,
    )
    return replace(layer, wanted=np.maximum(layer.outputs(weights, slice(None)), 0))


@pytest.mark.parametrize("depthwise", [False, True])
def test_adapted_steps_keep_outputs_better_than_the_nearest(depthwise: bool) -> None:
    """On rows that took no part, the squared error falls; every code is the step above or below its weight."""
    layer = _rows(depthwise=depthwise)
    found, nearest = rounding.adapt(layer), rounding.nearest(layer)
    held = np.arange(0, 1024, 4)
    assert layer.errors(found, held).sum() < (0.97 if depthwise else 0.8) * layer.errors(nearest, held).sum()
    assert np.abs(found - layer.weights / layer.step[:, None]).max() <= 1 + 1e-4
    assert np.array_equal(found, rounding.adapt(layer))


def test_channels_that_do_not_gain_keep_the_nearest_steps() -> None:
    """Where weights stand on their steps already, nothing changes."""
    layer = _rows()
    exact = (rounding.nearest(layer) * layer.step[:, None]).astype(np.float32)
    ready = replace(layer, weights=exact, wanted=np.maximum(layer.outputs(exact, slice(None)), 0))
    assert np.array_equal(rounding.adapt(ready), rounding.nearest(ready))


@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=40), st.floats(1, 60))
@settings(max_examples=60)
def test_weight_thresholds_never_err_more_than_the_largest_weight(values: list[float], outlier: float) -> None:
    """The threshold found lies within the row, and its steps err at most as much as those of the largest weight."""
    row = np.asarray([[*values, outlier]], np.float64)
    limit = steps.mse_thresholds(row)

    def error(threshold: float) -> float:
        step = max(threshold, 1e-30) / 127
        return float(((row - np.clip(np.round(row / step), -127, 127) * step) ** 2).sum())

    assert 0 < limit[0] <= np.abs(row).max()
    assert error(float(limit[0])) <= error(float(np.abs(row).max()))


def test_one_outlier_among_many_weights_is_cut_off() -> None:
    """4,000 weights within +-1 and one of 1.5: the step follows the many; without the outlier nothing is cut."""
    many = np.random.default_rng(0).uniform(-1, 1, 4000)
    assert steps.mse_thresholds(np.append(many, 1.5)[None])[0] < 1.49
    assert steps.mse_thresholds(np.full((1, 8), 0.5))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_rows_of_a_layer_give_its_outputs(kind: str, padding: int) -> None:
    """Rows times weights are what the kernel computes, for stride, dilation and padding."""
    rng = np.random.default_rng(1)
    builder = GraphBuilder()
    if kind == "FULLY_CONNECTED":
        x = builder.input("x", (3, 7))
        builder.output(builder.fully_connected(x, rng.standard_normal((5, 7)), name="out"), "y")
    else:
        x = builder.input("x", (1, 9, 8, 4))
        shape = (6, 3, 2, 4) if kind == "CONV_2D" else (1, 3, 2, 8)
        weights = builder.const("w", rng.standard_normal(shape).astype(np.float32))
        bias = builder.const("b", np.zeros(6 if kind == "CONV_2D" else 8, np.float32))
        height, width = (5, 8) if padding == 0 else (3, 7)
        options: dict[str, Any] = {"padding": padding, "strideH": 2, "strideW": 1, "dilationHFactor": 2}
        options["dilationWFactor"] = 1
        options |= {"depthMultiplier": 2} if kind == "DEPTHWISE_CONV_2D" else {}
        out = builder.op(kind, [x, weights, bias], (1, height, width, shape[0] if kind == "CONV_2D" else 8), **options)
        builder.output(out, "y")
    graph = flatbuffer.graph(flatbuffer.load(builder.build()))
    op = graph.ops[0]
    values = rng.standard_normal(graph.tensors[op.inputs[0]].shape).astype(np.float32)
    opened = session.LiteRTSession(builder.build(), kernels="reference", threads=1)
    wanted = next(iter(opened.run({"x": values}).values()))
    positions = np.arange(int(np.prod(wanted.shape[:-1])))
    rows: Any = patches.rows(graph, op, values, wanted.shape, positions)
    kernel: Any = graph.data(op.inputs[1])
    axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
    flat = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    made = np.einsum("nck,ck->nc", rows, flat) if rows.ndim == 3 else rows @ flat.T
    assert patches.is_plain(graph, op)
    assert rows[0].size == patches.row_size(graph, op)
    np.testing.assert_allclose(made, wanted.reshape(made.shape), rtol=1e-4, atol=1e-5)


def _quantized(program: bytes, name: str, samples: Samples) -> quantize.Quantized:
    return quantize.quantize(flatbuffer.load(program), recipes.named(name), samples)


def _codes(program: bytes) -> dict[str, Any]:
    graph = flatbuffer.graph(flatbuffer.load(program))
    return {t.name: graph.data(t.index) for t in graph.tensors if t.dtype == "int8" and t.is_constant}


def test_rounding_a_program_changes_only_weights_by_one_step() -> None:
    """One scale per tensor leaves coarse steps for small channels; adapting them brings the outputs closer."""
    program = conv_net(ConvNet(centred=True))
    samples = normal_samples({"x": SHAPE}, count=120)
    plain = _quantized(program, "int8-per-tensor", samples)
    made = _quantized(program, "int8-per-tensor-rounded", samples)
    said = made.details["adaptive_rounding"]
    assert said["kept"]
    assert said["weights_changed"] > 0
    before, after = (_codes(p.program) for p in (plain, made))
    assert before.keys() == after.keys()
    assert max(np.abs(before[n].astype(int) - after[n].astype(int)).max() for n in before) == 1
    fresh = [{"x": v} for v in np.random.default_rng(9).standard_normal((40, *SHAPE)).astype(np.float32)]
    wanted = probe.outputs(program, fresh)
    plain_db, made_db = (noise.snr_db(probe.outputs(p, fresh), wanted) for p in (plain.program, made.program))
    assert made_db > plain_db


def test_few_samples_round_nothing() -> None:
    """Below 8 samples there is nothing to judge by: the program stays as it is."""
    program = conv_net(ConvNet())
    samples = normal_samples({"x": SHAPE}, count=5)
    ready = quantize.calibrated(flatbuffer.load(program), recipes.named("int8"), samples)
    made = _quantized(program, "int8", samples)
    assert ready.ranges is not None
    assert programs.adapt(ready.program, made.program, ready.ranges, recipes.named("int8"), samples) is None


@pytest.mark.parametrize("granularity", ["", "-per-tensor"])
def test_weights_with_outliers_get_finer_steps(granularity: str) -> None:
    """A weight far beyond the others is cut off: scales shrink, the float program's own weights stay."""
    rng = np.random.default_rng(2)
    kernel = rng.uniform(-1, 1, (8, 4000))
    kernel[:, 0] = 1.3
    builder = GraphBuilder()
    builder.output(builder.fully_connected(builder.input("x", (1, 4000)), kernel, np.zeros(8), name="dense"), "y")
    samples = normal_samples({"x": (1, 4000)}, count=24)
    plain = _quantized(builder.build(), f"int8{granularity}", samples)
    finer = _quantized(builder.build(), f"int8{granularity}-weights-mse", samples)

    def scale(program: bytes) -> float:
        graph = flatbuffer.graph(flatbuffer.load(program))
        quantization = graph.tensors[graph.ops[0].inputs[1]].quantization
        assert quantization is not None
        return max(quantization.scale)

    assert scale(finer.program) < scale(plain.program)


def test_names_of_refined_recipes_go_there_and_back() -> None:
    """A recipe's name is what `--recipe` takes."""
    name = "int8-per-tensor-percentile-99.9-weights-mse-tuned-equalized-rounded-corrected"
    recipe = recipes.named(name)
    assert recipe.name == name
    assert recipe.refinements == {"weights-mse", "tuned", "equalized", "rounded", "corrected"}
    with pytest.raises(ValueError, match="no activation ranges"):
        recipes.named("dynamic-rounded")


def test_refinements_are_refused_where_a_runtime_has_none() -> None:
    """The message names what is lacking and who has it."""
    assert recipes.lacking("litert", recipes.named("int8-tuned-rounded")) is None
    assert recipes.lacking("executorch", recipes.named("int8-mse-weights-mse-corrected"), searching=True) is None
    assert "rounded" in (recipes.lacking("executorch", recipes.named("int8-rounded")) or "")
    assert "no form of auto" in (recipes.lacking("coreml", recipes.named("int8"), searching=True) or "")
