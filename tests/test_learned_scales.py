"""Scales that a network learned with fake quantization arrive in the int8 program to the bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.calibration.recipe import Recipe
from edge.errors import ConversionError, QuantizationError
from edge.signature import Quantization
from edge.sources import registry
from edge.sources.base import Declaration
from edge.sources.verify import verify_carrier
from edge.targets.litert import contract, edit, flatbuffer, learned, prepare, probe, quantize
from tests.refine_models import SHAPE, ConvNet, conv_net

ACTIVATIONS = {
    "x": Quantization(scale=(0.03,), zero_point=(4,)),
    "layer_0": Quantization(scale=(0.05,), zero_point=(-128,)),
    "layer_1": Quantization(scale=(0.0625,), zero_point=(-128,)),
    "layer_2": Quantization(scale=(0.07,), zero_point=(-128,)),
    "pooled": Quantization(scale=(0.045,), zero_point=(-128,)),
    "y": Quantization(scale=(0.11,), zero_point=(-3,)),
}


def _trained() -> tuple[bytes, dict[str, Quantization]]:
    """Return a float network with fake quantization everywhere, and the scales of its weights by tensor name."""
    model = flatbuffer.load(conv_net(ConvNet()))
    graph, weights = flatbuffer.graph(model), {}
    rng = np.random.default_rng(0)
    for op in graph.ops:
        if op.name in ("CONV_2D", "FULLY_CONNECTED"):
            tensor = graph.tensors[op.inputs[1]]
            scale = tuple(float(np.float32(s)) for s in rng.uniform(0.008, 0.02, tensor.shape[0]))
            noted = Quantization(scale=scale, zero_point=(0,) * len(scale), axis=0)
            weights[tensor.name] = noted
            learned._write_note(model.subgraphs[0].tensors[tensor.index], noted)
    names = {t.name: t.index for t in graph.tensors}
    output = graph.tensors[graph.outputs[0]].name
    for name, noted in ACTIVATIONS.items():
        learned._write_note(model.subgraphs[0].tensors[names[output if name == "y" else name]], noted)
    learned.insert(model)
    return flatbuffer.dump(model), weights


def _samples(count: int = 24) -> list[Any]:
    rng = np.random.default_rng(3)
    return [SimpleNamespace(inputs={"x": rng.standard_normal(SHAPE).astype(np.float32)}) for _ in range(count)]


def _quantized(program: bytes, recipe: Recipe | None = None) -> quantize.Quantized:
    model = flatbuffer.load(program)
    prepare.canonical(model, contract.signature_of(model))
    return quantize.quantize(model, recipe or Recipe(scheme="int8"), _samples(), full_integer=True)


def test_pairs_go_out_and_in_without_changing_the_network() -> None:
    """Stripped and inserted again, a fake-quantized program gives the same bits."""
    program, _ = _trained()
    model = flatbuffer.load(program)
    assert learned.carries(model)
    learned.strip(model)
    assert not learned.carries(model)
    learned.insert(model)
    inputs = [s.inputs for s in _samples(4)]
    before, after = probe.outputs(program, inputs), probe.outputs(flatbuffer.dump(model), inputs)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(next(iter(a.values())), next(iter(b.values())))


def test_int8_has_exactly_the_learned_scales() -> None:
    """Every activation, every channel of every weight, and biases in steps of input scale * weight scale."""
    program, weights = _trained()
    made = _quantized(program)
    graph = flatbuffer.graph(flatbuffer.load(made.program))
    found = {t.name: t.quantization for t in graph.tensors if t.quantization is not None}
    for name, wanted in weights.items():
        assert found[name] == wanted
    output = graph.tensors[graph.outputs[0]].name
    for name, wanted in ACTIVATIONS.items():
        got = found[output if name == "y" else name]
        assert got is not None
        assert (got.scale, got.zero_point) == (tuple(float(np.float32(s)) for s in wanted.scale), wanted.zero_point)
    for op in graph.ops:
        if op.name == "CONV_2D":
            read, weight, bias = (graph.tensors[i].quantization for i in op.inputs)
            assert read is not None and weight is not None and bias is not None
            expected = np.float32(read.scale[0]) * np.asarray(weight.scale, np.float32)
            np.testing.assert_array_equal(np.asarray(bias.scale, np.float32), expected)
    finding = next(f for f in made.findings if f.rule == "LEARNED_SCALES")
    assert "10 of its 10 learned scales (6 of activations, 4 of weights) are kept exactly" in finding.message


def test_int8_computes_what_was_trained() -> None:
    """The int8 program differs from the fake-quantized network by at most two steps of its output."""
    program, _ = _trained()
    made = _quantized(program, Recipe(scheme="int8", io="float32"))
    inputs = [s.inputs for s in _samples(8)]
    wanted, got = probe.outputs(program, inputs), probe.outputs(made.program, inputs)
    worst = max(np.abs(next(iter(a.values())) - next(iter(b.values()))).max() for a, b in zip(wanted, got, strict=True))
    assert worst <= ACTIVATIONS["y"].scale[0] * 2.001


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(scheme="int8", tune_ranges=True),
        Recipe(scheme="int8", equalize=True),
        Recipe(scheme="int8", estimator="mse"),
        Recipe(scheme="int8", weights="mse"),
        Recipe(scheme="int8", adaptive_rounding=True),
    ],
    ids=lambda r: r.name,
)
def test_what_would_replace_learned_scales_is_refused(recipe: Recipe) -> None:
    """Refinements of ranges and weights do not go with a network that was trained for int8."""
    with pytest.raises(QuantizationError, match="would replace its learned scales"):
        _quantized(_trained()[0], recipe)


def test_a_recipe_without_int8_activations_says_that_scales_are_dropped() -> None:
    """weight-only has no use for learned activation scales."""
    made = _quantized_weight_only(_trained()[0])
    assert [f.rule for f in made.findings if f.rule.startswith("LEARNED")] == ["LEARNED_SCALES_DROPPED"]


def _quantized_weight_only(program: bytes) -> quantize.Quantized:
    model = flatbuffer.load(program)
    prepare.canonical(model, contract.signature_of(model))
    return quantize.quantize(model, Recipe(scheme="weight-only"), None)


# --- PyTorch -------------------------------------------------------------------------------------------------------


def _functional() -> Any:
    import torch

    class Net(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(6, 4)
            self.register_buffer("steps", torch.tensor([0.01, 0.02, 0.03, 0.04]))

        def forward(self, x: Any) -> Any:
            x = torch.fake_quantize_per_tensor_affine(x, 1 / 64, 128, 0, 255)
            zero = torch.zeros(4, dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(self.layer.weight, self.steps, zero, 0, -127, 127)
            made = torch.nn.functional.linear(x, weight, self.layer.bias)
            return torch.fake_quantize_per_tensor_affine(made, 0.05, -7, -128, 127)

    return Net().eval()


@pytest.mark.frameworks
def test_fake_quantize_operators_become_pairs_of_the_same_scales() -> None:
    """An exported graph computes the same after the rewrite, unsigned ranges moved to int8."""
    import torch

    from edge.targets import torch_fake_quant

    net, x = _functional(), torch.randn(3, 6)
    graph = torch.export.export(net, (x,)).module(check_guards=False)
    assert torch_fake_quant.rewrite(graph) == 3
    torch.testing.assert_close(graph(x), net(x), rtol=0, atol=1e-6)
    scales = [s for _, s in torch_fake_quant.learned(graph)]
    assert scales[0] == (1 / 64,)
    assert np.allclose(sorted(scales, key=len)[-1], (0.01, 0.02, 0.03, 0.04))


@pytest.mark.frameworks
def test_executorch_keeps_learned_scales() -> None:
    """The graph that is lowered has the learned scales, its weights stored as integers."""
    import torch

    from edge.targets import torch_common, torch_fake_quant
    from edge.targets.executorch import learned as paired

    net, x = _functional(), torch.randn(1, 6)
    with torch_common.quiet():
        graph, finding = paired.paired(torch.export.export(net, (x,)), Recipe(scheme="int8"))
    torch.testing.assert_close(graph(x), net(x), rtol=0, atol=1e-6)
    assert "all of its 3 learned scales (2 of activations, 1 of weights)" in finding.message
    assert np.allclose([s for _, s in torch_fake_quant.learned(graph)], [(1 / 64,), (0.05,)])


@pytest.mark.frameworks
def test_trained_modules_stop_observing() -> None:
    """A FakeQuantize module becomes constant: it no longer changes with what it sees."""
    import torch
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

    from edge.targets import torch_fake_quant

    fake = FakeQuantize(
        MovingAverageMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_tensor_affine,
    )
    net = torch.nn.Sequential(fake, torch.nn.Linear(4, 2))
    net(torch.linspace(-1, 1, 8).reshape(2, 4))
    frozen, findings = torch_fake_quant.freeze(net)
    scale, zero = float(fake.scale[0]), int(fake.zero_point[0])
    frozen(torch.full((1, 4), 50.0))
    assert [f.rule for f in findings] == ["FAKE_QUANTIZED"]
    assert frozen[0].one == (scale, zero)


@pytest.mark.frameworks
def test_other_widths_are_refused() -> None:
    """Scales learned for 4 bits do not fit int8 programs."""
    import torch

    from edge.targets import torch_fake_quant

    class Net(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 15)

    graph = torch.export.export(Net(), (torch.zeros(2),)).module(check_guards=False)
    with pytest.raises(ConversionError, match="trained for 16 steps; accepted: 8 bits"):
        torch_fake_quant.rewrite(graph)


def test_a_wrong_carrier_of_a_trained_network_is_caught(tmp_path: Path) -> None:
    """30 dB leave room for values that lie between two steps, not for two channels that changed places."""
    program, _ = _trained()
    (tmp_path / "net.tflite").write_bytes(program)
    loaded = registry.detect(str(tmp_path / "net.tflite")).load(str(tmp_path / "net.tflite"), Declaration())
    carrier, samples = tmp_path / "carrier.tflite", [s.inputs for s in _samples(4)]
    loaded.to_litert(carrier)
    verify_carrier(loaded, carrier, samples)
    layers = [op for op in flatbuffer.graph(flatbuffer.load(carrier)).ops if op.name in ("CONV_2D", "FULLY_CONNECTED")]
    for layer in layers:
        _swap_channels(carrier, layer.inputs[1], tmp_path / "wrong.tflite")
        with pytest.raises(ConversionError, match="computes something else than the source"):
            verify_carrier(loaded, tmp_path / "wrong.tflite", samples)
    assert len(layers) == len([name for name in ACTIVATIONS if name not in ("x", "pooled")])


def _swap_channels(carrier: Path, tensor: int, path: Path) -> None:
    """Write the program with the first two output channels of one layer's weights exchanged."""
    model = flatbuffer.load(carrier)
    graph = flatbuffer.graph(model)
    made = {t: op for op in graph.ops for t in op.outputs}
    while tensor in made:  # behind the pair that carries their scale
        tensor = made[tensor].inputs[0]
    weights = graph.data(tensor)
    assert weights is not None
    edit.set_constant(model, model.subgraphs[0].tensors[tensor], weights[[1, 0, *range(2, len(weights))]].copy())
    path.write_bytes(flatbuffer.dump(model))


@pytest.mark.frameworks
def test_fake_quantization_of_weights_alone_is_refused() -> None:
    """Without learned scales of activations there is no int8 program to keep; the message says what to prepare."""
    import torch

    from edge.targets import torch_fake_quant

    class Weighted(torch.nn.Linear):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(4, 2)
            self.weight_fake_quant = torch.ao.quantization.FakeQuantize()

    with pytest.raises(ConversionError, match=r"Only weights are fake-quantized \(1 of them\)"):
        torch_fake_quant.freeze(torch.nn.Sequential(Weighted()))


def test_a_flatbuffer_with_pairs_keeps_its_scales_and_stored_weights(tmp_path: Path) -> None:
    """QUANTIZE and DEQUANTIZE around float operators are no quantized network: it loads, and nothing is expanded."""
    program, weights = _trained()
    (tmp_path / "net.tflite").write_bytes(program)
    loaded = registry.detect(str(tmp_path / "net.tflite")).load(str(tmp_path / "net.tflite"), Declaration())
    loaded.to_litert(tmp_path / "carrier.tflite")
    assert [f.rule for f in loaded.findings] == []
    kept = learned.take(flatbuffer.load(tmp_path / "carrier.tflite"))
    assert len(kept.weights) == len(weights)
    assert len(kept.activations) == len(ACTIVATIONS)
