"""Spectra that a network computes itself: found, told, kept float by name, and by the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration import noise
from edge.calibration import recipe as recipes
from edge.calibration.recipe import Override
from edge.isolate import no_progress
from edge.stages.diagnosing import diagnose
from edge.stages.searching import search
from edge.targets.litert import flatbuffer, frontend, probe, quantize, sensitivity
from tests import search_requests
from tests.tflite_builder import GraphBuilder, Samples

INT8 = recipes.named("int8", io="float32")
KEPT = replace(INT8, overrides=(Override(operator=frontend.NAME),))
_SIZE, _BANDS = 32, 16


def spectral(*, steep: str = "LOG", learned: str | None = None, floor: float = 1e-9, layers: bool = True) -> bytes:
    """Return sound -> linear transform -> squares -> `steep` -> two dense layers; `learned` before the squares."""
    random = np.random.default_rng(2)
    builder = GraphBuilder()
    x = builder.input("x", (1, _SIZE))
    values = builder.fully_connected(x, random.normal(size=(_BANDS, _SIZE)) / 4, np.zeros(_BANDS), name="transform")
    if learned:
        values = builder.op(learned, [values], (1, _BANDS), name="learned")
    values = builder.op("MUL", [values, values], (1, _BANDS), name="squares")
    values = builder.op("ADD", [values, builder.const("floor", [[floor]])], (1, _BANDS), name="above_floor")
    operands = [values, builder.const("exponent", [[0.25]])] if steep == "POW" else [values]
    values = builder.op(steep, operands, (1, _BANDS), name="steep")
    if layers:
        hidden = builder.fully_connected(values, random.normal(size=(24, _BANDS)) / 4, np.zeros(24), name="hidden")
        hidden = builder.op("RELU", [hidden], (1, 24), name="relu")
        values = builder.fully_connected(hidden, random.normal(size=(5, 24)) / 5, np.zeros(5), name="classes")
    builder.output(values, "y")
    return builder.build()


def sounds(count: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """Return sounds whose loudness spans 60 dB."""
    random = np.random.default_rng(seed)
    loud = 10 ** random.uniform(-3, 0, count)
    return [{"x": (v * random.normal(size=(1, _SIZE))).astype(np.float32)} for v in loud]


def found_in(program: bytes) -> frontend.FrontEnd | None:
    ready = quantize.calibrated(flatbuffer.load(program), INT8, Samples(sounds()))
    assert ready.ranges is not None
    return frontend.find(ready.program, ready.ranges)


def snr_db(program: bytes, quantized: bytes) -> float:
    tests = sounds(seed=5)
    return noise.snr_db(probe.outputs(quantized, tests), probe.outputs(program, tests))


@pytest.mark.parametrize("steep", ["LOG", "SQRT", "POW"])
def test_what_leads_to_a_steep_operator_is_the_front_end(steep: str) -> None:
    """A logarithm, root or power below 1 of squares: all operators up to it, the first layer's weights too."""
    found = found_in(spectral(steep=steep))
    assert found is not None
    assert found.operator == steep
    assert found.outputs == ("transform", "squares", "above_floor", "steep")


@pytest.mark.parametrize(
    "changes", [{"learned": "RELU"}, {"floor": 1.0}, {"layers": False}], ids=["hidden layer", "narrow", "at the end"]
)
def test_other_logarithms_are_none(changes: dict[str, Any]) -> None:
    """After an activation, of values that int8 holds, or as the last operator, a logarithm is no front end's."""
    assert found_in(spectral(**changes)) is None


def test_a_float_front_end_keeps_quiet_sounds() -> None:
    """Plain int8 loses what is quiet and says why with the option; with the front end float the outputs come back."""
    source, samples = spectral(), Samples(sounds())
    plain = quantize.quantize(flatbuffer.load(source), INT8, samples)
    (told,) = (f for f in plain.findings if f.rule == "FRONT_END_COARSE")
    assert "--keep-float front-end" in str(told.fix)
    assert "LOG reads values from" in told.message

    kept = quantize.quantize(flatbuffer.load(source), KEPT, samples)
    assert {f.rule for f in kept.findings}.isdisjoint({"FRONT_END_COARSE", "OPS_LEFT_FLOAT", "OVERRIDE_UNUSED"})
    assert kept.details["operators_kept_float"] == 4
    assert snr_db(source, plain.program) < 15
    assert snr_db(source, kept.program) > snr_db(source, plain.program) + 8


def test_where_all_must_be_integer_the_app_has_to_do_it() -> None:
    """For an Edge TPU the finding does not send the user to an option that leaves it nothing to run."""
    made = quantize.quantize(flatbuffer.load(spectral()), INT8, Samples(sounds()), full_integer=True)
    (told,) = (f for f in made.findings if f.rule == "FRONT_END_COARSE")
    assert "in the app" in str(told.fix)
    assert "--keep-float" not in str(told.fix)


def test_an_override_without_a_front_end_is_told() -> None:
    """`--keep-float front-end` of a network that has none matches nothing, which is a finding."""
    made = quantize.quantize(flatbuffer.load(spectral(floor=1.0)), KEPT, Samples(sounds()))
    assert "OVERRIDE_UNUSED" in {f.rule for f in made.findings}


def test_layers_kept_float_are_not_blamed() -> None:
    """Sensitivity leaves out what a recipe keeps float, but not the tensor that leaves the front end."""
    samples = Samples(sounds())
    ready = quantize.calibrated(flatbuffer.load(spectral()), INT8, samples)
    assert ready.ranges is not None
    layers = sensitivity.measure(ready.program, ready.ranges, KEPT, samples).layers
    assert {r.output for r in layers} == {"steep", "hidden", "relu", "classes"}


# --- the stages --------------------------------------------------------------------------------------------------


def _request(folder: Path, program: bytes, target: str = "linux") -> dict[str, Any]:
    data = sounds(1200, seed=9)
    outputs = probe.outputs(program, data)
    np.savez(folder / "data.npz", x=np.concatenate([d["x"] for d in data]), y=[int(o["y"].argmax()) for o in outputs])
    return search_requests.request(folder, program, target)


def _labels(answer: dict[str, Any]) -> Sequence[str]:
    return [row["recipe"] for row in answer["details"]["candidates"]]


def test_the_search_keeps_the_front_end_float(tmp_path: Path) -> None:
    """The second candidate has a float front end, keeps the budget, and is the recipe that comes out."""
    answer = search(_request(tmp_path, spectral()), no_progress)
    assert _labels(answer) == ["int8", "int8 (front end float)"]
    assert answer["details"]["candidates"][0]["drop"] > 0.1
    assert frontend.NAME in [o["operator"] for o in answer["recipe"]["overrides"]]


def test_other_networks_are_searched_as_before(tmp_path: Path) -> None:
    """Without a front end there is no such candidate."""
    answer = search(_request(tmp_path, spectral(floor=1.0)), no_progress)
    assert not any("front end" in label for label in _labels(answer))


def test_diagnose_measures_the_float_front_end(tmp_path: Path) -> None:
    """Its effect is among the fixes, and it is the one that is named, with the option."""
    found = diagnose(_request(tmp_path, spectral()), no_progress)
    (culprit,) = (f for f in found["findings"] if f["rule"] == "CULPRIT")
    assert "--keep-float front-end" in culprit["fix"]
