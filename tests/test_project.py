"""edge.project: settings to one Project, all errors at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import budgets, errors, project
from edge.calibration.recipe import Override
from edge.signature import Preprocess

LEAST: dict[str, Any] = {"source": "net.keras", "targets": ["coral"]}


def test_the_least_that_makes_a_project() -> None:
    """A source and a target are enough; the rest has defaults."""
    made = project.resolve(LEAST)
    assert (made.name, made.targets, made.output) == ("net", ("coral",), Path("edgekit-build"))
    assert made.recipe_for("int8", "int8").name == "int8"


def test_all_problems_are_told_at_once() -> None:
    """Every wrong setting is in one message."""
    wrong = {**LEAST, "source": "", "max_drop": "lots", "io": "int7", "recipe": "int3", "calibration_samples": 0}
    with pytest.raises(errors.ConfigError) as caught:
        project.resolve(wrong)
    for part in (
        "source:",
        "max_drop: 'lots'",
        "io: 'int7'",
        "recipe: recipe 'int3'",
        "calibration_samples: 0",
    ):
        assert part in caught.value.message


def test_a_number_where_a_text_or_a_whole_number_belongs_is_a_problem() -> None:
    """Numbers for paths, and numbers without end for counts, are told with the rest; a path may be given as one."""
    settings = {
        "source": "m.tflite",
        "targets": "rpi4",
        "output": 1.5,
        "evaluation": 3,
        "calibration_samples": math.inf,
    }
    with pytest.raises(errors.ConfigError, match="3 problem") as caught:
        project.resolve(settings)
    for told in ("output: 1.5; accepted: a text", "evaluation: 3; accepted: a text", "calibration_samples: "):
        assert told in caught.value.message
    assert project.resolve({**LEAST, "output": Path("out")}).output == Path("out")


def test_a_file_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    """Paths in edgekit.toml are relative to the file's folder; inputs are declared by name."""
    (tmp_path / "edgekit.toml").write_text(
        """
        [model]
        source = "net.py:make"
        [model.inputs.image]
        shape = [1, 3, 32, 32]
        layout = "NCHW"
        preprocess = { scale = 0.5, mean = 1.0, resize = "bilinear" }
        [data]
        calibration = "data.npz"
        [build]
        targets = ["coral", "rpi4"]
        keep_float = ["softmax", "tensor:head/.*"]
        [budgets]
        max_drop = "1%"
        max_latency = "5ms"
        max_size = "500kB"
        """
    )
    made = project.resolve(project.flat(project.read_file(tmp_path / "edgekit.toml")))
    assert made.source == str(tmp_path / "net.py:make")
    assert made.name == "make"
    assert made.calibration == str(tmp_path / "data.npz")
    declared = made.declaration.inputs["image"]
    assert (declared.shape, declared.layout) == ((1, 3, 32, 32), "NCHW")
    assert declared.preprocess == Preprocess(scale=0.5, mean=(1.0,), resize="bilinear")
    assert made.overrides == (Override(operator="SOFTMAX"), Override(tensor="head/.*"))
    assert made.budgets.as_dict() == {
        "max_drop": 0.01,
        "max_latency_ms": 5.0,
        "latency_statistic": "median",
        "latency_mode": "measured",
        "max_size_bytes": 500_000.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[bild]\nx = 1", r"\[bild\]: no such section"),
        ("[build]\ntarget = 'coral'", "build.target: no such key"),
        ("x = = 1", "is no TOML"),
    ],
)
def test_a_wrong_file_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    """Unknown sections and keys, and what is no TOML, are ConfigErrors."""
    (tmp_path / "edgekit.toml").write_text(text)
    with pytest.raises(errors.ConfigError, match=message):
        project.read_file(tmp_path / "edgekit.toml")


@given(st.floats(0, 100, allow_nan=False))
def test_a_percentage_is_a_hundredth(value: float) -> None:
    """`x%` is x / 100 for 0 to 100."""
    assert budgets.parse_share(f"{value!r}%") == pytest.approx(value / 100)


@pytest.mark.parametrize("text", ["101%", "-1%", "nan", "two", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    """Shares lie from 0 to 1."""
    with pytest.raises(ValueError, match=r"accepted|convert"):
        budgets.parse_share(text)


@pytest.mark.parametrize(("text", "ms"), [("5ms", 5.0), ("0.2s", 200.0), ("800us", 0.8), ("7", 7.0), (" 3 MS ", 3.0)])
def test_durations(text: str, ms: float) -> None:
    """Durations have units; a plain number is milliseconds."""
    assert budgets.parse_duration_ms(text) == pytest.approx(ms)


@pytest.mark.parametrize(("text", "size"), [("500kB", 500_000), ("2MiB", 2 * 2**20), ("12", 12), ("3B", 3)])
def test_sizes(text: str, size: int) -> None:
    """Sizes have decimal and binary units; a plain number is bytes."""
    assert budgets.parse_size(text) == size


@pytest.mark.parametrize("text", ["0ms", "-5ms", "fast", "inf", "nan", "5 parsec"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """A duration is a finite number above 0 with a known unit."""
    with pytest.raises(ValueError, match="accepted: a duration"):
        budgets.parse_duration_ms(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("image=1,3,8,8", ("image", (1, 3, 8, 8))), ("1x16", ("0", (1, 16))), ("a=b=1,2", ("a=b", (1, 2)))],
)
def test_shapes(text: str, expected: tuple[str, tuple[int, ...]]) -> None:
    """A shape names its input, or is the first one's."""
    assert project.parse_shape(text) == expected


@given(st.text(max_size=40))
def test_a_default_name_is_a_safe_folder_name(source: str) -> None:
    """Whatever a source is called, its default name is not empty and cannot leave the output folder."""
    name = project.default_name(source)
    assert name
    assert not set(name) & set('/\\:\0*?"<>|')
    assert name not in (".", "..")


def test_splitting_outputs_means_nothing_to_float_recipes() -> None:
    """--split-outputs auto goes with every recipe: only the static ones have ranges that can clash."""
    made = project.resolve({**LEAST, "split_outputs": "auto"})
    assert made.recipe_for("int8", "int8").split_outputs
    assert not made.recipe_for("float32", "int8").split_outputs
