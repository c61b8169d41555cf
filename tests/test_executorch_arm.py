"""Ethos-U and Cortex-M: programs are made here where Arm's packages are, and the quantized graph is what runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.calibration import recipe as recipes
from edge.errors import ConfigError
from edge.targets import registry
from edge.targets.base import Model
from tests import executorch_helpers as helpers

pytest.importorskip("tosa_serializer", reason="needs tosa-tools")
pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A convolution, a depthwise one, a mean and a dense layer, as an exported carrier."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return helpers.exported(net.eval(), (torch.randn(1, 3, 16, 16),), tmp_path_factory.mktemp("arm"))


@pytest.mark.parametrize(
    ("name", "missing"), [("ethos-u55-128", "EthosUBackend"), ("cortex-m55", "cortex_m::quantized_linear.out")]
)
def test_arm_programs_are_made_and_their_graph_is_checked(
    name: str, missing: str, model: Model, tmp_path: Path
) -> None:
    """The target's delegate takes the operators, what cannot run here is named, and int8 is near the float module."""
    if name.startswith("ethos"):
        pytest.importorskip("ethosu.vela", reason="needs ethos-u-vela")
    options = registry.target(name).options["executorch"]
    made = helpers.build(model, recipes.named("int8"), tmp_path, **options)
    assert missing in made.details["not_run"]
    assert made.details["delegation"]["delegated_share"] >= 0.8
    assert [f.rule for f in made.findings if f.rule == "NOT_RUN_HERE"] == ["NOT_RUN_HERE"]
    assert helpers.agreement(model, made) >= 25


@pytest.mark.parametrize(
    ("delegate", "options", "message"),
    [
        ("ethos-u", {"accelerator": "ethos-u99"}, "'ethos-u99'; accepted: ethos-u55-32"),
        ("cortex-m", {"core": "M99"}, "'M99'; accepted: M0, "),
    ],
)
def test_unknown_devices_are_refused(
    delegate: str, options: dict[str, str], message: str, model: Model, tmp_path: Path
) -> None:
    """A device that the backend does not know ends with the ones that it does."""
    if delegate == "ethos-u":
        pytest.importorskip("ethosu.vela", reason="needs ethos-u-vela")
    with pytest.raises(ConfigError, match=message):
        helpers.build(model, recipes.named("int8"), tmp_path, delegates=[delegate], **{delegate: options})
