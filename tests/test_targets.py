"""The catalogue of targets, and targets of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge import errors
from edge.targets import registry

NEEDED = ["android", "coral", "coral-devboard", "coral-pcie", "coral-usb", "linux", "rpi-zero2", "rpi3", "rpi4", "rpi5"]


def test_the_catalogue_has_the_promised_targets() -> None:
    """Every promised target is there and parses."""
    assert set(NEEDED) <= set(registry.names())
    for name in registry.names():
        target = registry.target(name)
        assert target.title
        assert target.recipe in target.recipes


def test_a_variant_extends_its_family() -> None:
    """coral-pcie is coral but for how tensors travel."""
    base, variant = registry.target("coral"), registry.target("coral-pcie")
    assert (base.hardware["transfer"], variant.hardware["transfer"]) == ("usb3", "pcie")
    assert variant.recipes == base.recipes
    assert variant.options == base.options


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    """A TOML file adds a board, from scratch or extending one of the catalogue."""
    (tmp_path / "shop-floor.toml").write_text('extends = "rpi4"\ntitle = "Panel PC"\n[hardware]\nclock_mhz = 1500\n')
    target = registry.target(str(tmp_path / "shop-floor.toml"))
    assert (target.name, target.title, target.family) == ("shop-floor", "Panel PC", "raspberry-pi")
    assert target.hardware["clock_mhz"] == 1500
    assert target.hardware["cpu"] == "cortex-a72"


def test_an_unknown_target_names_the_known_ones() -> None:
    """A misspelt target is a ConfigError (exit 2) that lists what is accepted."""
    with pytest.raises(errors.ConfigError, match=r"'corral' is unknown.*coral-usb") as caught:
        registry.target("corral")
    assert caught.value.exit_code == 2


def test_a_wrong_file_tells_every_problem(tmp_path: Path) -> None:
    """All problems of a target file are in one message."""
    path = tmp_path / "bad.toml"
    path.write_text('extends = "rpi4"\ncolour = 3\nrecipe = "int3"\nruntimes = ["onnx"]\n')
    with pytest.raises(errors.ConfigError) as caught:
        registry.target(str(path))
    for part in ("colour: no such key", "recipe: 'int3' is not among recipes", "runtimes: 'onnx' is unknown"):
        assert part in caught.value.message


@pytest.mark.parametrize("text", ['extends = "nowhere"', "= 1", 'title = "x"'])
def test_files_that_cannot_be_targets(tmp_path: Path, text: str) -> None:
    """An unknown base, broken TOML and missing keys are ConfigErrors."""
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(errors.ConfigError):
        registry.target(str(tmp_path / "bad.toml"))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A target file that is not there is a ConfigError with its path."""
    with pytest.raises(errors.ConfigError, match=r"none\.toml cannot be read"):
        registry.target(str(tmp_path / "none.toml"))
