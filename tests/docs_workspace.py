"""The folder in which documented commands run: small trained models and their data under the names that pages use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_ARTIFACT = re.compile(r"(?:edgekit-build|build|old|new|released)/[\w.-]+?-(coral|rpi4|rpi5|linux|android)")

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

# Runs once, in a process of its own: PyTorch trains, Keras and ONNX get the same weights.
_MAKE = '''
import numpy as np, torch; torch.set_num_threads(1)
from sklearn.datasets import load_digits
from PIL import Image
from pathlib import Path
from net import Net

pixels, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x = np.repeat((pixels[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32), 3, 3)
y = labels[order].astype(np.int64)
np.savez("data.npz", x_train=x[500:], y_train=y[500:], x_test=x[:500], y_test=y[:500])
np.savez("test.npz", x=x[:500], y=y[:500])
for number, (image, label) in enumerate(zip(x[500:820], y[500:820])):
    place = Path("images", str(label))
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).astype(np.uint8)).save(place / f"{number}.png")

torch.manual_seed(0)
net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
images, targets = torch.from_numpy(x[500:].transpose(0, 3, 1, 2).copy()), torch.from_numpy(y[500:])
for _ in range(10):
    for chosen in torch.randperm(len(targets)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images[chosen]), targets[chosen]).backward()
        optimizer.step()
torch.save(net.state_dict(), "weights.pt")
w = {k: v.detach().numpy() for k, v in net.state_dict().items()}

import onnx
from onnx import helper as h, numpy_helper as nh

nodes = [
    h.make_node("Conv", ["image", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1]),
    h.make_node("Relu", ["c0"], ["r0"]),
    h.make_node("MaxPool", ["r0"], ["p0"], kernel_shape=[2, 2], strides=[2, 2]),
    h.make_node("Conv", ["p0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
    h.make_node("Relu", ["c1"], ["r1"]),
    h.make_node("GlobalAveragePool", ["r1"], ["g"]),
    h.make_node("Flatten", ["g"], ["f"]),
    h.make_node("Gemm", ["f", "w2", "b2"], ["logits"], transB=1),
]
names = ("features.0", "features.3", "classifier")
held = [nh.from_array(w[f"{n}.{kind}"], f"{kind[0]}{i}") for i, n in enumerate(names) for kind in ("weight", "bias")]
ends = [h.make_tensor_value_info("image", 1, [1, 3, 8, 8])], [h.make_tensor_value_info("logits", 1, [1, 10])]
onnx.save(h.make_model(h.make_graph(nodes, "net", *ends, held), opset_imports=[h.make_opsetid("", 17)], ir_version=9), "model.onnx")

import keras
layers = keras.layers
model = keras.Sequential([
    keras.Input((8, 8, 3), name="image"),
    layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D(2),
    layers.Conv2D(32, 3, padding="same", activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(10),
])
model.set_weights([
    part for n, axes in zip(names, ((2, 3, 1, 0), (2, 3, 1, 0), (1, 0)))
    for part in (w[f"{n}.weight"].transpose(axes), w[f"{n}.bias"])
])
model.save("model.keras")
'''


def make(folder: Path) -> None:
    """Write models, data and images into a folder."""
    (folder / "net.py").write_text(_NET, encoding="utf-8")
    (folder / "train.py").write_text(_TRAIN, encoding="utf-8")
    subprocess.run([sys.executable, "-c", _MAKE], cwd=folder, check=True, capture_output=True)
    shutil.copy(folder / "model.keras", folder / "large.keras")


def provide(folder: Path, command: str, environment: dict[str, str]) -> None:
    """Make what a command reads and no command before it has made: artifacts and `.tflite` files by their names."""
    for word in re.findall(r"[\w./-]+", command):
        place = folder / word
        if (found := _ARTIFACT.fullmatch(word)) and not place.exists():
            shutil.copytree(_artifact(folder, found[1], environment), place)
        elif word.endswith(".tflite") and not place.exists():
            name = "model.tflite" if "int8" in word else "float.tflite"
            shutil.copy(_artifact(folder, "coral", environment) / name, place)


def _artifact(folder: Path, target: str, environment: dict[str, str]) -> Path:
    place = folder / f".made/model-{target}"
    if not place.exists():
        words = ["build", "model.onnx", "-t", target, "--calibration", "data.npz", "-o", ".made", "--latency", "none", "-q"]
        subprocess.run(
            [sys.executable, "-m", "edge", *words], cwd=folder, env=environment, check=True, capture_output=True
        )
    return place
