"""PyTorch Mobile: the trace check, and quantization of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.calibration.data import Sample
from edge.calibration.recipe import Recipe
from edge.errors import ConversionError
from edge.isolate import no_progress
from edge.targets.torch_mobile import lower
from edge.targets.torch_mobile.runtime import TorchMobile

torch = pytest.importorskip("torch")
from tests import torch_mobile_models as nets  # noqa: E402

pytestmark = pytest.mark.frameworks


class Branch(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: Any) -> Any:
        return (x * 2 if bool(x.sum() > 0) else x - 1,)


class Sized(torch.nn.Module):  # type: ignore[misc,name-defined]
    def forward(self, x: Any) -> Any:
        return (x.new_zeros(int(x[0, 0])) + 1,)


@pytest.mark.parametrize("module", [Branch(), Sized()])
def test_a_traced_decision_on_data_is_an_error(module: Any) -> None:
    """A trace that would keep one branch, or one size, differs on another input: torch.cond is proposed."""
    inputs = [(torch.full((1, 3), 2.0),), (torch.full((1, 3), -3.0 if isinstance(module, Branch) else 4.0),)]
    with pytest.raises(ConversionError) as caught:
        lower.trace(module.eval(), inputs)
    assert "torch.cond" in str(caught.value.hint)


def test_difference_is_infinite_for_what_cannot_be_compared() -> None:
    """Another shape, another dtype or a NaN on one side is an infinite difference; equal infinities are none."""
    one = torch.tensor([1.0, float("inf")])
    assert lower.largest_difference([one], [one.clone()]) == 0
    assert lower.largest_difference([one], [torch.tensor([1.5, float("inf")])]) == 0.5
    for other in (torch.ones(3), one.double(), torch.tensor([float("nan"), float("inf")])):
        assert lower.largest_difference([one], [other]) == float("inf")


def _digits() -> tuple[Any, Any]:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return images.astype(np.float32).reshape(-1, 1, 8, 8), labels


def _trained(x: Any, y: Any) -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        nets.block(1, 16, torch.nn.ReLU6, kernel_size=3, padding=1),
        nets.block(16, 16, torch.nn.ReLU6, kernel_size=3, padding=1, groups=16),
        nets.block(16, 32, torch.nn.ReLU6, kernel_size=1, stride=2),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(8):
        for chosen in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[chosen] / 16), y[chosen]).backward()
            optimizer.step()
    return net.eval()


@pytest.mark.parametrize("estimator", ["minmax", "percentile"])
def test_int8_of_a_trained_network_keeps_its_accuracy(estimator: Any, tmp_path: Path) -> None:
    """Static int8 of digits trained here stays within one point of float, and the file is smaller."""
    images, labels = _digits()
    net = _trained(torch.from_numpy(images[:1297]), torch.from_numpy(labels[:1297]))
    model = nets.carrier(net, ((1, 1, 8, 8),), tmp_path)
    samples = [Sample(id=str(i), inputs={"x0": images[i : i + 1] / 16}) for i in range(100)]
    scores = {}
    sizes = {}
    for recipe in (Recipe(scheme="float32"), Recipe(scheme="int8", io="float32", estimator=estimator)):
        program = TorchMobile().build(model, recipe, nets.PHONE, samples, tmp_path, no_progress)  # type: ignore[arg-type]
        session = TorchMobile().open(program.path, kernels="qnnpack", threads=1)
        found = [session.run({"x0": i[None] / 16})["y0"].argmax() for i in images[1297:]]
        scores[recipe.scheme] = float(np.mean(np.array(found) == labels[1297:]))
        sizes[recipe.scheme] = TorchMobile().inspect(program.path, None, {}).parameter_bytes
    assert scores["float32"] > 0.9
    assert scores["int8"] >= scores["float32"] - 0.01
    assert sizes["int8"] < 0.5 * sizes["float32"]
