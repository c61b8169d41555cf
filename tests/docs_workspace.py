"""The folder in which documented commands run: small trained models and their data under the names that pages use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz import corpus

ROOT = Path(__file__).resolve().parents[1]
_ARTIFACT = re.compile(
    r"((?:edgekit-build|build|old|new|released?)/[\w.-]+?-(coral|rpi[45]|linux|android)(-executorch)?)(/.*)?"
)
# What `edgekit build` takes from the folder that it runs in.
_PROJECT = """[model]
source = "model.onnx"
[data]
calibration = "data.npz"
[build]
targets = ["rpi4"]
"""

_NET = '''"""Images float32[N, 3, 8, 8] in 0..1 -> logits float32[N, 10]."""

from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.classifier = nn.Linear(32, 10)

    def forward(self, image):
        return self.classifier(self.features(image).mean((2, 3)))


def make_net():
    net = Net()
    net.load_state_dict(torch.load(Path(__file__).with_name("weights.pt"), weights_only=True))
    return net, (torch.zeros(1, 3, 8, 8),)


make = make_net
'''

_JAX = '''"""The network of net.py in JAX: images float32[N, 8, 8, 3] -> logits float32[N, 10]."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

WEIGHTS = {k: jnp.asarray(v) for k, v in np.load(Path(__file__).with_name("weights.npz")).items()}


def conv(x, name):
    kernel = WEIGHTS[f"{name}.weight"].transpose(2, 3, 1, 0)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + (
        WEIGHTS[f"{name}.bias"]
    )


def net(image):
    x = jax.nn.relu(conv(image, "features.0"))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(conv(x, "features.3")).mean((1, 2))
    return x @ WEIGHTS["classifier.weight"].T + WEIGHTS["classifier.bias"]


def make():
    return net, (jnp.zeros((1, 8, 8, 3)),)
'''

_STEPS = '''"""Series float32[1, T, 12] -> logits float32[1, 4]."""

import torch
from torch import nn


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.Linear(12, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, steps):
        return self.last(torch.relu(self.each(steps)).mean(1))


def make():
    torch.manual_seed(0)
    return Steps(), (torch.zeros(1, 8, 12),)
'''

_TRAIN = '''"""Fine-tunes net.py for one epoch, as `--recipe qat` asks for."""

from pathlib import Path

import numpy as np
import torch

DATA = np.load(Path(__file__).with_name("data.npz"))


def train(model, epoch):
    x, y = torch.from_numpy(DATA["x_train"][:256].transpose(0, 3, 1, 2).copy()), torch.from_numpy(DATA["y_train"][:256])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for images, labels in zip(x.split(64), y.split(64)):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return float(loss)
'''


def make(folder: Path) -> None:
    """Write models, data and images into a folder."""
    (folder / "net.py").write_text(_NET, encoding="utf-8")
    (folder / "jax_net.py").write_text(_JAX, encoding="utf-8")
    (folder / "steps.py").write_text(_STEPS, encoding="utf-8")
    (folder / "train.py").write_text(_TRAIN, encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / "tests/docs_models.py")], cwd=folder, check=True, capture_output=True)


def provide(folder: Path, command: str, environment: dict[str, str]) -> None:
    """Make what a command reads and no command before it has made: artifacts, models and data by their names.

    `edgekit.toml` is there for `edgekit build` alone, which has no other source.
    """
    (folder / "edgekit.toml").unlink(missing_ok=True)
    if command == "edgekit build":
        (folder / "edgekit.toml").write_text(_PROJECT, encoding="utf-8")
    for word in re.findall(r"[\w./-]+", command):
        place = folder / word
        if not place.exists() and (origin := _origin(folder, word, environment)):
            place.parent.mkdir(exist_ok=True)
            shutil.copy(origin, place)


def _origin(folder: Path, word: str, environment: dict[str, str]) -> Path | None:
    """Return the file that is copied for a word of a command; an artifact is copied here, whole."""
    if found := _ARTIFACT.fullmatch(word):
        if not (folder / found[1]).exists():
            shutil.copytree(_artifact(folder, found[2], environment, found[3] or ""), folder / found[1])
        return None
    path = Path(word)
    if path.suffix == ".tflite":
        return _artifact(folder, "coral", environment) / ("model.tflite" if "int8" in word else "float.tflite")
    if path.suffix == ".keras":
        return folder / "model.keras"
    if path.suffix == ".aar":
        (folder / word).write_bytes(corpus.android()[0])
        return None
    return folder / ("model.onnx" if path.suffix == ".onnx" else path.name) if path.parent.name == "checkout" else None


def _artifact(folder: Path, target: str, environment: dict[str, str], suffix: str = "") -> Path:
    place = folder / f".made/model-{target}{suffix}"
    if not place.exists():
        words = ["build", "model.onnx", "-t", target, "--calibration", "data.npz", "-o", ".made"]
        words += ["--runtime", suffix[1:]] if suffix else []
        subprocess.run(
            [sys.executable, "-m", "edge", *words, "-q"], cwd=folder, env=environment, check=True, capture_output=True
        )
    return place
