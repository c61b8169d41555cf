"""Layer norms written out, whose sums stay outside of XNNPACK, and the memory inside of its subgraphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.calibration import recipe as recipes
from edge.targets import arena
from edge.targets.executorch import memory
from edge.targets.executorch.xnnpack_graph import DelegateGraph, Node, Value
from tests import executorch_helpers as helpers


def _written_out() -> Any:
    """Return a network with the layer norm of Flax: means as sums, the variance from the mean of squares."""
    import torch

    class Written(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = torch.nn.Linear(16, 32), torch.nn.Linear(32, 8)

        def forward(self, x: Any) -> Any:
            h = torch.relu(self.one(x))
            mean, squares = (v.sum(1) * (1 / 32) for v in (h, h * h))
            spread = torch.relu(squares - mean * mean)
            return self.two((h - mean.reshape(1, 1)) * torch.rsqrt(spread.reshape(1, 1) + 1e-6))

    return Written()


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_layer_norm_written_out_is_lowered_in_int8(tmp_path: Path) -> None:
    """Its sum reads the value that the subtraction behind it reads too: XNNPACK's partitioner saw a cycle there."""
    import torch

    model = helpers.exported(_written_out().eval(), (torch.zeros(1, 16),), tmp_path)
    made = helpers.build(model, recipes.named("int8"), tmp_path, compare_float=False)
    assert made.details["delegation"]["delegated"]["aten_sub_tensor"] == 2
    assert helpers.agreement(model, made) >= 15  # random weights, 16 samples: 18.7 dB


def _value(elements: int, *, constant: bool = False) -> Value:
    return Value(type="qint8", shape=(elements,), constant=constant)


def test_the_workspace_of_a_subgraph_holds_what_lives_at_once() -> None:
    """Ends and constants lie outside of it, and a reshape takes no memory of its own."""
    graph = DelegateGraph(
        nodes=(
            Node(kind="Conv2d", inputs=(0, 9), outputs=(1,), fields={}),
            Node(kind="StaticReshape", inputs=(1,), outputs=(2,), fields={}),
            Node(kind="Conv2d", inputs=(2, 9), outputs=(3,), fields={}),
            Node(kind="Conv2d", inputs=(3, 9), outputs=(4,), fields={}),
        ),
        values={**{i: _value(640) for i in range(5)}, 9: _value(9999, constant=True)},
        ends=frozenset((0, 4)),
    )
    assert memory.workspace_bytes(graph) == 1280


def test_tensors_that_do_not_live_together_share_memory() -> None:
    """Of three blocks the first and the last overlap in memory."""
    assert arena.planned_bytes([(100, 0, 1), (50, 1, 2), (80, 2, 3)]) == 150
