"""The latency that is predicted for a `.pte`: what XNNPACK's subgraphs and portable kernels compute, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edge.calibration import recipe as recipes
from edge.targets import registry
from edge.targets.executorch import program, work, xnnpack_graph
from edge.targets.executorch.runtime import ExecuTorch
from edge.targets.roofline import OTHER_RUNTIME_LOG_WIDTH, Work
from tests import executorch_helpers as helpers

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that builds an architecture of the zoo once and returns the program's path."""
    pytest.importorskip("executorch")
    folder, found = tmp_path_factory.mktemp("work"), {}

    def path(name: str, recipe: str = "float32", **options: Any) -> Path:
        key = f"{name}-{recipe}-{'-'.join(options.get('delegates', ()))}"
        if key not in found:
            model = helpers.imported(name, folder / name)
            target = helpers.target(**{"compare_float": False, **options})
            given: Any = helpers.samples(model.signature) if recipe == "int8" else None
            (folder / key).mkdir()
            found[key] = (
                ExecuTorch().build(model, recipes.named(recipe), target, given, folder / key, lambda *_: None).path
            )
        return found[key]

    return path


def work_of(path: Path) -> tuple[Work, ...]:
    """Return the work of a program."""
    return work.work_of(program.deserialized(path))


def module_macs(name: str) -> int:
    """Return the multiply-accumulates of a module's convolutions and dense layers, counted as they run."""
    import torch
    from torch import nn

    from tests import zoo

    module, examples = zoo.make(name)
    counted = []

    def count(layer: Any, inputs: Any, output: Any) -> None:
        if isinstance(layer, nn.ConvTranspose2d):
            counted.append(inputs[0].numel() * layer.weight[0].numel())
        else:
            counted.append(output.numel() * layer.weight[0].numel())

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module(*examples)
    return sum(counted)


@pytest.mark.parametrize("name", ["mobile-v2", "unet", "audio"])
@pytest.mark.parametrize("recipe", ["float32", "int8"])
def test_the_macs_are_those_of_the_module(name: str, recipe: str, made: Any) -> None:
    """Convolutions, depthwise and transposed ones, and dense layers: counted in the program as in the module."""
    found = work_of(made(name, recipe))
    assert sum(w.macs for w in found) == module_macs(name)
    assert {w.arithmetic for w in found if w.macs} == {recipe}


def test_attention_counts_its_products(made: Any) -> None:
    """Two blocks of 4 heads over 16 tokens: queries times keys, and weights times values, beside the dense layers."""
    products = 2 * 2 * 4 * 16 * 16 * 8
    assert sum(w.macs for w in work_of(made("vit"))) == module_macs("vit") + products


def test_clamps_cost_nothing_behind_a_convolution(made: Any) -> None:
    """XNNPACK makes ReLU6's bounds those of the convolution: each is no operator of its own."""
    file = program.deserialized(made("mobile-v2", "int8"))
    payloads = [bytes(d.data) for d in file.program.backend_delegate_data]
    kinds = [n.kind for p in payloads for n in xnnpack_graph.read(p).nodes]
    assert kinds.count("Clamp") == 10
    # What is left: convolutions, dense layer, additions, layout changes, conversions, and the portable mean.
    assert len(work_of(made("mobile-v2", "int8"))) == len(kinds) - 10 + 1


@pytest.mark.parametrize("board", ["rpi-zero2", "rpi3", "rpi4", "rpi5"])
def test_every_board_of_the_catalogue_has_a_prediction(board: str, made: Any) -> None:
    """All threads of the target first, then one, each within an interval that is wider than LiteRT's."""
    target = registry.target(board)
    found = ExecuTorch().inspect(made("audio"), target, {}).details["latency_ms"]
    assert list(found) == ["threads_4", "threads_1"]
    own = target.hardware["roofline"]["log_width"]
    for one in found.values():
        assert 0 < one["low"] < one["value"] < one["high"]
        assert math.log(one["high"] / one["value"]) >= math.hypot(own, OTHER_RUNTIME_LOG_WIDTH) - 1e-9


@pytest.mark.parametrize(
    ("name", "recipe", "options", "reason"),
    [
        ("unet", "float16", {}, "float16 arithmetic runs on kernels that no published latency tells of"),
        ("audio", "float32", {"delegates": ["portable"]}, "aten::convolution.out runs on a portable kernel"),
    ],
)
def test_what_cannot_be_predicted_says_why(
    name: str, recipe: str, options: dict[str, Any], reason: str, made: Any
) -> None:
    """float16 kernels, and convolutions that no delegate takes: the reason stands in place of the prediction."""
    found = ExecuTorch().inspect(made(name, recipe, **options), registry.target("rpi5"), {}).details
    assert "latency_ms" not in found
    assert found["latency_note"].startswith(f"no latency is predicted: {reason}")


def test_targets_without_a_roofline_have_none(made: Any) -> None:
    """Nothing is said for a phone."""
    assert work.predicted_latency(made("audio"), registry.target("android")) == {}


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0\0\0\0XH00" + bytes(22), b"\0\0\0\0XH00" + b"\xff" * 64, b"\0\0\0\0XN01" + bytes(64)],
    ids=["empty", "no graph", "beyond its end", "old"],
)
def test_a_damaged_payload_is_told(payload: bytes) -> None:
    """What is no graph of XNNPACK ends with one error, whatever the decoder makes of it."""
    with pytest.raises(ValueError, match="the delegate's"):
        xnnpack_graph.read(payload)
