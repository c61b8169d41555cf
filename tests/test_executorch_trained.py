"""Trained networks keep their answers on ExecuTorch and in the lite interpreter, and the delegation is told right."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from edge.calibration import recipe as recipes
from edge.targets.executorch.runtime import ExecuTorch
from tests import executorch_helpers as helpers

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"
    ),
]


@pytest.mark.parametrize("name", ["audio", "unet"])
def test_a_trained_network_keeps_its_metric_in_each_form(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 is within 1e-4 and int8 within one point, and the delegation is what ExecuTorch itself counts."""
    import torch

    from tests import zoo_tasks

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    bench = importlib.import_module("executorch_zoo")

    torch.set_num_threads(1)
    trained = zoo_tasks.train(name, epochs=2)
    model = helpers.imported(name, tmp_path, module=trained.module)
    reference = zoo_tasks.score(trained, ExecuTorch().open_carrier(model.path).run)
    rows = [row for row, _ in bench.measure(name, trained, model, reference, tmp_path, recipes=("float32", "int8"))]
    assert reference > 0.8
    assert [row.broken for row in rows] == ["", "", "", ""]


def test_int8_is_timed_against_float32_and_a_slower_one_is_explained(tmp_path: Path) -> None:
    """The record has both medians, and there is a finding exactly where int8 is not the faster one."""
    model = helpers.imported("mobile-v2", tmp_path)
    made = helpers.build(model, recipes.named("int8"), tmp_path / "int8")
    speed = made.details["against_float32"]
    slower = [f for f in made.findings if f.rule == "INT8_NOT_FASTER"]
    assert speed["int8_ms"] > 0
    assert bool(slower) == (speed["ratio"] <= 1)
