"""Networks written in PyTorch end as integer programs that compute what the network computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.targets.litert import contract, flatbuffer, prepare, quantize, session
from tests.tflite_builder import Samples

pytestmark = [pytest.mark.frameworks, pytest.mark.slow]


def _converted(network: Any, *inputs: Any) -> Any:
    litert_torch = pytest.importorskip("litert_torch")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = flatbuffer.load(bytes(litert_torch.convert(network.eval(), inputs).model_content()))
    prepare.canonical(model, contract.signature_of(model))
    return model


def _relative_error(network: Any, program: bytes, samples: Samples) -> float:
    import torch

    opened: Any = session.LiteRTSession(program, kernels="builtin", threads=1)
    target = opened.signature.outputs[0].name
    wanted, found = [], []
    for sample in samples:
        with torch.no_grad():
            wanted.append(network(*(torch.from_numpy(v) for v in sample.inputs.values())).numpy())
        found.append(session.run_float(opened, sample.inputs)[target])
    error = np.concatenate(found) - np.concatenate(wanted)
    return float(np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(np.concatenate(wanted) ** 2)))


def test_prelu_network_is_integer_throughout() -> None:
    """Convolution, PReLU, LeakyReLU, ReLU6 and a residual: no operator stays float, the error is a few percent."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn

    class Network(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.prelu, self.head = nn.PReLU(8), nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            x = self.prelu(self.first(x))
            x = nn.functional.leaky_relu(self.second(x)) + x
            return self.head(nn.functional.relu6(x).mean((2, 3)))

    network = Network()
    model = _converted(network, torch.zeros(1, 3, 16, 16))
    rng = np.random.default_rng(0)
    samples = Samples([{"args_0": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(16)])
    made = quantize.quantize(model, recipes.named("int8"), samples, full_integer=True)
    assert made.coverage.left_float == ()
    assert _relative_error(network, made.program, samples) < 0.05


def test_padding_mask_survives() -> None:
    """Attention with a padding mask of -inf, which the bare quantizer destroys, is right in int8."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)

        def forward(self, x: Any, padding: Any) -> Any:
            scores = self.query(x) @ self.key(x).transpose(1, 2) / 4
            return torch.softmax(scores.masked_fill(padding[:, None], float("-inf")), -1) @ x

    network = Attention()
    model = _converted(network, torch.zeros(1, 6, 16), torch.zeros(1, 6, dtype=torch.bool))
    rng = np.random.default_rng(0)
    samples = Samples(
        [
            {
                "args_0": rng.standard_normal((1, 6, 16)).astype(np.float32),
                "args_1": np.arange(6)[None] >= rng.integers(2, 7),
            }
            for _ in range(32)
        ]
    )
    made = quantize.quantize(model, recipes.named("int8"), samples)
    assert "MASK_BOUNDED" in [f.rule for f in made.findings]
    assert _relative_error(network, made.program, samples) < 0.05
