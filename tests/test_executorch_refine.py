"""Refinements of int8 programs for ExecuTorch: estimators, weight steps, biases, and which layers lose most."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import codec
from edge.calibration import noise
from edge.calibration import recipe as recipes
from edge.calibration.search import Candidate
from edge.calibration.selection import Selection
from edge.errors import QuantizationError
from edge.isolate import no_progress
from edge.signature import Signature, TensorSpec
from edge.stages import searching
from edge.stages.bench import Bench
from edge.targets import registry
from edge.targets.executorch import carrier, delegates, probe, quantize, sensitivity
from tests.executorch_helpers import Sample

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

SIGNATURE = Signature(inputs=(TensorSpec(name="x", shape=(1, 3, 8, 8)),), outputs=(TensorSpec(name="y", shape=(1, 6)),))


def _program(*, outliers: bool = False) -> Any:
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, bias=True), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(128, 6)).eval()
    if outliers:
        with torch.no_grad():
            model[0].weight[2] *= 200
            model[0].bias[2] *= 200
            model[2].weight[:, 2] /= 200
    return torch.export.export(model, (torch.zeros(1, 3, 8, 8),))


def _samples(count: int = 40) -> Any:
    rng = np.random.default_rng(3)
    return [Sample({"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32) + 0.5}) for _ in range(count)]


def _converted(program: Any, name: str) -> quantize.Converted:
    chain = delegates.chosen({})
    return quantize.converted(program, SIGNATURE, recipes.named(name), chain[0], {}, _samples(), no_progress)


def _db(made: quantize.Converted) -> float:
    lost = noise.Noise()
    for sample in _samples(60)[40:]:
        found, wanted = (probe.outputs(g, SIGNATURE, sample.inputs) for g in (made.graph, made.reference))
        lost.add(found, wanted)
    return lost.snr_db


@pytest.mark.parametrize("estimator", ["moving-average", "percentile", "percentile-99.9", "mse", "entropy"])
def test_every_estimator_reaches_the_program(estimator: str) -> None:
    """Ranges differ from those of min/max, and the program still follows the float one."""
    plain, made = _converted(_program(), "int8"), _converted(_program(), f"int8-{estimator}")
    assert plain.ranges is not None
    assert made.ranges is not None
    # Without outliers the least squared error is that of the whole range.
    assert (dict(made.ranges.limits) == dict(plain.ranges.limits)) == (estimator == "mse")
    assert _db(made) > 10


def test_the_layer_with_outliers_is_named_first(tmp_path: Path) -> None:
    """Channels that vanish beside large ones: the layer that reads them loses most."""
    carrier.save(_program(outliers=True), SIGNATURE, tmp_path / "c.pt2")
    layers, runs = sensitivity.rank(tmp_path / "c.pt2", SIGNATURE, recipes.named("int8"), {}, _samples())
    assert layers[0].output == "conv2d_1"
    assert layers[0].snr_db < layers[1].snr_db - 3
    assert runs == 40 + 2 * sensitivity.SAMPLES


def test_corrected_biases_are_kept_only_where_they_help() -> None:
    """The report has the ratio before and after; the program's own never falls."""
    plain, made = (
        quantize.quantize(_program(outliers=True), SIGNATURE, recipes.named(n), delegates.chosen({})[0], {}, _samples())
        for n in ("int8", "int8-corrected")
    )
    said = made.details["bias_correction"]
    before, after = said["held_out_snr_db"]
    assert said["kept"] == (after > before)
    assert said["channels"] > 0
    assert not plain.details


def test_weight_steps_follow_the_many() -> None:
    """With the least squared error, scales are at most those of the largest weight."""

    def scales(name: str) -> Any:
        graph = _converted(_program(), name).graph
        return [
            value.numpy()
            for key, value in graph.named_buffers()
            if "scale" in key and value.ndim == 1 and value.numel() > 1
        ]

    plain, finer = scales("int8"), scales("int8-weights-mse")
    assert plain
    assert all((b <= a * 1.0001).all() for a, b in zip(plain, finer, strict=True))


def test_what_the_runtime_lacks_is_refused() -> None:
    """No tuning, equalization or rounding here; the message says so."""
    with pytest.raises(QuantizationError, match="rounded"):
        quantize.quantize(_program(), SIGNATURE, recipes.named("int8-rounded"), delegates.chosen({})[0], {}, _samples())


def _two_estimators(bench: Bench) -> Iterator[Candidate]:
    """Yield what takes the place of all estimators, each of which another test builds."""
    for name in ("int8", "int8-weights-mse"):
        yield bench.candidate(recipes.named(name, io="float32"), "estimators")


@pytest.mark.slow
def test_search_keeps_layers_float_for_executorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that nothing meets: weight steps, biases and float islands are all tried and measured."""
    monkeypatch.setattr(searching, "_estimators", _two_estimators)
    carrier.save(_program(outliers=True), SIGNATURE, tmp_path / "c.pt2")
    x = np.random.default_rng(0).standard_normal((160, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    target = registry.target("android")
    answer = searching.search(
        {
            "carrier": str(tmp_path / "c.pt2"),
            "signature": codec.to_json(SIGNATURE),
            "recipe": codec.to_json(recipes.named("int8", io="float32")),
            "target": codec.to_json(target),
            "runtime": "executorch",
            "calibration": codec.to_json(Selection(location=str(tmp_path / "d.npz"), role="calibration")),
            "evaluation": None,
            "metric": None,
            "max_drop": -1.0,
            "kernels": "xnnpack",
            "workdir": str(tmp_path / "work"),
            "cache": None,
        },
        no_progress,
    )
    rows = answer["details"]["candidates"]
    assert [row["failure"] for row in rows] == [None] * len(rows)
    assert {row["group"] for row in rows} == {"estimators", "corrected", "mixed"}
    assert max(row["snr_db"] for row in rows) > rows[0]["snr_db"] + 6
    assert answer["details"]["layers"][0]["output"] == "conv2d_1"
