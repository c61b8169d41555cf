"""Crossings from other frameworks to the exported carrier, by the import stage as a build runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import codec, isolate
from edge.signature import Signature
from edge.sources import registry
from edge.sources.base import Declaration, InputDeclaration, OpenDimension
from tests.onnx_models import convolution, model, node, save

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch: Any = pytest.importorskip("torch")
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


def results(path: Path, *inputs: Any) -> list[Any]:
    """Run an exported carrier."""
    program = torch.export.load(str(path)).module()
    found = program(*[torch.from_numpy(i) for i in inputs])
    return [t.detach().numpy() for t in (found if isinstance(found, (tuple, list)) else (found,))]


def test_onnx_is_exported_channel_first(tmp_path: Path) -> None:
    """With layouts kept, an ONNX model has its own shapes, and its exported program gives onnxruntime's results."""
    proto = convolution(np.random.default_rng(3))
    loaded: Any = registry.load(str(save(proto, tmp_path)), Declaration(layout="keep"))
    assert [str(t) for t in (*loaded.signature.inputs, *loaded.signature.outputs)] == [
        "image: float32[1, 3, 8, 8] NCHW",
        "scores: float32[1, 5]",
    ]
    loaded.to_exported(tmp_path / "m.pt2")
    image = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    (scores,) = results(tmp_path / "m.pt2", image)
    np.testing.assert_allclose(scores, loaded.run({"image": image})["scores"], rtol=1e-4, atol=1e-5)


def test_empty_constants_have_strides_that_executorch_takes(tmp_path: Path) -> None:
    """The empty `roi` of a Resize has no strides of 0, which NumPy gives it and ExecuTorch refuses."""
    empty, scales = np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)
    proto = model(
        [node("Resize", ["image", "roi", "scales"], ["large"], mode="nearest", nearest_mode="floor")],
        {"image": (1, 2, 4, 4)},
        ["large"],
        constants={"roi": empty, "scales": scales},
    )
    loaded: Any = registry.load(str(save(proto, tmp_path)), Declaration(layout="keep"))
    loaded.to_exported(tmp_path / "m.pt2")
    program = torch.export.load(str(tmp_path / "m.pt2"))
    values = [n.meta.get("val") for n in program.graph.nodes] + list(program.state_dict.values())
    assert all(0 not in v.stride() for v in values if isinstance(v, torch.Tensor))


def test_onnx_series_become_channel_last_in_litert(tmp_path: Path) -> None:
    """A network of 1-D convolutions is verified against onnxruntime with its series turned: [1, length, channels]."""
    pytest.importorskip("litert_torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv1d(8, 6, 3))
    torch.onnx.export(
        network.eval(), (torch.zeros(1, 4, 20),), str(tmp_path / "m.onnx"), dynamo=False, opset_version=17,
        input_names=["series"], output_names=["features"],
    )  # fmt: skip
    answer, signature = crossed(str(tmp_path / "m.onnx"), "litert", tmp_path)
    assert answer["route"]["failed"] == {}
    ends = [str(t) for t in (*signature.inputs, *signature.outputs)]
    assert ends == ["series: float32[1, 20, 4] NLC", "features: float32[1, 18, 6] NLC"]


def test_torchscript_is_exported(tmp_path: Path) -> None:
    """A TorchScript archive's exported program gives the archive's results."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2)
    )
    torch.jit.trace(network.eval(), torch.rand(1, 3, 8, 8)).save(str(tmp_path / "m.pt"))
    inputs = {"0": InputDeclaration(shape=(1, 3, 8, 8))}
    loaded: Any = registry.load(str(tmp_path / "m.pt"), Declaration(layout="keep", inputs=inputs))
    loaded.to_exported(tmp_path / "m.pt2")
    image = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    (scores,) = results(tmp_path / "m.pt2", image)
    np.testing.assert_allclose(scores, loaded.run({"input": image})["output_0"], rtol=1e-4, atol=1e-5)


def crossed(
    source: str, carrier: str, folder: Path, declaration: Declaration | None = None
) -> tuple[dict[str, Any], Signature]:
    """Import a source as a build does, in a child process, verified on random inputs."""
    declaration = declaration or Declaration(layout="keep" if carrier == "exported" else "channel-last")
    work = folder / "work"
    work.mkdir()
    data = {"calibration": None, "evaluation": None, "calibration_samples": 4, "evaluation_samples": 4}
    request = {
        "source": source,
        "carrier": carrier,
        "declaration": codec.to_json(declaration),
        "workdir": str(work),
        "data": data,
    }
    answer = isolate.call("edge.stages.importing:import_source", request, workdir=work)
    return answer, codec.from_json(Signature, answer["signature"])


_TENSORFLOW = """
import sys
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

kind, folder = sys.argv[1:]
random = np.random.default_rng(0)
w, d = (random.normal(size=s).astype(np.float32) for s in ((3, 3, 3, 4), (4, 2)))

class Network(tf.Module):
    def __init__(self):
        self.w, self.d = tf.Variable(w), tf.Variable(d)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, name="image")])
    def __call__(self, image):
        y = tf.nn.relu6(tf.nn.conv2d(image, self.w, 2, "SAME"))
        y = tf.nn.max_pool2d(tf.image.resize(y, [7, 7]), 3, 2, "SAME")
        return {"scores": tf.nn.softmax(tf.reduce_mean(y, [1, 2]) @ self.d)}

network = Network()
if kind == "saved-model":
    tf.saved_model.save(network, f"{folder}/m", signatures=network.__call__)
else:
    spec = tf.TensorSpec([1, 8, 8, 3], tf.float32, name="image")
    function = tf.function(lambda image: network(image)["scores"], input_signature=[spec])
    graph = convert_variables_to_constants_v2(function.get_concrete_function()).graph.as_graph_def()
    open(f"{folder}/m", "wb").write(graph.SerializeToString())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["saved-model", "frozen-graph"])
def test_tensorflow_reaches_the_exported_carrier(kind: str, tmp_path: Path) -> None:
    """SavedModels and frozen graphs are exported through their flatbuffer, channel-last as they are, and verified."""
    pytest.importorskip("tensorflow")
    subprocess.run([sys.executable, "-c", _TENSORFLOW, kind, str(tmp_path)], check=True, capture_output=True)
    answer, signature = crossed(str(tmp_path / "m"), "exported", tmp_path)
    assert (answer["kind"], answer["route"]["name"], answer["route"]["failed"]) == (kind, "flatbuffer", {})
    assert str(signature.inputs[0]) == "image: float32[1, 8, 8, 3] NHWC"
    assert {"torch", "tensorflow-cpu"} & set(answer["tools"])
    (scores,) = results(Path(answer["carrier"]), np.ones((1, 8, 8, 3), np.float32))
    np.testing.assert_allclose(scores.sum(), 1.0, rtol=1e-5)


_JAX = """
import jax, jax.numpy as jnp, numpy as np

def make():
    w = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    def apply(image):
        y = jax.lax.conv_general_dilated(image, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(y).mean((1, 2))
    return apply, np.zeros((1, 8, 8, 3), np.float32)
"""


@pytest.mark.slow
def test_jax_reaches_the_exported_carrier(tmp_path: Path) -> None:
    """A JAX function is exported through its flatbuffer, and verified against JAX."""
    pytest.importorskip("jax")
    pytest.importorskip("tensorflow")
    (tmp_path / "net.py").write_text(_JAX)
    answer, _ = crossed(f"{tmp_path / 'net.py'}:make", "exported", tmp_path)
    assert (answer["kind"], answer["route"]["name"]) == ("torch", "flatbuffer")


_ERF = """
import keras

class Erf(keras.layers.Layer):
    def call(self, x):
        return keras.ops.erf(x)

def make():
    x = keras.Input((6,), batch_size=1, name="x")
    return keras.Model(x, Erf()(keras.layers.Dense(3, kernel_initializer="ones")(x)))
"""


@pytest.mark.slow
def test_an_operator_that_one_converter_lacks_goes_by_the_other(tmp_path: Path) -> None:
    """TensorFlow's converter has no Erf; the same Keras model reaches LiteRT by its torch backend."""
    pytest.importorskip("tensorflow")
    pytest.importorskip("litert_torch")
    (tmp_path / "net.py").write_text(_ERF)
    answer, _ = crossed(f"{tmp_path / 'net.py'}:make", "litert", tmp_path)
    assert answer["route"]["name"] == "torch-backend"
    assert answer["route"]["failed"] == {"tflite-converter": "TensorFlow has no LiteRT operator for Erf."}
    assert "ROUTE_CHOSEN" in [f["rule"] for f in answer["findings"]]


def test_carriers_do_not_tell_where_the_code_lies(tmp_path: Path) -> None:
    """No member of a carrier names a Python file of this machine: another checkout gives the same bytes."""
    import zipfile

    from edge.targets import torch_common
    from edge.targets.executorch import carrier

    program = torch.export.export(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()), (torch.zeros(1, 4),))
    assert any("stack_trace" in node.meta for node in program.graph.nodes)
    signature = carrier.unnamed(program)
    carrier.save(program, signature, tmp_path / "executorch.pt2")
    torch_common.save_exported(program, signature, tmp_path / "common.pt2")
    for path in tmp_path.glob("*.pt2"):
        with zipfile.ZipFile(path) as archive:
            held = b"".join(archive.read(name) for name in archive.namelist())
        assert b".py" not in held, path.name
        assert b"aten.linear" in held


_OPEN_KERAS = """
import keras

def make():
    keras.utils.set_random_seed(int.from_bytes(__import__("os").urandom(2), "little"))
    x = keras.Input((None, 6), name="steps")
    y = keras.layers.Conv1D(4, 3, padding="same", activation="relu")(x)
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(y)))
"""


@pytest.mark.slow
def test_keras_networks_keep_open_sizes_by_the_torch_backend(tmp_path: Path) -> None:
    """A length stays open past the flatbuffer, which has fixed sizes; a factory that draws keeps its first weights."""
    pytest.importorskip("tensorflow")
    (tmp_path / "net.py").write_text(_OPEN_KERAS)
    opened = InputDeclaration(shape=(1, -1, 6), open=(OpenDimension(axis=1, least=1, most=16),))
    declaration = Declaration(layout="keep", inputs={"steps": opened})
    answer, signature = crossed(f"{tmp_path / 'net.py'}:make", "exported", tmp_path, declaration)
    assert answer["route"]["name"] == "torch-backend"
    assert answer["route"]["failed"] == {
        "flatbuffer": "A flatbuffer has fixed sizes, and a dimension of 'steps' is open."
    }
    assert signature.inputs[0].shape == (1, -1, 6)
    for length in (2, 16):
        assert results(Path(answer["carrier"]), np.ones((1, length, 6), np.float32))[0].shape == (1, 2)


def test_weights_that_are_views_are_written_whole(tmp_path: Path) -> None:
    """Channel-last, empty and sliced weights are read back as they were, without torch's warning."""
    import warnings

    from edge.targets.executorch import carrier

    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3).eval().to(memory_format=torch.channels_last)
    network.bias = torch.nn.Parameter(torch.rand(100)[50:54])
    network.register_buffer("empty", torch.from_numpy(np.zeros(0, np.float32)))
    image = torch.rand(1, 3, 8, 8)
    program = torch.export.export(network, (image,))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        carrier.save(program, carrier.unnamed(program), tmp_path / "m.pt2")
    assert not [w for w in said if "No complete tensor" in str(w.message)]
    loaded, _ = carrier.load(tmp_path / "m.pt2")
    with torch.no_grad():
        np.testing.assert_allclose(loaded.module()(image).numpy(), network(image).numpy(), atol=1e-6)
