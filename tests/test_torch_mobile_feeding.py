"""Layers behind operators that only move values are quantized for PyTorch Mobile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.isolate import no_progress

torch = pytest.importorskip("torch")
from edge.targets.torch_mobile import quantize  # noqa: E402

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


class Moved(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A linear layer behind movers of the input, or of what another operator computes in float."""

    def __init__(self, before: Callable[[Any], Any]) -> None:
        super().__init__()
        self.before = before
        self.layer, self.last = torch.nn.Linear(32, 24), torch.nn.Linear(24, 4)

    def forward(self, x: Any) -> Any:
        return self.last(torch.relu(self.layer(self.before(x))))


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x.reshape(-1, 32),
        lambda x: x.permute(0, 2, 1).reshape(1, 32),
        lambda x: torch.exp(x).reshape(1, 4, 8).reshape(1, 32),
    ],
    ids=["input", "permuted", "float-operator"],
)
def test_a_layer_behind_movers_is_not_left_float(before: Callable[[Any], Any]) -> None:
    """FX alone leaves the first layer of such a network float, because it observes no value before it."""
    torch.manual_seed(0)
    program = torch.export.export(Moved(before).eval(), (torch.zeros(1, 4, 8),))
    samples = [[torch.randn(1, 4, 8)] for _ in range(16)]
    made = quantize.static(program, recipes.named("int8"), lambda: samples, no_progress)
    left = made.details["operator_kinds_left_float"]
    assert not [name for name in left if "Linear" in name]
    with quantize.engine(), torch.no_grad():
        wanted = np.stack([program.module()(*s).numpy() for s in samples])
        found = np.stack([made.module(*s)[0].numpy() for s in samples])
    assert np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()
