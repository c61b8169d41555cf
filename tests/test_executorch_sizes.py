"""Open dimensions and further methods of a `.pte`: declared, exported, run at several sizes, and run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import project
from edge.calibration import recipe as recipes
from edge.errors import ConfigError
from edge.sources import declared
from edge.sources.base import Declaration, InputDeclaration, OpenDimension
from edge.targets.executorch import faster, vectors
from edge.targets.executorch.lower import Delegation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::ResourceWarning")

NETS = """
import torch
from torch import nn

class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 8, 3, padding=1), nn.Linear(8, 2)
    def forward(self, steps):
        return self.head(torch.relu(self.conv(steps.transpose(1, 2))).transpose(1, 2))
    def encode(self, steps):
        return steps.mean(1)

class Fixed(nn.Module):
    def forward(self, steps):
        return steps.reshape(1, 40) * 2

def steps():
    torch.manual_seed(0)
    return Steps(), (torch.randn(1, 10, 4),), {"encode": (torch.randn(1, 6, 4),)}

def fixed():
    return Fixed(), (torch.randn(1, 10, 4),)
"""


def _loaded(folder: Path, name: str, shape: str) -> Any:
    from edge.sources.torch import TorchSource

    (folder / "nets.py").write_text(NETS)
    _, dims = project.parse_shape(shape)
    wish = InputDeclaration(**project.declared_shape(dims))
    return TorchSource().load(f"{folder / 'nets.py'}:{name}", Declaration(inputs={"steps": wish}, layout="keep"))


@pytest.mark.parametrize(
    ("text", "shape", "opened"),
    [
        ("1,3,32", (1, 3, 32), ()),
        ("x=-1,3", (-1, 3), (OpenDimension(axis=0),)),
        ("x=1,2..64,3", (1, -1, 3), (OpenDimension(axis=1, least=2, most=64),)),
    ],
)
def test_shapes_with_open_dimensions_are_read(text: str, shape: Any, opened: Any) -> None:
    """A size, -1 and LEAST..MOST are what a dimension may be."""
    assert project.declared_shape(project.parse_shape(text)[1]) == {"shape": shape, "open": opened}


@pytest.mark.parametrize("text", ["x=1,64..2", "x=1,0", "x=1,-2", "x=1,a..b", "x=1,3..3"])
def test_shapes_that_say_nothing_are_refused(text: str) -> None:
    """Bounds must rise from 1, and sizes must be sizes."""
    with pytest.raises(ValueError, match="accepted"):
        project.parse_shape(text)


def test_an_example_is_kept_where_it_lies_within_the_bounds() -> None:
    """The example's size counts within the bounds, their middle outside of them."""
    wish = InputDeclaration(shape=(1, -1, 4), open=(OpenDimension(axis=1, least=2, most=20),))
    assert declared.example_shape("x", wish, (1, 10, 4)) == (1, 10, 4)
    assert declared.example_shape("x", wish, (1, 99, 4)) == (1, 11, 4)


def test_an_open_dimension_of_unknown_size_is_refused() -> None:
    """Without bounds and without an example only the batch has a size of its own."""
    with pytest.raises(ConfigError, match="Dimension 1 of 'x' is open"):
        declared.example_shape("x", InputDeclaration(shape=(1, -1), open=(OpenDimension(axis=1),)))


def test_fixed_runtimes_refuse_open_dimensions(tmp_path: Path) -> None:
    """A build for LiteRT with an open dimension stops before any work, and names the runtime that takes it."""
    from edge.steps import resolve_steps

    (tmp_path / "nets.py").write_text(NETS)
    settings = {"source": f"{tmp_path}/nets.py:steps", "targets": ["linux"], "recipe": "float32"}
    wished = project.resolve({**settings, "shapes": {"steps": (1, (2, 20), 4)}})
    with pytest.raises(ConfigError, match="accepted by: executorch"):
        resolve_steps(wished)


@pytest.mark.frameworks
def test_a_module_that_fixes_an_open_dimension_is_refused(tmp_path: Path) -> None:
    """A reshape to one size is named before anything is exported."""
    from edge.errors import ConversionError

    with pytest.raises(ConversionError, match="takes no other size of its open dimensions"):
        _loaded(tmp_path, "fixed", "1,2..20,4")


@pytest.mark.frameworks
@pytest.mark.parametrize("recipe", ["float32", "dynamic"])
def test_a_program_runs_at_all_sizes_and_by_all_methods(recipe: str, tmp_path: Path) -> None:
    """Smallest, middle and largest size of forward, and `encode`, are run, recorded, and repeated by a later check."""
    from edge.targets.base import Model
    from tests import executorch_helpers as helpers

    loaded = _loaded(tmp_path, "steps", "1,1..20,4")
    assert [t.shape for t in (*loaded.signature.inputs, *loaded.signature.outputs)] == [(1, -1, 4), (1, -1, 2)]
    loaded.to_exported(tmp_path / "carrier.pt2")
    model = Model(carrier="exported", path=tmp_path / "carrier.pt2", signature=loaded.signature)
    made = helpers.build(model, recipes.named(recipe, io="float32"), tmp_path / "build")
    runs = made.details["runs"]
    assert [f.rule for f in made.findings if f.severity == "error"] == []
    assert made.details["dynamic"] == [{"input": "steps", "axis": 1, "least": 1, "most": 20}]
    assert sorted(r["inputs"]["steps"][1] for r in runs if r["method"] == "forward") == [1, 10, 20]
    assert [r["outputs"] for r in runs if r["method"] == "encode"] == [{"output_0": [1, 4]}]
    assert vectors.repeat(made.path) == []
    _change_one_value(made.path.with_name(vectors.FILE))
    assert [f.rule for f in vectors.repeat(made.path)] == ["GOLDEN_MISMATCH"]


def _change_one_value(path: Path) -> None:
    with np.load(path) as data:
        held = {key: data[key] for key in data.files}
    key = next(k for k in held if "/out/" in k)
    held[key] = held[key] + 1
    np.savez(path, **held)


def test_reasons_for_slow_int8_name_what_was_lost() -> None:
    """More portable operators, more subgraphs, a small model and a CPU without 8-bit products are all named."""
    int8 = Delegation(subgraphs=3, inside=4, outside=1, delegated={"a": 4}, portable={"aten_mean_dim": 1})
    float32 = Delegation(subgraphs=1, inside=5, outside=0, delegated={"a": 5})
    speed = faster.Speed(float32_ms=0.01, int8_ms=0.02, ratio=0.5)
    (finding,) = faster.finding(speed, int8, float32)
    told = faster.reasons(speed, int8, float32, frozenset())
    assert len(told) == 4
    assert "aten_mean_dim" in told[0]
    assert "0.020 ms" in finding.message


def test_a_faster_int8_program_needs_no_finding() -> None:
    """Above a ratio of 1 nothing is said."""
    same = Delegation(subgraphs=1, inside=1, outside=0)
    assert faster.finding(faster.Speed(float32_ms=2.0, int8_ms=1.0, ratio=2.0), same, same) == ()
