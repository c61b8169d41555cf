"""Boxes in pixels beside scores below 1: found at calibration, and split so that the scores survive int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.targets.litert import flatbuffer, heads, quantize, session
from tests.tflite_builder import GraphBuilder, normal_samples

INT8 = recipes.named("int8")
SHAPES: dict[str, Sequence[int]] = {"x": (1, 8)}


def head(*, reshaped: bool = False) -> bytes:
    """Return x -> concat(boxes up to some 500, scores below 1), reshaped at the end or not."""
    random = np.random.default_rng(1)
    builder = GraphBuilder()
    x = builder.input("x", SHAPES["x"])
    boxes = builder.fully_connected(x, 100 * random.normal(size=(4, 8)), np.zeros(4), name="boxes")
    logits = builder.fully_connected(x, random.normal(size=(6, 8)), np.zeros(6), name="logits")
    scores = builder.op("LOGISTIC", [logits], (1, 6), name="scores")
    joined = builder.op("CONCATENATION", [boxes, scores], (1, 10), name="joined")
    if reshaped:
        joined = builder.op("RESHAPE", [joined, builder.const("shape", [1, 1, 10])], (1, 1, 10), name="end")
    builder.output(joined, "y")
    return builder.build()


def scores_of(program: bytes) -> Any:
    opened = session.LiteRTSession(program, kernels="xnnpack", threads=1)
    runs = [session.run_float(opened, s.inputs)["y"] for s in normal_samples(SHAPES, 20, seed=4)]
    return np.stack([np.ravel(run)[4:] for run in runs])


@pytest.mark.parametrize("reshaped", [False, True])
def test_a_split_head_keeps_its_scores(reshaped: bool) -> None:
    """In one scale every score is 0 or 1 step; split, they follow the float model; the finding says what was gained."""
    source = head(reshaped=reshaped)
    samples = normal_samples(SHAPES, 64)
    naive = quantize.quantize(flatbuffer.load(source), INT8, samples)
    clashes = [f for f in naive.findings if f.rule == "HEAD_SCALE_CLASH"]
    assert [f.severity for f in clashes] == ["warning"]
    assert "--split-outputs auto" in str(clashes[0].fix)

    split = quantize.quantize(flatbuffer.load(source), replace(INT8, split_outputs=True), samples, full_integer=True)
    exact = scores_of(source)
    assert np.abs(scores_of(naive.program) - exact).max() > 0.3
    assert np.abs(scores_of(split.program) - exact).max() < 0.02
    gain = split.details["split_gain"]
    assert gain["snr_db_split"] > gain["snr_db_joined"] + 15
    assert "OUTPUTS_SPLIT" in {f.rule for f in split.findings}


def test_heads_of_one_size_are_left_alone() -> None:
    """Without a clash the option changes nothing: the same bytes."""
    builder = GraphBuilder()
    x = builder.input("x", SHAPES["x"])
    random = np.random.default_rng(2)
    parts = [builder.fully_connected(x, random.normal(size=(3, 8)), np.zeros(3), name=f"p{i}") for i in range(2)]
    builder.output(builder.op("CONCATENATION", parts, (1, 6), name="joined"), "y")
    source, samples = builder.build(), normal_samples(SHAPES, 32)
    plain, asked = (
        quantize.quantize(flatbuffer.load(source), replace(INT8, split_outputs=wish), samples) for wish in (False, True)
    )
    assert plain.program == asked.program


def test_signal_to_noise_is_that_of_the_worst_column() -> None:
    """Large boxes do not hide lost scores: the ratio is taken column by column."""
    source = head()
    naive = quantize.quantize(flatbuffer.load(source), INT8, normal_samples(SHAPES, 32))
    assert heads.signal_to_noise_db(source, source, normal_samples(SHAPES, 4)) > 90
    assert heads.signal_to_noise_db(source, naive.program, normal_samples(SHAPES, 8)) < 15
