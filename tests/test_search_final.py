"""The last comparison of a search, on the samples that evaluate: against what each quantizer makes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import codec
from edge.calibration import recipe as recipes
from edge.calibration.recipe import Override, Recipe
from edge.calibration.search import Candidate
from edge.calibration.selection import Selection
from edge.errors import QuantizationError
from edge.isolate import no_progress
from edge.measure.statistics import paired_difference
from edge.stages.finals import Final, Finalist
from edge.stages.searching import search
from edge.targets.litert import aeq, contract, flatbuffer, prepare, ptq, quantize
from tests.refine_models import ConvNet, conv_net
from tests.test_search import CLEAN, _request
from tests.tflite_builder import normal_samples


def _evaluated(folder: Path, *, outlier: bool, **changes: Any) -> dict[str, Any]:
    """Return a request whose last 300 samples evaluate; with `outlier` one calibration sample ruins min/max ranges."""
    request = _request(folder, CLEAN, count=900, **changes)
    path = folder / "data.npz"
    with np.load(path) as data:
        x, y = data["x"].copy(), data["y"]
    if outlier:
        x[10] *= 1000
        np.savez(path, x=x, y=y)
    held = Selection(location=str(path), role="calibration", indices=tuple(range(600, 900)))
    return {**request, "evaluation": codec.to_json(held), "cache": None}


def test_a_choice_that_nothing_beats_stays(tmp_path: Path) -> None:
    """Both quantizers alone are measured beside it, over all evaluation samples, and the runs are counted."""
    answer = search(_evaluated(tmp_path, outlier=False), no_progress)
    final, rows = answer["details"]["final"], answer["details"]["candidates"]
    assert [f["recipe"] for f in final["finalists"]] == ["int8", "int8-ptq", "int8-moving-average-aeq"]
    assert final["samples"] == 300
    assert final["confidence"] == pytest.approx(1 - 0.05 / 3)
    best = next(f for f in final["finalists"] if f["chosen"])
    assert best["drop"] == min(f["drop"] for f in final["finalists"])
    tried = sum(row["runs"] for row in rows) + answer["details"]["selection_samples"]
    assert answer["details"]["runs"] >= tried + 3 * 300


def test_a_quantizer_that_is_better_on_evaluation_samples_is_taken(tmp_path: Path) -> None:
    """Within a budget that all keep, min/max comes first; the moving average forgets the outlier, and wins."""
    answer = search(_evaluated(tmp_path, outlier=True, max_drop=2.0), no_progress)
    recipe = codec.from_json(Recipe, answer["recipe"])
    assert recipe.name == "int8-moving-average-aeq"
    assert answer["details"]["chosen"] == recipe.name
    assert [row["recipe"] for row in answer["details"]["candidates"] if row["chosen"]] == [recipe.name]
    (finding,) = answer["findings"]
    assert finding["rule"] == "SEARCH_FINAL"
    assert "3 programs were compared" in finding["message"]


def test_without_evaluation_samples_there_is_no_last_comparison(tmp_path: Path) -> None:
    """The search's choice is the answer."""
    assert search(_request(tmp_path, CLEAN, count=400), no_progress)["details"]["final"] is None


def test_among_equals_the_choice_stays() -> None:
    """A rival takes its place only where it is strictly better."""
    right, wrong = np.ones(50), np.concatenate([np.zeros(1), np.ones(49)])

    def final(*scores: Any) -> Final:
        made = [
            Finalist(
                candidate=Candidate(recipe=Recipe(), group="estimators", label=str(i)),
                difference=paired_difference(right, score),
            )
            for i, score in enumerate(scores)
        ]
        return Final(metric="top1", samples=50, finalists=tuple(made), failures={}, runs=0)

    assert final(wrong, wrong).winner.label == "0"
    assert final(wrong, right, right).winner.label == "1"


@pytest.mark.parametrize(("name", "maker"), [("int8-ptq", ptq.NAME), ("int8-aeq", aeq.NAME)])
def test_a_recipe_names_its_quantizer(name: str, maker: str) -> None:
    """The named quantizer makes the program, whichever would come first."""
    assert recipes.named(name).name == name
    assert quantize.quantize(_model(), recipes.named(name), _samples()).quantizer == maker


def test_a_quantizer_without_overrides_is_refused_for_them() -> None:
    """TFLite's own quantizer cannot keep one operator float; the refusal says so."""
    recipe = Recipe(quantizer="ptq", overrides=(Override(operator="CONV_2D"),))
    with pytest.raises(QuantizationError, match="knows no overrides, and the recipe int8-ptq has 1"):
        quantize.quantize(_model(), recipe, _samples())


def test_other_runtimes_have_no_such_quantizers() -> None:
    """The names belong to LiteRT programs."""
    said = recipes.lacking("executorch", recipes.named("int8-ptq"))
    assert said == "executorch makes no int8 program with ptq; accepted for: litert, edgetpu"


def _model() -> Any:
    model = flatbuffer.load(conv_net(ConvNet()))
    prepare.canonical(model, contract.signature_of(model))
    return model


def _samples() -> Any:
    signature = contract.signature_of(flatbuffer.load(conv_net(ConvNet())))
    return normal_samples({t.name: t.shape for t in signature.inputs})
