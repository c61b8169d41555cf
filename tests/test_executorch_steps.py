"""Steps of int8 programs for ExecuTorch: shared constants, dead channels, dull outputs, the ranges of Core ML."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.targets.base import Model
from edge.targets.executorch import carrier, delegates, quantize, session
from edge.targets.executorch.runtime import ExecuTorch
from tests import executorch_helpers as helpers

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def _build(module: Any, shape: tuple[int, ...], folder: Path) -> tuple[Model, Any]:
    import torch

    model = helpers.exported(module.eval(), (torch.zeros(shape),), folder)
    return model, helpers.build(model, recipes.named("int8"), folder, compare_float=False)


def _shared_bias() -> Any:
    """Return two linear and two depthwise layers of very different input ranges that share one bias each."""
    import torch

    class Shared(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Conv2d(4, 4, 3, groups=4)
            self.two = torch.nn.Conv2d(4, 4, 3, groups=4)
            self.three, self.four = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            with torch.no_grad():
                self.one.bias.copy_(torch.tensor([20.0, -20.0, 10.0, 15.0]))
                self.three.bias.copy_(torch.tensor([-20.0, 20.0, 10.0, 15.0]))
            self.two.bias, self.four.bias = self.one.bias, self.three.bias

        def forward(self, x: Any) -> Any:
            return self.one(x), self.two(x * 50), self.three(x), self.four(x * 50)

    return Shared()


def test_layers_that_share_a_bias_each_compute_with_it(tmp_path: Path) -> None:
    """XNNPACK would store the bias in the steps of its first reader, and leave the second convolution float."""
    model, made = _build(_shared_bias(), (1, 4, 8, 4), tmp_path)
    assert made.details["operators_left_float"] == 0
    assert helpers.agreement(model, made) >= 25


def test_a_program_that_is_not_loaded_names_the_operator() -> None:
    """What XNNPACK wrote to stderr is in the message: the kind of operator, its node and the reason."""
    said = (
        "[XNNCompiler.cpp:1314] Failed to create depthwise convolution node 42 with code: xnn_status_invalid_parameter"
    )
    found = session.not_loaded("forward", "error: 0x:1", f"[threadpool.cpp:66] Resetting\n{said}\n[method.cpp:1] Init")
    assert "'forward': XNNPACK refuses its depthwise convolution, node 42 of the subgraph" in found.message
    assert "--keep-float" in (found.hint or "")
    other = session.not_loaded("forward", "error: 0x:14", "[method.cpp:128] Backend Foo is not registered.\n")
    assert "Backend Foo is not registered" in other.message


def test_what_c_code_writes_to_stderr_is_heard_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """The reason of the runtime reaches the message and the log."""
    with session._stderr() as words:
        os.write(2, b"[a.cpp:1] no room\n")
        assert "no room" in words()
    assert "no room" in capfd.readouterr().err


def _dead(kind: str) -> tuple[Any, tuple[int, ...]]:
    """Return a layer of one kind whose channels 1 and 2 have weights of 0 and near 0, and biases that count."""
    import torch

    layer, shape = {
        "conv": (torch.nn.Conv2d(3, 4, 3), (1, 3, 8, 8)),
        "depthwise": (torch.nn.Conv2d(4, 4, 3, groups=4), (1, 4, 8, 8)),
        "transposed": (torch.nn.ConvTranspose2d(3, 4, 2, 2), (1, 3, 8, 8)),
        "linear": (torch.nn.Linear(8, 4), (1, 8)),
    }[kind]
    with torch.no_grad():
        for channel, factor in ((1, 0.0), (2, 1e-9)):
            weights = layer.weight[:, channel] if kind == "transposed" else layer.weight[channel]
            weights *= factor
            layer.bias[channel] = 300.0 * channel
    # Inputs of 0.01: units of the bias become so small that 300 of it exceed 32 bits.
    return torch.nn.Sequential(Shrink(), layer), shape


class Shrink:
    """Made a module where torch is imported."""

    def __new__(cls) -> Any:
        import torch

        class Scaled(torch.nn.Module):  # type: ignore[misc]
            def forward(self, x: Any) -> Any:
                return x * 0.001

        return Scaled()


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    import torch

    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "transposed", "linear"])
def test_a_dead_channel_keeps_its_bias(kind: str, tmp_path: Path) -> None:
    """Weights of 0 with a bias: its step is coarse enough for the bias to fit into 32 bits."""
    module, shape = _dead(kind)
    model, made = _build(module, shape, tmp_path)
    assert helpers.agreement(model, made) >= 35


@pytest.mark.parametrize("kind", ["conv", "depthwise", "transposed", "linear"])
def test_an_output_that_hardly_varies_still_loads(kind: str, tmp_path: Path) -> None:
    """Large weights whose products cancel: XNNPACK refuses ratios of steps of 256 and more when it loads a program."""
    import torch

    module, shape = _dead(kind)
    with torch.no_grad():
        module[1].weight.fill_(0.0)
        module[1].weight.view(-1)[0] = 1e7
        module[1].bias.fill_(0.0)
    model = helpers.exported(module.eval(), (torch.zeros(shape),), tmp_path)
    none = [helpers.Sample({t.name: np.zeros(t.shape, np.float32) for t in model.signature.inputs}) for _ in range(8)]
    made = helpers.build(model, recipes.named("int8"), tmp_path, data=none, compare_float=False)
    found = helpers.run(ExecuTorch().open(made.path, kernels="xnnpack", threads=1), none[0].inputs)
    assert all(np.abs(v).max() == 0 for v in found.values())


def test_core_ml_has_the_ranges_of_all_samples(tmp_path: Path) -> None:
    """Its quantizer brings moving averages for training, which a first small sample of a few would decide."""
    import torch

    pytest.importorskip("coremltools", exc_type=ImportError)
    model = helpers.exported(torch.nn.Linear(4, 4).eval(), (torch.zeros(1, 4),), tmp_path)
    sizes = (0.1, 0.1, 8.0, 0.1)
    data = [helpers.Sample({t.name: np.full(t.shape, n, np.float32) for t in model.signature.inputs}) for n in sizes]
    program, signature = carrier.load(model.path)
    chosen = delegates.DELEGATES["coreml"]
    recipe = replace(recipes.named("int8"), io="float32")
    made = quantize.quantize(program, signature, recipe, chosen, {}, data)  # type: ignore[arg-type]
    first = next(n for n in made.program.graph.nodes if "quantize_per_tensor" in str(n.target))
    assert float(first.args[1]) * 127 == pytest.approx(8.0, rel=0.01)
