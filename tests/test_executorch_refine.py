"""Refinements of int8 programs for ExecuTorch: estimators, weight steps, biases, and which layers lose most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import codec
from edge.calibration import noise
from edge.calibration import recipe as recipes
from edge.calibration.recipe import Override
from edge.calibration.search import Candidate
from edge.calibration.selection import Selection
from edge.errors import QuantizationError
from edge.isolate import no_progress
from edge.signature import Signature, TensorSpec
from edge.stages import searching
from edge.stages.bench import Bench
from edge.targets import registry
from edge.targets.executorch import carrier, delegates, equalize, probe, quantize, sensitivity
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
    """Channels that vanish beside large ones: the layer that makes them uneven is to blame for the one that reads."""
    carrier.save(_program(outliers=True), SIGNATURE, tmp_path / "c.pt2")
    layers, runs = sensitivity.rank(tmp_path / "c.pt2", SIGNATURE, recipes.named("int8"), {}, _samples())
    assert (layers[0].output, layers[0].unbalanced_with) == ("conv2d", "conv2d_1")
    assert layers[0].snr_db < layers[1].snr_db - 3
    second = next(r for r in layers if r.output == "conv2d_1")
    assert second.blamed_before
    assert second.reads == "conv2d"
    assert runs == 40 + 5 * sensitivity.SAMPLES


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
    assert plain.details == {"operators_left_float": 0}


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


def test_equalizing_changes_no_float_output_and_helps_int8() -> None:
    """Powers of two: the float graph computes the same bits, and the channels beside the outlier come back."""
    plain, made = (_converted(_program(outliers=True), name) for name in ("int8", "int8-equalized"))
    assert made.channels_equalized
    for sample in _samples(8):
        found, wanted = (probe.outputs(g.reference, SIGNATURE, sample.inputs)["y"] for g in (made, plain))
        assert np.array_equal(found, wanted)
    assert _db(made) > _db(plain) + 6


def _prepared(*layers: Any) -> Any:
    """Return the prepared graph of layers over [1, 4, 8, 8]."""
    import torch

    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(*layers).eval()
    example = torch.zeros(1, 4, 8, 8)
    signature = Signature(
        inputs=(TensorSpec(name="x", shape=(1, 4, 8, 8)),),
        outputs=(TensorSpec(name="y", shape=tuple(model(example).shape)),),
    )
    rng = np.random.default_rng(0)
    samples: Any = [Sample({"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)}) for _ in range(8)]
    program, chain = torch.export.export(model, (example,)), delegates.chosen({})
    return quantize.converted(program, signature, recipes.named("int8"), chain[0], {}, samples, no_progress).reference


def test_pairs_are_joined_by_what_scales_with_its_input() -> None:
    """Depthwise, pooled, flattened and ReLU6 pairs are found; a squashing function and a larger flatten are none."""
    import torch

    nn: Any = torch.nn

    def conv(**more: Any) -> Any:
        return nn.Conv2d(4, 4, 3, padding=1, **more)

    graph = _prepared(
        *(conv(), nn.ReLU6(), conv(groups=4), nn.MaxPool2d(2), conv()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )
    found = [(p.first.name, p.second.name, p.capped, p.axis) for p in equalize.find_pairs(graph)]
    assert found == [
        ("conv2d", "conv2d_1", True, 1),
        ("conv2d_1", "conv2d_2", False, 1),
        ("conv2d_2", "linear", False, 1),
    ]
    depthwise = next(equalize.find_pairs(graph)).second
    assert equalize.reading(graph, depthwise) is None
    assert not list(equalize.find_pairs(_prepared(conv(), nn.Sigmoid(), conv(), nn.Flatten(), nn.Linear(256, 2))))


def test_operators_left_float_are_counted() -> None:
    """What the quantizer has no form of, and what an override keeps; moving values is no operator."""
    import torch

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(216, 6))
    program = torch.export.export(model.eval(), (torch.zeros(1, 3, 8, 8),))
    for overrides, expected in (((), 1), ((Override(tensor="conv2d"),), 2)):
        recipe = replace(recipes.named("int8"), overrides=overrides)
        chain = delegates.chosen({})
        made = quantize.quantize(program, SIGNATURE, recipe, chain[0], {}, _samples())
        assert made.details["operators_left_float"] == expected


def test_what_the_runtime_lacks_is_refused() -> None:
    """No tuning or rounding here; the message says so."""
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
    assert {row["group"] for row in rows} == {"estimators", "corrected", "equalized", "mixed"}
    assert max(row["snr_db"] for row in rows) > rows[0]["snr_db"] + 6
    equalized = next(row for row in rows if row["group"] == "equalized")
    assert equalized["snr_db"] > rows[0]["snr_db"] + 6
    assert equalized["operators_float"] == 0
    assert max(row["operators_float"] for row in rows) >= 1
