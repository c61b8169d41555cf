"""Paddings, identities and constants in concatenations, which ExecuTorch or XNNPACK refuse as a network states them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.calibration import recipe as recipes
from edge.targets.executorch import carrier, program, quantize, simplify, work
from tests import executorch_helpers as helpers

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def _module(name: str) -> Any:
    import torch
    from torch.nn import functional

    class Padded(torch.nn.Module):  # type: ignore[misc]
        """Several readers of one int8 tensor, a padding among them whose own readers are float."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            x = self.conv(x).reshape(1, 4, -1)
            return functional.pad(x, (3, 3)).neg() * 2, x + 1, x[..., :4]

    class Joined(torch.nn.Module):  # type: ignore[misc]
        """A learned token, far smaller than what it is joined to."""

        def __init__(self) -> None:
            super().__init__()
            self.linear, self.out = torch.nn.Linear(8, 6), torch.nn.Linear(6, 3)
            self.token = torch.nn.Parameter(torch.linspace(-0.01, 0.02, 6).reshape(1, 1, 6))

        def forward(self, x: Any) -> Any:
            return self.out(torch.cat([self.token, 10 * self.linear(x)], 1))

    class Cropped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Any) -> Any:
            x = torch.ops.aten.alias(self.conv(x))
            x = functional.pad(x, (-1, 2, -2, -1), value=0.0 if name == "cropped" else 3.0)
            return functional.pad(x, (0, -1)) + 1.0

    torch.manual_seed(0)
    made: torch.nn.Module = {"padded": Padded, "joined": Joined}[name]() if name in ("padded", "joined") else Cropped()
    return made.eval()


_SHAPES = {"padded": (1, 3, 8, 8), "joined": (1, 5, 8), "cropped": (1, 3, 8, 8), "filled": (1, 3, 8, 8)}


@pytest.mark.parametrize("name", ["padded", "joined", "cropped"])
def test_an_int8_program_is_loaded_and_agrees(name: str, tmp_path: Path) -> None:
    """XNNPACK refuses, when it loads them, mixed types in a padding and different steps in a concatenation."""
    import torch

    model = helpers.exported(_module(name), (torch.zeros(_SHAPES[name]),), tmp_path)
    made = helpers.build(model, recipes.named("int8"), tmp_path, compare_float=False)
    assert helpers.agreement(model, made) >= 30


@pytest.mark.parametrize("name", ["cropped", "filled"])
def test_cropping_and_identities_are_rewritten_exactly(name: str) -> None:
    """Negative paddings become slices with equal results; `alias` is gone."""
    import torch

    module, x = _module(name), torch.randn(_SHAPES[name])
    exported = torch.export.export(module, (x,))
    assert simplify.needed(exported.graph)
    made = quantize.folded(exported, carrier.unnamed(exported))
    assert not simplify.needed(made.graph)
    assert "alias" not in str(made.graph)
    assert torch.equal(made.module()(x), module(x))


def test_cropping_keeps_open_dimensions() -> None:
    """The end of a slice is counted from behind, so that a size that is open stays so."""
    import torch

    module, x = _module("cropped"), torch.randn(1, 3, 9, 12)
    open_width = ({3: torch.export.Dim("width", min=8, max=32)},)
    exported = torch.export.export(module, (torch.zeros(1, 3, 9, 16),), dynamic_shapes=open_width)
    made = quantize.folded(exported, carrier.unnamed(exported))
    assert torch.equal(made.module()(x), module(x))


def test_an_input_that_is_an_output_stays_a_copy() -> None:
    """Without its alias the program would hand out the caller's own memory."""
    import torch

    class Through(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.ops.aten.alias(x), x + 1

    assert not simplify.needed(torch.export.export(Through(), (torch.zeros(2),)).graph)


def test_int8_networks_pad_in_integers(tmp_path: Path) -> None:
    """No tensor between int8 convolutions is float for a padding, and an input that a padding reads is int8."""
    import torch

    class Strided(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.Conv2d(8, 8, 3, stride=2)

        def forward(self, x: Any) -> Any:
            pad = torch.nn.functional.pad
            return self.two(pad(torch.relu(self.one(pad(x, (0, 1, 0, 1)))), (0, 1, 0, 1)))

    torch.manual_seed(0)
    model = helpers.exported(Strided().eval(), (torch.zeros(1, 3, 16, 16),), tmp_path)
    made = helpers.build(model, recipes.named("int8"), tmp_path, compare_float=False)
    assert made.signature.inputs[0].dtype == "int8"
    file = program.deserialized(made.path)
    plan = next(p for p in file.program.execution_plan if p.name == "forward")
    graphs = [work.delegate_graph(file, d) for d in plan.delegates]
    pads = [(g, n) for g in graphs for n in g.nodes if n.kind == "StaticConstantPad"]
    assert len(pads) == 2
    assert {g.values[v].type for g, n in pads for v in (*n.inputs, *n.outputs)} == {"qint8"}
    assert helpers.agreement(model, made) >= 25
