"""Trains the network of the documented commands and writes it as files of each kind of source, with its data.

Run once in the folder that has `net.py`: `python docs_models.py`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_LAYERS = ("features.0", "features.3", "classifier")
_HELD_OUT, _IMAGES, _EPOCHS, _BATCH = 500, 320, 10, 64


def data() -> tuple[Any, Any]:
    """Return digits as float32[N, 8, 8, 3] in 0..1, shuffled, and their labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = np.repeat((pixels[order].reshape(-1, 8, 8, 1) / 16).astype(np.float32), 3, 3)
    return x, labels[order].astype(np.int64)


def write_data(x: Any, y: Any) -> None:
    """Write arrays with both splits, the test part alone, and a folder of images by class."""
    from PIL import Image

    n = _HELD_OUT
    np.savez("data.npz", x_train=x[n:], y_train=y[n:], x_test=x[:n], y_test=y[:n])
    np.savez("test.npz", x=x[:n], y=y[:n])
    np.savez("steps.npz", steps=np.random.default_rng(0).standard_normal((64, 1, 8, 12)).astype(np.float32))
    for number, (image, label) in enumerate(zip(x[n : n + _IMAGES], y[n : n + _IMAGES], strict=True)):
        place = Path("images", str(label))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).astype(np.uint8)).save(place / f"{number}.png")


def trained(x: Any, y: Any) -> dict[str, Any]:
    """Train the network of net.py, write its weights for PyTorch and NumPy, and return them as arrays."""
    import torch

    sys.path.insert(0, str(Path.cwd()))
    net = __import__("net").Net()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_uniform_(parameter)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    images, targets = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(targets)).split(_BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[chosen]), targets[chosen]).backward()
            optimizer.step()
    torch.save(net.state_dict(), "weights.pt")
    arrays = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    np.savez("weights.npz", **arrays)
    return arrays


def write_onnx(weights: dict[str, Any]) -> None:
    """Write model.onnx with the same layers and weights."""
    import onnx
    from onnx import helper as h
    from onnx import numpy_helper

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
    held = [
        numpy_helper.from_array(weights[f"{layer}.{kind}"], f"{kind[0]}{i}")
        for i, layer in enumerate(_LAYERS)
        for kind in ("weight", "bias")
    ]
    ends = [h.make_tensor_value_info("image", 1, [1, 3, 8, 8])], [h.make_tensor_value_info("logits", 1, [1, 10])]
    graph = h.make_graph(nodes, "net", *ends, held)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), "model.onnx")


def write_keras(weights: dict[str, Any]) -> None:
    """Write model.keras with the same layers and weights."""
    import keras

    layers = keras.layers
    model = keras.Sequential([
        keras.Input((8, 8, 3), name="image"),
        layers.Conv2D(16, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10),
    ])  # fmt: skip
    axes = ((2, 3, 1, 0), (2, 3, 1, 0), (1, 0))
    arrays = [(weights[f"{n}.weight"].transpose(a), weights[f"{n}.bias"]) for n, a in zip(_LAYERS, axes, strict=True)]
    model.set_weights([part for pair in arrays for part in pair])
    model.save("model.keras")
    write_tensorflow(model)


def write_tensorflow(model: Any) -> None:
    """Write a Keras model as saved_model/ and, frozen, as graph.pb."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2 as frozen

    call = tf.function(lambda image: {"logits": model(image)}).get_concrete_function(
        tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image")
    )
    tf.saved_model.save(model, "saved_model", signatures={"serving_default": call})
    Path("graph.pb").write_bytes(frozen(call).graph.as_graph_def().SerializeToString())


def write_torch() -> None:
    """Write model.pt, the network of net.py as TorchScript, and model.pt2, the same exported."""
    import torch

    net, inputs = __import__("net").make_net()
    torch.jit.trace(net, inputs).save("model.pt")
    torch.export.save(torch.export.export(net.eval(), inputs), "model.pt2")


def write_hugging_face() -> None:
    """Write resnet-folder/, a small untrained network of transformers with its preprocessing."""
    import json

    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10, image_size=32
    )
    transformers.ResNetForImageClassification(config).save_pretrained("resnet-folder")
    size = {"height": 32, "width": 32}
    preprocessor = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    Path("resnet-folder", "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")


def main() -> None:
    """Write everything into the current folder."""
    x, y = data()
    write_data(x, y)
    weights = trained(x[_HELD_OUT:], y[_HELD_OUT:])
    write_onnx(weights)
    write_keras(weights)
    write_torch()
    if find_spec("transformers"):
        write_hugging_face()


if __name__ == "__main__":
    main()
