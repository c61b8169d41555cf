"""What the tests of data sources share: contracts, readers, and writers of small files."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.calibration.data import Dataset, open_dataset
from edge.calibration.data_types import Role
from edge.errors import DataError
from edge.signature import Preprocess, Signature, Task, TensorSpec

Array = NDArray[Any]
MODELS = Path(__file__).resolve().parents[1] / "../shared/models"
needs_models = pytest.mark.skipif(not MODELS.is_dir(), reason="the folder of shared models is absent")


def signature(
    *shape: int,
    layout: Any = "other",
    dtype: str = "float32",
    pre: Preprocess | None = None,
    task: Task = "other",
    classes: int = 10,
    labels: tuple[str, ...] = (),
) -> Signature:
    """Return the contract of a model of one input."""
    return Signature(
        inputs=(TensorSpec(name="image", shape=(1, *shape), layout=layout, dtype=dtype),),
        outputs=(TensorSpec(name="scores", shape=(1, classes)),),
        preprocess={"image": pre} if pre else {},
        task=task,
        labels=labels,
    )


VECTOR = signature(4)
TWO = Signature(
    inputs=(TensorSpec(name="a", shape=(1, 2)), TensorSpec(name="b", shape=(1, 3))),
    outputs=(TensorSpec(name="out", shape=(1, 1)),),
)


def calibration(location: object, contract: Signature = VECTOR, **options: Any) -> Dataset:
    """Open data for calibration."""
    return open_dataset(str(location), contract, role="calibration", **options)


def values(data: Dataset, name: str = "image") -> list[Any]:
    """Return one input of all samples as lists."""
    return [sample.inputs[name][0].tolist() for sample in data]


def refused(location: object, contract: Signature = VECTOR, role: Role = "calibration") -> str:
    """Read data to the end and return the message that refuses it, with its hint."""
    with pytest.raises(DataError) as caught:
        list(open_dataset(str(location), contract, role=role))
    assert caught.value.exit_code == 2
    return f"{caught.value.message} {caught.value.hint or ''}"


ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


RGB8 = signature(8, 8, 3, layout="NHWC", pre=Preprocess(resize="antialias"))


def save(path: Path, image: Array, **options: Any) -> Path:
    """Write an image file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def picture(height: int = 10, width: int = 12, seed: int = 0) -> Array:
    """Return a random colour image."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_wav(path: Path, samples: Array, *, width: int = 2, rate: int = 16000) -> Path:
    """Write a WAV file of samples [frames] or [frames, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(samples.shape[1] if samples.ndim == 2 else 1)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(samples.tobytes())
    return path


def table(folder: Path, *lines: str) -> Path:
    """Write a CSV file."""
    path = folder / "d.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path
