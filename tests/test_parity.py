"""Parity of two programs' outputs, and affine quantization of arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge.calibration.affine import dequantize, quantize
from edge.codec import from_json, to_json
from edge.errors import ConversionError, DataError
from edge.measure.parity import OutputParity, Parity, carrier_findings, output_findings
from edge.signature import Quantization

HALF = Quantization(scale=(0.5,), zero_point=(-128,))


def test_worked_numbers_of_dequantize() -> None:
    """Scale 0.5 and zero point -128 turn -126 to 1.0, -128 to 0 and 127 to 127.5."""
    real = dequantize(np.array([-126, -128, 127], np.int8), HALF)
    assert real.dtype == np.float32
    assert real.tolist() == [1.0, 0.0, 127.5]


def test_worked_numbers_of_quantize() -> None:
    """Halves round away from zero, and values beyond the range saturate."""
    stored = quantize([1.0, 0.25, 0.75, 1000.0, -1.0, math.inf, -math.inf], HALF, "int8")
    assert stored.dtype == np.int8
    assert stored.tolist() == [-126, -127, -126, 127, -128, 127, -128]
    negative = quantize([-0.25, -0.75, 0.25], Quantization(scale=(0.5,), zero_point=(0,)), "int8")
    assert negative.tolist() == [-1, -2, 1]


def test_nan_is_refused() -> None:
    """NaN has no integer value: an error that counts them."""
    with pytest.raises(DataError, match="1 of 2 values are NaN and have no uint8 value"):
        quantize([math.nan, 0.0], HALF, "uint8")


def test_per_channel_scales_follow_their_axis() -> None:
    """Each index of the axis has its own scale and zero point."""
    quantization = Quantization(scale=(0.5, 2.0), zero_point=(0, 10), axis=1)
    stored = np.array([[2, 11], [-2, 9]], np.int8)
    real = dequantize(stored, quantization)
    assert real.tolist() == [[1.0, 2.0], [-1.0, -2.0]]
    assert np.array_equal(quantize(real, quantization, "int8"), stored)


@given(
    st.sampled_from(["int8", "uint8", "int16"]),
    st.floats(1e-6, 1e3),
    st.data(),
)
def test_round_trip_error_is_at_most_half_a_step(dtype: str, scale: float, data: st.DataObject) -> None:
    """Within the range, dequantize(quantize(x)) differs from x by half a step, plus float32's own rounding."""
    limits = np.iinfo(dtype)
    zero = data.draw(st.integers(int(limits.min), int(limits.max)))
    quantization = Quantization(scale=(scale,), zero_point=(zero,))
    low, high = (limits.min - zero) * scale, (limits.max - zero) * scale
    real = data.draw(hnp.arrays(np.float64, 20, elements=st.floats(low, high))).astype(np.float32)
    back = dequantize(quantize(real, quantization, dtype), quantization)
    slack = 4 * np.finfo(np.float32).eps * np.abs(real.astype(np.float64))
    assert (np.abs(back.astype(np.float64) - real) <= scale / 2 + slack).all()


@given(st.sampled_from(["int8", "uint8", "int16"]), st.floats(1e-6, 1e3), st.data())
def test_stored_values_survive_the_way_there_and_back(dtype: str, scale: float, data: st.DataObject) -> None:
    """quantize(dequantize(q)) is q, for every stored value."""
    limits = np.iinfo(dtype)
    quantization = Quantization(scale=(scale,), zero_point=(data.draw(st.integers(int(limits.min), int(limits.max))),))
    stored = data.draw(hnp.arrays(dtype, 50))
    assert np.array_equal(quantize(dequantize(stored, quantization), quantization, dtype), stored)


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs", "ignore:.*tf.lite.Interpreter is deprecated")
def test_quantize_is_bit_exact_with_the_reference_kernel_of_tflite() -> None:
    """The QUANTIZE at the entry of a program, run by the reference kernels, gives the same bytes, halves included."""
    tensorflow = pytest.importorskip("tensorflow")
    inputs = tensorflow.keras.Input((4096,))
    model = tensorflow.keras.Model(inputs, tensorflow.keras.layers.ReLU()(inputs))
    data = np.concatenate([np.linspace(-2, 2, 4000), np.arange(96) / 64 - 0.5 / 64]).astype(np.float32)[None]
    converter = tensorflow.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: iter([[data]])
    interpreter = tensorflow.lite.Interpreter(
        model_content=converter.convert(),
        experimental_op_resolver_type=tensorflow.lite.experimental.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], data)
    interpreter.invoke()
    stored = next(
        detail
        for detail in interpreter.get_tensor_details()
        if detail["dtype"] == np.int8 and detail["shape"].tolist() == [1, 4096]
    )
    scale, zero = stored["quantization"]
    ours = quantize(data, Quantization(scale=(scale,), zero_point=(zero,)), "int8")
    assert np.array_equal(ours, interpreter.get_tensor(stored["index"]))


def _parity_of(reference: list[float], candidate: list[float]) -> OutputParity:
    parity = Parity()
    parity.update({"y": np.array([reference])}, {"y": np.array([candidate])})
    return parity.result()[0]


def test_signal_to_noise_of_a_worked_example() -> None:
    """Signal 3^2 + 4^2 = 25 and noise 0.5^2 = 0.25 are 20 dB; the largest difference is 0.5."""
    output = _parity_of([3.0, 4.0], [3.0, 4.5])
    assert output.snr_db == pytest.approx(20.0)
    assert output.max_abs == 0.5
    assert output.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    assert str(output) == "y: signal-to-noise 20.0 dB, largest difference 0.5"


def test_sums_run_over_all_samples() -> None:
    """Two samples give what their concatenation gives, for each output by itself."""
    rng = np.random.default_rng(0)
    reference, candidate = rng.normal(size=(2, 6)), rng.normal(size=(2, 6))
    parity = Parity()
    for first, second in zip(reference, candidate, strict=True):
        parity.update({"a": first, "b": first[:2]}, {"a": second, "b": first[:2]})
    a, b = parity.result()
    expected = 10 * np.log10((reference**2).sum() / ((reference - candidate) ** 2).sum())
    assert (a.name, a.samples) == ("a", 2)
    assert a.snr_db == pytest.approx(expected)
    assert b.identical


def test_identical_outputs_have_an_infinite_ratio_that_json_can_hold() -> None:
    """Equal outputs, equal infinities and NaNs included: identical, ratio None, through JSON and back."""
    output = _parity_of([1.0, -math.inf, math.nan], [1.0, -math.inf, math.nan])
    assert (output.identical, output.snr_db, output.mismatched) == (True, None, 0)
    assert from_json(OutputParity, to_json(output)) == output
    assert carrier_findings([output]) == ()


def test_a_lost_infinity_is_a_difference() -> None:
    """A mask of -inf that became 0 is counted, and is a finding whatever the rest is."""
    output = _parity_of([1.0, -math.inf], [1.0, 0.0])
    assert (output.identical, output.mismatched, output.snr_db) == (False, 1, None)
    (finding,) = carrier_findings([output])
    assert (finding.rule, finding.severity, finding.op) == ("CARRIER_DIFFERS", "error", "y")
    assert "1 values not finite" in finding.message


def test_noise_over_silence_is_no_agreement() -> None:
    """Against an all-zero reference the ratio is not defined, and a carrier that gives something else is refused."""
    output = _parity_of([0.0, 0.0], [0.0, 0.1])
    assert (output.snr_db, output.cosine, output.identical) == (None, None, False)
    assert len(carrier_findings([output])) == 1


@pytest.mark.parametrize(("error", "findings"), [(0.0099, 0), (0.0101, 1)])
def test_carrier_must_reach_40_db(error: float, findings: int) -> None:
    """An error of 1 % of the signal is 40 dB: just below passes, just above does not."""
    assert len(carrier_findings([_parity_of([1.0], [1.0 + error])])) == findings


def test_other_names_or_shapes_are_an_error() -> None:
    """A program with other outputs than its source cannot be compared."""
    parity = Parity()
    with pytest.raises(ConversionError, match="has the outputs b; its source has a"):
        parity.update({"a": np.zeros(2)}, {"b": np.zeros(2)})
    with pytest.raises(ConversionError, match=r"output 'a' has shape \(3,\); the source gives \(2,\)"):
        parity.update({"a": np.zeros(2)}, {"a": np.zeros(3)})


UNIT = Quantization(scale=(1 / 256,), zero_point=(-128,))


def _watched(reference: np.ndarray, quantization: Quantization) -> OutputParity:
    """Return the parity of an int8 output that stores each row of `reference` in `quantization`."""
    parity = Parity({"y": quantization})
    for row in reference.astype(np.float32):
        stored = quantize(row, quantization, "int8")
        parity.update({"y": row}, {"y": dequantize(stored, quantization)}, {"y": stored})
    return parity.result()[0]


def test_scores_under_the_scale_of_boxes_are_a_dead_output() -> None:
    """Scores 0 to 1 stored with a step of 2.5 never move: DEAD_OUTPUT."""
    scores = np.random.default_rng(0).random((8, 5))
    output = _watched(scores, Quantization(scale=(2.5,), zero_point=(-128,)))
    (finding,) = output_findings([output])
    assert (finding.rule, finding.severity, finding.op) == ("DEAD_OUTPUT", "error", "y")
    assert "8 differing inputs" in finding.message


def test_moving_outputs_are_alive() -> None:
    """The same scores with a fitting scale move, and nothing is found."""
    assert output_findings([_watched(np.random.default_rng(0).random((8, 5)), UNIT)]) == ()


def test_seven_samples_or_a_still_reference_are_no_proof() -> None:
    """Too few differing samples, or a float output that itself stands still, are not called dead."""
    coarse = Quantization(scale=(2.5,), zero_point=(-128,))
    rng = np.random.default_rng(0)
    assert not _watched(rng.random((7, 5)), coarse).dead
    assert not _watched(np.full((20, 5), 0.5), coarse).dead
    assert not _watched(0.5 + 1e-4 * rng.random((20, 5)), coarse).dead
    assert not _watched(np.repeat(rng.random((4, 5)), 5, axis=0), coarse).dead


def test_a_softmax_at_its_ends_is_not_saturated() -> None:
    """Probabilities of 0 and 1 stand at both ends of int8 by design: counted, but no finding."""
    output = _watched(np.eye(4)[np.arange(12) % 4], UNIT)
    assert output.end_share == 1.0
    assert output.clipped_share == 0.0
    assert output_findings([output]) == ()


def test_a_range_that_cuts_values_off_is_a_finding() -> None:
    """Values up to 2 in a range that ends at 1: half of them are clipped, OUTPUT_SATURATED."""
    output = _watched(np.tile(np.linspace(0, 2, 100), (3, 1)), UNIT)
    assert output.clipped_share == pytest.approx(0.5, abs=0.02)
    (finding,) = output_findings([output])
    assert (finding.rule, finding.severity) == ("OUTPUT_SATURATED", "warning")


def test_float_outputs_have_no_stored_values() -> None:
    """A float program's outputs are neither dead nor saturated."""
    parity = Parity()
    for _ in range(9):
        parity.update({"y": np.random.random(3)}, {"y": np.zeros(3)}, {"y": np.zeros(3, np.float32)})
    (output,) = parity.result()
    assert (output.dead, output.end_share, output.clipped_share) == (False, None, None)
