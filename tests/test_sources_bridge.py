"""Crossings from other frameworks to the exported carrier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.sources import registry
from edge.sources.base import Declaration, InputDeclaration
from tests.onnx_models import convolution, save

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch: Any = pytest.importorskip("torch")
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


def results(path: Path, *inputs: Any) -> list[Any]:
    """Run an exported carrier."""
    program = torch.export.load(str(path)).module()
    found = program(*[torch.from_numpy(i) for i in inputs])
    return [t.detach().numpy() for t in (found if isinstance(found, (tuple, list)) else (found,))]


def test_onnx_is_exported_channel_first(tmp_path: Path) -> None:
    """With layouts kept, an ONNX model has its own shapes, and its exported program gives onnxruntime's results."""
    proto = convolution(np.random.default_rng(3))
    loaded: Any = registry.load(str(save(proto, tmp_path)), Declaration(layout="keep"))
    assert [str(t) for t in (*loaded.signature.inputs, *loaded.signature.outputs)] == [
        "image: float32[1, 3, 8, 8] NCHW",
        "scores: float32[1, 5]",
    ]
    loaded.to_exported(tmp_path / "m.pt2")
    image = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    (scores,) = results(tmp_path / "m.pt2", image)
    np.testing.assert_allclose(scores, loaded.run({"image": image})["scores"], rtol=1e-4, atol=1e-5)


def test_torchscript_is_exported(tmp_path: Path) -> None:
    """A TorchScript archive's exported program gives the archive's results."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    torch.jit.trace(network.eval(), torch.rand(1, 3, 8, 8)).save(str(tmp_path / "m.pt"))
    inputs = {"0": InputDeclaration(shape=(1, 3, 8, 8))}
    loaded: Any = registry.load(str(tmp_path / "m.pt"), Declaration(layout="keep", inputs=inputs))
    loaded.to_exported(tmp_path / "m.pt2")
    image = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    (scores,) = results(tmp_path / "m.pt2", image)
    np.testing.assert_allclose(scores, loaded.run({"input": image})["output_0"], rtol=1e-4, atol=1e-5)
