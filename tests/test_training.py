"""Quantization-aware fine-tuning: what is asked of the user, what is refused, and how epochs are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import project
from edge.errors import ConfigError, SourceError, UsageError
from edge.isolate import no_progress
from edge.project import Training
from edge.stages import training

SETTINGS = {"source": "net.keras", "targets": ["rpi4"], "calibration": "data.npz"}


def test_qat_without_a_function_is_refused() -> None:
    """The message names the option and the key of edgekit.toml."""
    with pytest.raises(ConfigError, match=r"train\(model, epoch\): --train FILE.py:FUNCTION, or train = ") as caught:
        project.resolve({**SETTINGS, "recipe": "qat"})
    assert "[recipe] of edgekit.toml" in caught.value.message


def test_qat_is_int8_with_a_training() -> None:
    """The recipe is the target's int8; epochs, seed and time are the training's."""
    made = project.resolve(
        {**SETTINGS, "recipe": "qat", "train": "t.py:train", "epochs": 2, "seed": 7, "train_time": "90s"}
    )
    assert made.training == Training(function="t.py:train", epochs=2, seed=7, time_limit_s=90.0)
    assert made.recipe_for("int8", "int8").name == "int8"


def test_train_goes_with_qat_only() -> None:
    """A function beside another recipe would never run."""
    with pytest.raises(ConfigError, match="train: goes with the recipe qat, not with int8"):
        project.resolve({**SETTINGS, "recipe": "int8", "train": "t.py:train"})


class _Trainee:
    def __init__(self) -> None:
        self.model: list[Any] = []

    def observe(self, samples: Any) -> None:
        """Need nothing."""

    def settle(self) -> None:
        self.model.append("settled")

    def finish(self, workdir: Path) -> Any:
        raise NotImplementedError


def _train(function: Any, **changes: Any) -> tuple[training.Trained, list[Any]]:
    trainee = _Trainee()
    record = training._train(function, trainee, Training(function="t.py:train", **changes), no_progress)
    return record, trainee.model


def test_ranges_settle_after_half_of_the_epochs() -> None:
    """The function is called once per epoch, counted from 0; its losses are recorded."""

    def function(model: list[Any], epoch: int) -> float:
        model.append(epoch)
        return 1.0 / (epoch + 1)

    record, seen = _train(function, epochs=4)
    assert seen == [0, 1, "settled", 2, 3]
    assert record.losses == (1.0, 0.5, 1 / 3, 0.25)
    assert (record.epochs, record.stopped) == (4, "all epochs done")


def test_epochs_are_seeded() -> None:
    """Two runs draw the same numbers."""
    draws: list[float] = []

    def function(model: list[Any], epoch: int) -> None:
        draws.append(float(np.random.random()))

    _train(function, epochs=2, seed=3)
    _train(function, epochs=2, seed=3)
    assert draws[:2] == draws[2:]
    assert draws[0] != draws[1]


def test_the_time_limit_stops_between_epochs() -> None:
    """What was trained until then is kept, and the record says why it is less."""
    record, seen = _train(lambda model, epoch: model.append(epoch), epochs=50, time_limit_s=1e-9)
    assert seen == [0]
    assert record.stopped.startswith("the time limit")


def test_a_failing_function_is_named() -> None:
    """The user's exception becomes one message with their function."""

    def function(model: list[Any], epoch: int) -> None:
        raise ValueError("no such file")

    with pytest.raises(SourceError, match=r"train\(model, 0\) raised ValueError: no such file"):
        _train(function)


def test_a_diverging_loss_ends_it() -> None:
    """NaN is no loss to go on with."""
    with pytest.raises(SourceError, match="the loss is nan after epoch 0"):
        _train(lambda model, epoch: float("nan"))


def test_a_function_of_another_form_is_refused(tmp_path: Path) -> None:
    """It takes the model and the epoch."""
    (tmp_path / "train.py").write_text("def train(model):\n    pass\n")
    with pytest.raises(UsageError, match="takes 1 arguments; accepted: 2"):
        training._function(f"{tmp_path / 'train.py'}:train")


def test_other_sources_are_refused(tmp_path: Path) -> None:
    """A flatbuffer has no gradients."""
    from tests.refine_models import ConvNet, conv_net

    path = tmp_path / "net.tflite"
    path.write_bytes(conv_net(ConvNet()))
    from edge.signature import Signature, TensorSpec

    ends = TensorSpec(name="x", shape=(1,))
    with pytest.raises(UsageError, match="kind litert cannot be trained"):
        training._prepared({"source": str(path)}, Signature(inputs=(ends,), outputs=(ends,)), 0)
