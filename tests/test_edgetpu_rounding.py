"""Rounding noise: exact where it is zero, one step at most where it is not, and only where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConfigError, QuantizationError
from edge.signature import Quantization
from edge.targets.base import Session
from edge.targets.edgetpu.rounding import NoiseInput, run_sensitivity, with_rounding_noise
from edge.targets.litert import flatbuffer
from edge.targets.litert.session import LiteRTSession
from tests.edgetpu_models import Q, chain, classifier
from tests.tflite_builder import GraphBuilder

RANDOM = np.random.default_rng(7)
IMAGES = RANDOM.integers(-128, 128, (40, 1, 8, 8, 3)).astype(np.int8)


def opened(model: Any) -> LiteRTSession:
    """Return a session with the reference kernels."""
    return LiteRTSession(flatbuffer.dump(model), kernels="reference", threads=1)


@pytest.mark.parametrize("signature", [True, False])
def test_noise_of_zero_changes_no_bit(signature: bool) -> None:
    """The added ADD of equal scales is exact: with zero noise every output is bit-identical."""
    model = flatbuffer.load(classifier(signature=signature))
    noisy, noise = with_rounding_noise(model)
    assert [n.operator for n in noise] == ["MEAN", "SOFTMAX"]
    exact, disturbed = opened(model), opened(noisy)
    zeros = {n.name: np.zeros(n.shape, n.dtype) for n in noise}
    for image in IMAGES:
        expected = exact.run({"image": image})
        actual = disturbed.run({"image": image, **zeros})
        assert {k: v.tobytes() for k, v in expected.items()} == {k: v.tobytes() for k, v in actual.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_noise_moves_the_last_operator_by_exactly_its_steps(seed: int) -> None:
    """Noise behind the last operator appears in the output step by step, up to saturation."""
    model = flatbuffer.load(chain(("LOGISTIC",)))
    noisy, noise = with_rounding_noise(model, [False, True])
    x = np.random.default_rng(seed).integers(-128, 128, (1, 4, 4, 8)).astype(np.int8)
    drawn = noise[0].draw(np.random.default_rng(seed), 0.5)
    before = opened(model).run({"x": x})["y"].astype(int)
    after = opened(noisy).run({"x": x, noise[0].name: drawn})["y"].astype(int)
    assert np.array_equal(after, np.clip(before + drawn, -128, 127))


def test_the_model_given_is_left_alone() -> None:
    """The noisy program is a copy."""
    model = flatbuffer.load(classifier())
    before = flatbuffer.dump(model)
    with_rounding_noise(model)
    assert flatbuffer.dump(model) == before


def test_exact_operators_and_cpu_operators_are_not_disturbed() -> None:
    """Convolution and dense layers accumulate exactly, and what runs on the CPU rounds as the CPU does."""
    model = flatbuffer.load(classifier())
    assert [n.operator for n in with_rounding_noise(model, [True, True, True, False])[1]] == ["MEAN"]


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 1.0), st.sampled_from(["int8", "uint8"]), st.integers(0, 2**32 - 1))
def test_noise_is_at_most_one_step_at_the_rate(rate: float, dtype: str, seed: int) -> None:
    """Noise is -1, 0 or 1 around the middle, as often as the rate says, and up as often as down."""
    noise = NoiseInput(name="n", shape=(100, 100), dtype=dtype, op=0, operator="ADD")
    drawn = noise.draw(np.random.default_rng(seed), rate).astype(int) - (128 if dtype == "uint8" else 0)
    assert set(np.unique(drawn)) <= {-1, 0, 1}
    assert np.mean(drawn != 0) == pytest.approx(rate, abs=0.03)
    assert abs(np.mean(drawn)) < 0.05


def agreement(model: Any) -> Any:
    """Return a score: the share of images on which the session's class is the exact program's."""
    exact = opened(model)
    expected = [int(exact.run({"image": i})["scores"].argmax()) for i in IMAGES]

    def score(session: Session) -> float:
        found = [int(session.run({"image": i})["scores"].argmax()) for i in IMAGES]
        return float(np.mean([f == e for f, e in zip(found, expected, strict=True)]))

    return score


def test_sensitivity_reports_deltas_as_emulated() -> None:
    """The exact program scores as it does, noisy runs differ in output, and the mode is `emulated`."""
    model = flatbuffer.load(classifier())
    found = run_sensitivity(model, agreement(model), runs=3, rate=1.0)
    assert (found.baseline, found.mode, found.operators, len(found.scores)) == (1.0, "emulated", 2, 3)
    assert found.worst_delta <= found.mean_delta <= 0
    assert found.worst_delta < 0, "with every element off by one step some close call must turn"


def test_sensitivity_is_reproducible() -> None:
    """The same seed gives the same scores."""
    model = flatbuffer.load(classifier())
    first, second = (run_sensitivity(model, agreement(model), runs=2, rate=1.0, seed=5) for _ in range(2))
    assert first == second


def test_the_score_sees_the_original_signature() -> None:
    """What evaluates the model never meets the noise inputs."""
    model = flatbuffer.load(classifier())
    seen: list[list[str]] = []

    def score(session: Session) -> float:
        seen.append([spec.name for spec in session.signature.inputs])
        return 0.0

    run_sensitivity(model, score, runs=1)
    assert seen == [["image"], ["image"]]


def test_a_model_with_nothing_to_disturb_is_refused() -> None:
    """A program of exact operators only is a QuantizationError that lists what is tried."""
    b = GraphBuilder()
    x = b.input("x", (1, 4), "int8", Q)
    b.output(b.op("RELU", [x], (1, 4), dtype="int8", quantization=Q, version=2), "y")
    with pytest.raises(QuantizationError, match="nothing to try") as caught:
        run_sensitivity(flatbuffer.load(b.build()), lambda _: 0.0)
    assert "SOFTMAX" in str(caught.value.hint)


@pytest.mark.parametrize(("runs", "rate"), [(0, 0.5), (1, 0.0), (1, 1.5)])
def test_wrong_settings_are_refused(runs: int, rate: float) -> None:
    """Runs below one and rates that are no share are named."""
    with pytest.raises(ConfigError, match="accepted: 1 or more, 0 to 1"):
        run_sensitivity(flatbuffer.load(classifier()), lambda _: 0.0, runs=runs, rate=rate)


def test_placements_must_fit() -> None:
    """One placement for each operator."""
    with pytest.raises(ConfigError, match="1 placements for 4 operators"):
        with_rounding_noise(flatbuffer.load(classifier()), [True])


SHARED = Path(__file__).resolve().parents[1] / "../shared/edgetpu"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the ground truth is not on this machine")
def test_real_models_run_unchanged_with_zero_noise() -> None:
    """MobileNet v2 and LeNet of the ground truth, disturbed by zero, compute what they computed."""
    import gzip
    import json

    records = json.loads((SHARED / "groundtruth.json").read_text())["records"]
    wanted = ("pine-book/LeNet_TFLite:converted_model-int8_io", "IvanYingX/Face_Mask_RPi:model")
    chosen = [r for r in records if any(w in r["origin"] for w in wanted)]
    assert len(chosen) == 2
    for record in chosen:
        model = flatbuffer.load(gzip.decompress((SHARED / record["model"]).read_bytes()))
        noisy, noise = with_rounding_noise(model)
        assert noise
        session, disturbed = opened(model), opened(noisy)
        spec = session.signature.inputs[0]
        x = RANDOM.integers(0, 100, [abs(d) for d in spec.shape]).astype(spec.dtype)
        zeros = {n.name: np.full(n.shape, 128 if n.dtype == "uint8" else 0, n.dtype) for n in noise}
        expected, actual = session.run({spec.name: x}), disturbed.run({spec.name: x, **zeros})
        assert all(np.array_equal(expected[k], actual[k]) for k in expected)


def test_the_baseline_of_a_program_with_sums_is_its_own_score() -> None:
    """A quantized SUM is scored with kernels that rescale it, as LiteRT's reference kernel does not."""
    builder = GraphBuilder()
    small, large = (Quantization(scale=(s,), zero_point=(0,)) for s in (1 / 32, 0.5))
    x = builder.input("x", (1, 4, 4, 8), "int8", small)
    axes = builder.const("axes", np.array([1, 2], np.int32))
    y = builder.op("SUM", [x, axes], (1, 8), dtype="int8", quantization=large)
    builder.output(y, "y")

    values = np.random.default_rng(0).integers(-60, 100, (1, 4, 4, 8)).astype(np.int8)
    expected = np.clip(np.round(values.sum((1, 2)) / 16), -128, 127)

    def score(session: Session) -> float:
        return float(np.abs(session.run({"x": values})["y"] - expected).max())

    assert run_sensitivity(flatbuffer.load(builder.build()), score, runs=1).baseline <= 1
