"""TensorFlow SavedModels, frozen graphs and JAX functions as sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ConfigError, ConversionError, EdgekitError, SourceError
from edge.sources import registry
from edge.sources.base import Declaration, InputDeclaration, LoadedSource
from edge.sources.verify import verify_carrier
from edge.targets.litert import flatbuffer as fb

pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are absent")


def built(loaded: LoadedSource, folder: Path) -> list[str]:
    """Convert, verify on two random inputs, and return the operators."""
    path = folder / "carrier.tflite"
    loaded.to_litert(path)
    random = np.random.default_rng(0)
    samples = [{t.name: random.random(t.shape).astype(t.dtype) for t in loaded.signature.inputs} for _ in "ab"]
    assert verify_carrier(loaded, path, samples) == ()
    return [op.name for op in fb.graph(fb.load(path)).ops]


def ends(loaded: LoadedSource) -> list[str]:
    """Return inputs and outputs as text."""
    return [str(t) for t in (*loaded.signature.inputs, *loaded.signature.outputs)]


def saved(folder: Path, *keys: str, **functions: Any) -> Path:
    """Write a SavedModel with a small dense network under these signatures, and further functions."""
    import tensorflow as tf

    module = tf.Module()
    module.w = tf.Variable(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32))

    def dense(x: Any) -> dict[str, Any]:
        return {"scores": tf.matmul(x, module.w), "largest": tf.reduce_max(x, 1)}

    module.dense = tf.function(dense, input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    for name, function in functions.items():
        spec = tf.TensorSpec([None, 4], tf.float32, name="x")
        setattr(module, name, tf.function(function, input_signature=[spec]))
    tf.saved_model.save(
        module, str(folder), signatures={k: getattr(module, k, module.dense) for k in keys or ("serving_default",)}
    )
    return folder


def test_saved_model_becomes_static(tmp_path: Path) -> None:
    """The open batch becomes 1, with a finding; names are the signature's; batches still run by the reference."""
    loaded = registry.load(str(saved(tmp_path / "m")))
    assert (loaded.kind, ends(loaded)) == (
        "saved-model",
        ["x: float32[1, 4]", "largest: float32[1]", "scores: float32[1, 3]"],
    )
    assert [f.rule for f in loaded.findings] == ["BATCH_FIXED"]
    assert "FULLY_CONNECTED" in built(loaded, tmp_path)
    assert loaded.run({"x": np.zeros((5, 4), np.float32)})["scores"].shape == (5, 3)


def test_signature_is_chosen(tmp_path: Path) -> None:
    """One of several signatures without a default must be chosen; an unknown one lists those that exist."""
    path = str(saved(tmp_path / "m", "one", "two"))
    with pytest.raises(ConfigError, match="has the signatures one, two"):
        registry.load(path)
    with pytest.raises(ConfigError, match="has no signature 'three'; it has one, two"):
        registry.load(path, Declaration(signature="three"))
    assert len(registry.load(path, Declaration(signature="two")).signature.outputs) == 2


def test_flex_operators_are_named(tmp_path: Path) -> None:
    """An operator that only Flex has is an error that names it."""
    import tensorflow as tf

    loaded = registry.load(str(saved(tmp_path / "m", "erfinv", erfinv=lambda x: {"y": tf.math.erfinv(x * 0.1)})))
    with pytest.raises(ConversionError, match=r"no LiteRT operator for .*Erfinv"):
        loaded.to_litert(tmp_path / "x.tflite")


def test_random_numbers_are_refused(tmp_path: Path) -> None:
    """A signature that draws random numbers is an error."""
    import tensorflow as tf

    with pytest.raises(ConversionError, match="draws random numbers"):
        registry.load(str(saved(tmp_path / "m", "noise", noise=lambda x: {"y": x + tf.random.normal([1, 4])})))


def test_damaged_saved_model(tmp_path: Path) -> None:
    """A folder without its variables, and a damaged graph, are errors in one line."""
    folder = saved(tmp_path / "m")
    for file in (folder / "variables").iterdir():
        file.unlink()
    with pytest.raises(SourceError, match="TensorFlow cannot load"):
        registry.load(str(folder))
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12\xff\xff")
    with pytest.raises(SourceError, match=r"saved_model\.pb is damaged"):
        registry.load(str(folder))


@shared
def test_keras_2_optimizer_slots_are_left_out(tmp_path: Path) -> None:
    """A SavedModel of Keras 2 with Adam's slots, which TensorFlow refuses, loads; the folder itself is not changed."""
    folder = SHARED / "mlperf-kws-dscnn" / "kws_ref_model"
    before = (folder / "saved_model.pb").read_bytes()
    loaded = registry.load(str(folder))
    assert "OPTIMIZER_DROPPED" in {f.rule for f in loaded.findings}
    assert ends(loaded) == ["input_1: float32[1, 49, 10, 1] NHWC", "dense: float32[1, 12]"]
    assert set(built(loaded, tmp_path)) == {
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "AVERAGE_POOL_2D",
        "FULLY_CONNECTED",
        "SOFTMAX",
    } or "RESHAPE" in built(loaded, tmp_path)
    assert (folder / "saved_model.pb").read_bytes() == before


def frozen(path: Path, *, shape: Any = (None, 8, 8, 3), variable: bool = False) -> Path:
    """Write a frozen GraphDef of a convolution and two results."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, shape, name="image")
        w = np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype(np.float32)
        weights = tf.compat.v1.get_variable("w", initializer=w, use_resource=False) if variable else tf.constant(w)
        y = tf.nn.relu(tf.nn.conv2d(x, weights, 2, "SAME"), name="features")
        tf.reduce_mean(y, [1, 2], name="scores")
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def test_frozen_graph_ends_are_found(tmp_path: Path) -> None:
    """Placeholders are inputs and unread nodes outputs; other nodes can be declared."""
    path = str(frozen(tmp_path / "graph.pb"))
    loaded = registry.load(path)
    assert (loaded.kind, ends(loaded)) == ("frozen-graph", ["image: float32[1, 8, 8, 3] NHWC", "scores: float32[1, 4]"])
    assert built(loaded, tmp_path) == ["CONV_2D", "MEAN"]
    both = registry.load(path, Declaration(outputs=("features", "scores")))
    assert ends(both)[1:] == ["features: float32[1, 4, 4, 4] NHWC", "scores: float32[1, 4]"]
    with pytest.raises(ConfigError, match="has no node logits") as caught:
        registry.load(path, Declaration(outputs=("logits",)))
    assert "scores" in (caught.value.hint or "")


def test_frozen_graph_without_shape_asks_for_it(tmp_path: Path) -> None:
    """A placeholder without rank needs a declared shape."""
    path = str(frozen(tmp_path / "graph.pb", shape=None))
    with pytest.raises(ConfigError, match="'image' has no shape in the graph"):
        registry.load(path)
    loaded = registry.load(path, Declaration(inputs={"image": InputDeclaration(shape=(1, 6, 6, 3))}))
    assert ends(loaded)[0] == "image: float32[1, 6, 6, 3] NHWC"


def test_graph_with_variables_is_refused(tmp_path: Path) -> None:
    """A graph that is not frozen has no weights."""
    with pytest.raises(SourceError, match="without its weights: 1 variables such as 'w'"):
        registry.load(str(frozen(tmp_path / "graph.pb", variable=True)))


def test_a_constant_that_holds_another_dtype_than_it_says_is_refused(tmp_path: Path) -> None:
    """TensorFlow's optimizer would end the process at it."""
    import tensorflow as tf

    path = frozen(tmp_path / "graph.pb")
    graph = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    constant = next(n for n in graph.node if n.op == "Const")
    constant.attr["value"].tensor.dtype = tf.int32.as_datatype_enum
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(SourceError, match=f"1 constants such as {constant.name!r} hold another dtype"):
        registry.load(str(path))


JAX = """
import jax, jax.numpy as jnp, numpy as np

def network():
    w = np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype(np.float32)
    def apply(image):
        y = jax.lax.conv_general_dilated(image, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return {"scores": jax.nn.relu(y).mean((1, 2)), "features": y}
    return apply, np.zeros((1, 8, 8, 3), np.float32)

def named():
    example = {"left": jnp.ones((1, 4)), "right": np.ones((1, 4), np.float32)}
    return (lambda left, right: (left + right, left * 2)), example

def failing():
    return (lambda x: x @ jnp.ones((3, 3))), np.zeros((1, 4), np.float32)

def alone():
    return lambda x: x

def scripted():
    import torch
    return torch.jit.script(torch.nn.Linear(2, 2)), torch.zeros(1, 2)
"""


def jax_file(folder: Path) -> Path:
    """Write the factories."""
    path = folder / "nets.py"
    path.write_text(JAX)
    return path


def test_jax_function_with_example(tmp_path: Path) -> None:
    """A JAX function with an example becomes a program with its argument and dict keys as names."""
    pytest.importorskip("jax")
    loaded = registry.load(f"{jax_file(tmp_path)}:network")
    assert (loaded.kind, ends(loaded)) == (
        "jax",
        ["image: float32[1, 8, 8, 3] NHWC", "features: float32[1, 4, 4, 4] NHWC", "scores: float32[1, 4]"],
    )
    assert "CONV_2D" in built(loaded, tmp_path)
    assert {"jax", "jaxlib"} <= set(loaded.tools)
    again = registry.load(f"{tmp_path}/nets.py:network")
    assert again.digest == loaded.digest


def test_jax_inputs_by_name_and_declared_shape(tmp_path: Path) -> None:
    """A dict of examples names the inputs; declared shapes replace those of the example."""
    pytest.importorskip("jax")
    shapes = {n: InputDeclaration(shape=(1, 6)) for n in ("left", "right")}
    loaded = registry.load(f"{jax_file(tmp_path)}:named", Declaration(inputs=shapes))
    assert ends(loaded) == [f"{n}: float32[1, 6]" for n in ("left", "right", "output_0", "output_1")]
    assert sorted(built(loaded, tmp_path)) == ["ADD", "MUL"] or "ADD" in built(loaded, tmp_path)


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("failing", SourceError, r"nets\.py, line \d+ .*calling it with x\[1, 4\] raised TypeError"),
        ("alone", SourceError, "alone returned function; accepted: .*a JAX function: .function, example."),
        ("scripted", SourceError, "returned RecursiveScriptModule; accepted"),
    ],
)
def test_jax_errors(name: str, kind: type[EdgekitError], part: str, tmp_path: Path) -> None:
    """A failing function names the user's line; one without an example says what is accepted."""
    pytest.importorskip("jax")
    with pytest.raises(kind, match=part):
        registry.load(f"{jax_file(tmp_path)}:{name}")
