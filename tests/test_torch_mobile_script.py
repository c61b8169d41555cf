"""The script route of PyTorch Mobile: branches and loops on data stay in the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration import recipe as recipes
from edge.errors import ConversionError, QuantizationError
from edge.sources.base import Declaration
from edge.targets.base import Model, Target

pytestmark = pytest.mark.frameworks
NETS = """
import torch
from torch import nn

class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return {"y": x * 2}
        return {"y": x - 1}

class Odd(nn.Module):
    def forward(self, x):
        return x * (i for i in range(3)).__next__()

def branch():
    return Branch(), (torch.ones(1, 4),)

def odd():
    return Odd(), (torch.ones(1, 4),)
"""


def _scripted(folder: Path, name: str) -> Model:
    from edge.sources.torch import TorchSource

    (folder / "nets.py").write_text(NETS)
    loaded: Any = TorchSource().load(f"{folder / 'nets.py'}:{name}", Declaration(layout="keep"))
    loaded.to_scripted(folder / "carrier.pt")
    return Model(carrier="scripted", path=folder / "carrier.pt", signature=loaded.signature)


def _build(model: Model, recipe: str, folder: Path) -> Any:
    from edge.targets.torch_mobile.runtime import TorchMobile

    target = Target(name="t", title="t", family="android", runtimes=("torch_mobile",))
    return TorchMobile().build(model, recipes.named(recipe, io="float32"), target, None, folder, lambda *_: None)


def test_a_scripted_branch_takes_both_sides(tmp_path: Path) -> None:
    """The `.ptl` computes either side by its data, as the module does, and names its operators."""
    from edge.targets.torch_mobile.runtime import TorchMobile

    model = _scripted(tmp_path, "branch")
    made = _build(model, "float32", tmp_path)
    session = TorchMobile().open(made.path, kernels="qnnpack", threads=1)
    up = np.ones((1, 4), np.float32)
    assert session.run({"x": up})["y"].tolist() == (2 * up).tolist()
    assert session.run({"x": -up})["y"].tolist() == (-2 * up).tolist()
    assert TorchMobile().open_carrier(model.path).run({"x": -up})["y"].tolist() == (-2 * up).tolist()
    assert any(o.startswith("aten::mul") for o in made.details["operators"])
    assert "LEGACY_RUNTIME" in {f.rule for f in made.findings}


def test_quantizing_recipes_are_refused(tmp_path: Path) -> None:
    """What the script route cannot do is said with the way that can."""
    with pytest.raises(QuantizationError, match="makes float32 programs, not dynamic"):
        _build(_scripted(tmp_path, "branch"), "dynamic", tmp_path)


def test_what_torchscript_refuses_names_the_line(tmp_path: Path) -> None:
    """The user's file and line stand in the message."""
    with pytest.raises(ConversionError, match=r"refuses the module at nets.py, line \d+"):
        _scripted(tmp_path, "odd")
