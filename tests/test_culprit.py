"""A culprit planted in a trained network is the first that diagnose names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.isolate import no_progress
from edge.stages.diagnosing import diagnose


def _benchmark() -> Any:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "culprit.py"
    spec = importlib.util.spec_from_file_location("culprit", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["culprit"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.frameworks
@pytest.mark.slow
def test_the_planted_culprit_of_a_trained_network_is_named_first(tmp_path: Path) -> None:
    """The layer whose channels were rescaled leads the table, and the fix that is proposed restores the accuracy."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    benchmark = _benchmark()
    case = benchmark.cases(2)[1]
    answer = diagnose(benchmark.request(tmp_path, case), no_progress)
    assert answer["layers"][0]["output"] == f"layer_{case.planted}"
    finding = next(f for f in answer["findings"] if f["rule"] == "CULPRIT")
    assert finding["op"] == f"layer_{case.planted}"
    assert finding["fix"].startswith("Equalize channels")
    plain = answer["fixes"][0]["drop_before"]
    best = min(f["drop"] for f in answer["fixes"] if f["failure"] is None and not f["operators_float"])
    assert plain > 0.3
    assert best < 0.05
