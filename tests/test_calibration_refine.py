"""What refines an int8 program of LiteRT: equalization, bias correction, tuned ranges; and what finds a culprit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.calibration import bias as bias_arithmetic
from edge.calibration import equalize as equalize_arithmetic
from edge.calibration import noise, sensitivity
from edge.calibration import recipe as recipes
from edge.calibration.ranges import Ranges
from edge.targets.litert import aeq, equalize, fixed, flatbuffer, heads, memory, probe, ptq, quantize, session
from edge.targets.litert import bias as bias_correction
from edge.targets.litert import sensitivity as layers
from edge.targets.litert.simulate import Simulation
from tests.refine_models import SHAPE, ConvNet, conv_net
from tests.tflite_builder import GraphBuilder, Samples, f32, normal_samples

INT8 = recipes.named("int8")
SAMPLES: Any = normal_samples({"x": SHAPE}, count=48)
HELD: Any = normal_samples({"x": SHAPE}, count=32, seed=7)


def _inputs(samples: Any) -> list[Any]:
    return [s.inputs for s in samples]


def _quantized(program: bytes, name: str, samples: Any = SAMPLES) -> quantize.Quantized:
    return quantize.quantize(flatbuffer.load(program), recipes.named(name), samples)


def _db(source: bytes, program: bytes) -> float:
    return noise.snr_db(probe.outputs(program, _inputs(HELD)), probe.outputs(source, _inputs(HELD)))


# --- arithmetic --------------------------------------------------------------------------------------------------

MAGNITUDES = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=12)


@given(MAGNITUDES, st.data())
def test_factors_are_powers_of_two_and_balance(first: list[float], data: Any) -> None:
    """Factors are exact powers of two; the spread of the larger side over channels shrinks or stays."""
    a = np.asarray(first)
    w = np.asarray(data.draw(st.lists(st.floats(1e-6, 1e6), min_size=a.size, max_size=a.size)))
    s = equalize_arithmetic.factors(a, w)
    assert np.array_equal(np.exp2(np.round(np.log2(s))), s)

    def unevenness(scales: Any) -> float:
        return float(
            np.sum(np.log2(a / scales / (a / scales).max()) ** 2 + np.log2(w * scales / (w * scales).max()) ** 2)
        )

    clipped = np.any((s == 2.0**8) | (s == 2.0**-8))
    assert clipped or unevenness(s) <= unevenness(np.ones(a.size)) + 3 * a.size


def test_factors_of_a_depthwise_reader_make_all_channels_equal() -> None:
    """A reader with a scale per channel takes any factor: channels come within a factor of sqrt 2 of each other."""
    peaks = np.asarray([8.0, 1.0, 0.3, 0.0, 0.05])
    after = (peaks / equalize_arithmetic.factors(peaks, None))[peaks > 0]
    assert after.max() / after.min() <= 2
    assert equalize_arithmetic.factors(peaks, None)[3] == 1


@given(MAGNITUDES, st.data())
def test_capped_factors_never_meet_the_cap(first: list[float], data: Any) -> None:
    """With ReLU6, either the factor is 1 or the limit stands above the channel's maximum before and after."""
    peaks = np.minimum(np.asarray(first), 6.0)
    scales = 2.0 ** np.asarray(data.draw(st.lists(st.integers(-8, 8), min_size=peaks.size, max_size=peaks.size)))
    found = equalize_arithmetic.within_cap(scales, peaks, 6.0)
    assert np.all((found == 1) | (6.0 * np.minimum(found, 1.0) > peaks))


@settings(deadline=None)
@given(st.floats(-3, 3), st.integers(0, 1000))
def test_a_significant_mean_error_is_removed_and_noise_is_not(offset: float, seed: int) -> None:
    """The correction of a channel is its mean error where that is two standard errors from 0, else nothing."""
    errors = np.random.default_rng(seed).standard_normal((100, 1)) * 0.1 + offset
    found = bias_arithmetic.correction(errors, np.ones(1))[0]
    significant = abs(errors.mean()) > 2 * errors.std(ddof=1) / 10
    assert found == (pytest.approx(errors.mean()) if significant else 0.0)


def test_correction_divides_by_the_active_share() -> None:
    """Half of the values cut off: the bias has to move twice as far; with hardly any active it stays."""
    errors = np.full((10, 2), 0.2) + np.linspace(-1e-3, 1e-3, 10)[:, None]
    assert bias_arithmetic.correction(errors, np.asarray([0.5, 0.01])) == pytest.approx([0.4, 0.0])


def test_corrected_biases_stay_in_their_type() -> None:
    """The bias becomes b + round(delta / step), saturating."""
    made = bias_arithmetic.corrected(
        np.asarray([5, 2**31 - 2], np.int32), np.asarray([0.1, 0.1]), np.asarray([0.26, 9.0])
    )
    assert made.tolist() == [8, 2**31 - 1]


def test_noise_is_relative_to_each_sample() -> None:
    """A sample of a thousandfold size with a small error does not hide another's large one."""
    references = [{"y": f32([1000.0])}, {"y": f32([1.0])}]
    found = [{"y": f32([1000.0])}, {"y": f32([0.0])}]
    assert noise.snr_db(found, references) == pytest.approx(-10 * np.log10(0.5 * 1.0 / 500.0005), abs=10)
    assert noise.snr_db(references, references) == 100.0


# --- fixed ranges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "scale", "zero"),
    [("SOFTMAX", 1 / 256, -128), ("LOGISTIC", 1 / 256, -128), ("TANH", 1 / 128, 0)],
)
@pytest.mark.parametrize("estimator", ["minmax", "percentile", "mse", "entropy", "moving-average"])
@pytest.mark.parametrize("quantizer", ["aeq", "ptq"])
def test_fixed_outputs_have_the_scale_of_the_specification(
    operator: str, scale: float, zero: int, estimator: str, quantizer: str
) -> None:
    """Whatever the estimator and the quantizer, softmax, logistic and tanh come out as the kernels want them."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4))
    hidden = builder.fully_connected(x, np.eye(4), np.zeros(4))
    builder.output(builder.op(operator, [hidden], (1, 4), name="end"), "y")
    program = builder.build()
    recipe = recipes.named("int8" if estimator == "minmax" else f"int8-{estimator}")
    samples: Any = normal_samples({"x": (1, 4)})
    ready = quantize.calibrated(flatbuffer.load(program), recipe, samples)
    assert ready.ranges is not None
    made = (
        aeq.quantize(ready.program, recipe, ready.ranges)
        if quantizer == "aeq"
        else ptq.quantize(ready.program, recipe, ready.ranges, samples)
    )
    graph = flatbuffer.graph(flatbuffer.load(made))
    found = graph.tensors[graph.outputs[0]].quantization
    assert found is not None
    assert found.scale[0] == pytest.approx(scale)
    assert found.zero_point[0] == zero


def test_fixed_ranges_of_int16_are_symmetric() -> None:
    """int16 outputs of tanh span -1 to 1 - 2^-15."""
    builder = GraphBuilder()
    builder.output(builder.op("TANH", [builder.input("x", (1, 4))], (1, 4), name="end"), "y")
    given_ranges = Ranges(limits={"end": (-0.3, 0.2)}, samples=1, estimator="minmax")
    made = fixed.apply(flatbuffer.load(builder.build()), given_ranges, recipes.named("int8x16"))
    assert made["end"] == (-1.0, 32767 / 32768)


# --- equalization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["NONE", "RELU", "RELU6"])
@pytest.mark.parametrize("separate", [False, True])
def test_equalization_keeps_float_outputs_to_the_bit(activation: str, separate: bool) -> None:
    """Powers of two move between layers without any rounding: outputs on other samples are equal."""
    program = conv_net(ConvNet(activation=activation, separate=separate, uneven=6))
    model = flatbuffer.load(program)
    assert equalize.apply(model, INT8, SAMPLES) > 0
    for kernels in ("builtin", "xnnpack"):
        before, after = (
            session.LiteRTSession(p, kernels=kernels, threads=1) for p in (program, flatbuffer.dump(model))
        )
        for sample in HELD:
            assert np.array_equal(before.run(sample.inputs)["y"], after.run(sample.inputs)["y"])


@pytest.mark.parametrize("activation", ["NONE", "RELU"])
def test_equalization_recovers_uneven_channels(activation: str) -> None:
    """Channels scaled by up to 2^6 against each other cost int8 its accuracy; equalizing gives most of it back."""
    program = conv_net(ConvNet(activation=activation, uneven=6))
    even = conv_net(ConvNet(activation=activation, uneven=0))
    plain, equalized, best = (
        _db(program, _quantized(program, "int8").program),
        _db(program, _quantized(program, "int8-equalized").program),
        _db(even, _quantized(even, "int8").program),
    )
    assert plain < best - 8
    assert equalized > best - 3


def test_equalization_leaves_what_is_read_twice() -> None:
    """A tensor that is an output too, or that two layers read, cannot be scaled."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder()
    first = builder.fully_connected(builder.input("x", (1, 4)), rng.standard_normal((4, 4)), np.zeros(4))
    builder.output(builder.fully_connected(first, rng.standard_normal((3, 4)), np.zeros(3)), "y")
    builder.output(first, "hidden")
    assert list(equalize.find_pairs(flatbuffer.load(builder.build()))) == []


def test_equalization_leaves_shared_weights() -> None:
    """Weights that two layers share stand in two pairs at once and are left alone."""
    builder = GraphBuilder()
    weights = builder.const("w", f32(np.eye(4)))
    first = builder.op("FULLY_CONNECTED", [builder.input("x", (1, 4)), weights], (1, 4))
    builder.output(builder.op("FULLY_CONNECTED", [first, weights], (1, 4)), "y")
    assert list(equalize.find_pairs(flatbuffer.load(builder.build()))) == []


# --- bias correction ---------------------------------------------------------------------------------------------


def test_bias_correction_finds_planted_errors() -> None:
    """Biases of an int8 program that are shifted by 40 steps per channel come back, and held-out outputs improve."""
    program = conv_net(ConvNet())
    made = quantize.quantize(flatbuffer.load(program), INT8, SAMPLES)
    model = flatbuffer.load(made.program)
    graph = flatbuffer.graph(model)
    conv = next(op for op in graph.ops if op.name == "CONV_2D")
    step = graph.tensors[conv.inputs[2]].quantization
    output = graph.tensors[conv.outputs[0]].quantization
    assert step is not None
    assert output is not None
    damaged = graph.data(conv.inputs[2]) + np.round(3 * output.scale[0] / np.asarray(step.scale)).astype(np.int32)  # type: ignore[operator]
    model.buffers[graph.tensors[conv.inputs[2]].buffer].data = np.frombuffer(damaged.tobytes(), np.uint8)
    found = bias_correction.correct(program, flatbuffer.dump(model), SAMPLES)
    assert found is not None
    assert found.kept
    assert found.after_db > found.before_db + 6
    assert _db(program, found.program) > _db(program, flatbuffer.dump(model)) + 6


def test_bias_correction_is_dropped_where_it_does_not_help() -> None:
    """The program returned never follows the float one worse on the held-out samples than the one given."""
    program = conv_net(ConvNet())
    made = quantize.quantize(flatbuffer.load(program), INT8, SAMPLES)
    found = bias_correction.correct(program, made.program, SAMPLES)
    assert found is not None
    assert (found.program == made.program) == (not found.kept)
    assert found.kept == (found.after_db > found.before_db)


@pytest.mark.parametrize("name", ["int8-corrected", "int8x16-corrected", "int8-equalized-corrected"])
def test_recipes_with_correction_run_and_say_what_they_did(name: str) -> None:
    """The details of a program tell the held-out ratio before and after and what it cost."""
    made = _quantized(conv_net(ConvNet()), name)
    record = made.details["bias_correction"]
    assert set(record) == {"kept", "held_out_snr_db", "channels", "runs"}
    assert _db(conv_net(ConvNet()), made.program) > 20


# --- tuned ranges ------------------------------------------------------------------------------------------------


def _far_logits(seed: int = 0) -> bytes:
    """Logits of which one lies hundreds below the others: softmax does not care, but an int8 step is above 1."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.input("x", (1, 8))
    logits = builder.fully_connected(
        x, np.vstack([rng.standard_normal((3, 8)) * 0.7, rng.standard_normal((1, 8)) * 60]), [0, 0, 0, -300]
    )
    builder.output(builder.op("SOFTMAX", [logits], (1, 4)), "p")
    return builder.build()


def test_tuned_ranges_know_what_the_outputs_need() -> None:
    """A range that softmax hardly uses is cut off where no estimator would: above 10 dB better on other samples."""
    samples: Any = normal_samples({"x": (1, 8)}, count=200)
    other = _inputs(normal_samples({"x": (1, 8)}, count=100, seed=9))
    program = _far_logits()
    reference = probe.outputs(program, other)
    db = {
        name: noise.snr_db(probe.outputs(_quantized(program, name, samples).program, other), reference)
        for name in ("int8", "int8-mse", "int8-entropy", "int8-tuned")
    }
    assert db["int8-tuned"] > max(db["int8"], db["int8-mse"], db["int8-entropy"]) + 10


def test_tuned_ranges_are_reproducible() -> None:
    """The same samples give the same bytes, also while results are remembered."""
    program = _far_logits()
    samples: Any = normal_samples({"x": (1, 8)}, count=60)
    alone = _quantized(program, "int8-mse-tuned", samples)
    with memory.remembering():
        kept = [_quantized(program, name, samples).program for name in ("int8-mse", "int8-mse-tuned", "int8-mse-tuned")]
    assert kept[1] == kept[2] == alone.program
    assert alone.details["tuned_ranges"]["runs"] > 0


@pytest.mark.parametrize("name", ["int8", "int8-percentile-99", "int8-mse", "int8-entropy"])
def test_remembered_histograms_give_the_ranges_of_a_fresh_pass(name: str) -> None:
    """One pass of histograms serves all estimators of a search with the very same ranges."""
    program = conv_net(ConvNet())
    fresh = quantize.calibrated(flatbuffer.load(program), recipes.named(name), SAMPLES)
    with memory.remembering():
        quantize.calibrated(flatbuffer.load(program), INT8, SAMPLES)
        kept = quantize.calibrated(flatbuffer.load(program), recipes.named(name), SAMPLES)
    assert fresh.ranges == kept.ranges


# --- simulation and sensitivity ----------------------------------------------------------------------------------


def test_simulation_agrees_with_the_integer_program() -> None:
    """Float with every tensor quantized and dequantized is within 1.5 dB of what the int8 kernels lose."""
    program = conv_net(ConvNet())
    made = quantize.quantize(flatbuffer.load(program), INT8, SAMPLES)
    assert made.ranges is not None
    ready = quantize.calibrated(flatbuffer.load(program), INT8, SAMPLES)
    operators = range(len(flatbuffer.graph(flatbuffer.load(ready.program)).ops))
    whole = Simulation(ready.program, made.ranges, INT8, weights=operators, activations=list(made.ranges))
    assert _db(program, whole.program()) == pytest.approx(_db(program, made.program), abs=1.5)


def test_simulating_nothing_changes_nothing() -> None:
    """Without weights and activations the outputs are the float program's to the bit."""
    program = conv_net(ConvNet())
    none = Simulation(program, Ranges(samples=1, estimator="minmax"), INT8, weights=(), activations=())
    for a, b in zip(probe.outputs(none.program(), _inputs(HELD)), probe.outputs(program, _inputs(HELD)), strict=True):
        assert np.array_equal(a["y"], b["y"])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("by", [7, -7])
def test_a_planted_culprit_is_named_first(seed: int, by: int) -> None:
    """Channels of a layer scaled up or down (and back in the next) put that layer first, in 10 of 10 networks."""
    planted = seed % 3
    program = conv_net(ConvNet(seed=seed, depth=5, planted=planted, planted_by=by))
    clean = conv_net(ConvNet(seed=seed, depth=5))
    for a, b in zip(probe.outputs(program, _inputs(HELD)), probe.outputs(clean, _inputs(HELD)), strict=True):
        assert np.array_equal(a["y"], b["y"])
    ready = quantize.calibrated(flatbuffer.load(program), INT8, SAMPLES)
    assert ready.ranges is not None
    found = layers.measure(ready.program, ready.ranges, INT8, SAMPLES)
    worst = found.layers[0]
    assert (worst.output, worst.unbalanced_with) == (f"layer_{planted}", f"layer_{planted + 1}")
    assert found.runs <= 3200


@pytest.mark.parametrize("by", [7, -7])
def test_a_planted_culprit_is_repaired(by: int) -> None:
    """Equalizing brings a network with a planted culprit within 2 dB of what the network loses without it."""
    program, clean = (conv_net(ConvNet(depth=5, planted=p, planted_by=by)) for p in (1, None))
    broken, repaired = (_db(program, _quantized(program, n).program) for n in ("int8", "int8-equalized"))
    whole = _db(clean, _quantized(clean, "int8").program)
    assert broken < whole - 6
    assert repaired > whole - 2


def test_sensitivity_tells_weights_from_activations() -> None:
    """An outlier in a layer's weights is a matter of weights, one in what it computes a matter of activations."""
    rng = np.random.default_rng(0)
    weights: Any = rng.standard_normal((8, 16)) * 0.1
    weights[:, 0] = 50.0
    builder = GraphBuilder()
    x = builder.input("x", (1, 16))
    builder.output(builder.fully_connected(x, weights, np.zeros(8)), "y")
    inputs = [{"x": f32(np.append(np.zeros((1, 1)), rng.standard_normal((1, 15)), axis=1))} for _ in range(40)]
    ready = quantize.calibrated(flatbuffer.load(builder.build()), INT8, Samples(inputs))
    assert ready.ranges is not None
    found = layers.measure(ready.program, ready.ranges, INT8, Samples(inputs))
    worst = found.layers[0]
    assert (worst.operator, worst.part) == ("FULLY_CONNECTED", "weights")
    assert worst.peak_to_rms is not None
    assert worst.peak_to_rms > 3


def test_ranking_is_by_the_sum_of_noises() -> None:
    """Two equal noises are 3 dB worse than one."""
    base = sensitivity.LayerRecord(
        index=0, operator="CONV_2D", output="a", weights_db=30.0, output_db=30.0, low=0.0, high=1.0,
        saturated=0.0, channel_spread=1.0, peak_to_rms=1.0,
    )  # fmt: skip
    assert base.snr_db == pytest.approx(27, abs=0.02)
    other = replace(base, index=1, output="b", output_db=None)
    assert [r.output for r in sensitivity.ranked([other, base])] == ["a", "b"]


def test_weight_spread_of_known_weights() -> None:
    """Channel peaks 4 and 1 are 4 apart; a single value among three zeros is twice its root mean square."""
    spread, peak = sensitivity.weight_spread(np.asarray([[4.0, 0, 0, 0], [1, 1, 1, 1]]), 0)
    assert (spread, peak) == (4.0, 2.0)


# --- data quality ------------------------------------------------------------------------------------------------


def _growing(second: float, count: int = 60) -> tuple[str, ...]:
    inputs = [{"x": f32(np.full((1, 4), (1 if i < count // 2 else second) * (-1) ** i))} for i in range(count)]
    builder = GraphBuilder()
    builder.output(builder.fully_connected(builder.input("x", (1, 4)), np.eye(4), np.zeros(4)), "y")
    return tuple(f.rule for f in _quantized(builder.build(), "int8", Samples(inputs)).findings)


def test_ranges_that_still_grow_are_a_finding() -> None:
    """Where the second half of the samples doubles the ranges, more data would widen them again."""
    assert "RANGES_GROW" in _growing(2.0)
    assert "RANGES_GROW" not in _growing(1.1)
    assert "RANGES_GROW" not in _growing(2.0, count=40)


def test_a_joint_of_branches_is_kept_float_to_the_output() -> None:
    """The tail of a head runs from the joint over reshapes to the output, and no further."""
    builder = GraphBuilder()
    joint = builder.op("CONCATENATION", [builder.input("a", (1, 2)), builder.input("b", (1, 2))], (1, 4), name="joint")
    end = builder.op("RESHAPE", [joint, builder.const("shape", [1, 2, 2])], (1, 2, 2), name="end")
    builder.output(end, "y")
    assert heads.joint_tail(builder.build(), "joint") == ("joint", "end")
