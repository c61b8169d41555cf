"""Keras models as a source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ConfigError, ConversionError, SourceError
from edge.sources import keras_file, registry
from edge.sources.base import Declaration, InputDeclaration, LoadedSource
from edge.sources.carrier import refused_operators
from edge.sources.keras import import_keras
from edge.sources.verify import verify_carrier
from edge.targets.litert import flatbuffer as fb
from tests import models_keras

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

MODELS = Path(__file__).resolve().parents[1] / "../shared/models"
needs_models = pytest.mark.skipif(not MODELS.exists(), reason="the shared models are not here")


def built(loaded: LoadedSource, folder: Path) -> list[str]:
    """Convert, verify on two random inputs, and return the operators."""
    path = folder / "carrier.tflite"
    loaded.to_litert(path)
    random = np.random.default_rng(0)
    samples = [{t.name: random.random(t.shape, np.float32) for t in loaded.signature.inputs} for _ in range(2)]
    assert verify_carrier(loaded, path, samples) == ()
    return [op.name for graph in fb.graphs(fb.load(path)) for op in graph.ops]


def ends(loaded: LoadedSource) -> tuple[list[str], list[str]]:
    """Return inputs and outputs as text."""
    return [str(t) for t in loaded.signature.inputs], [str(t) for t in loaded.signature.outputs]


def rules(loaded: LoadedSource) -> set[str]:
    """Return the rule ids of the findings."""
    return {f.rule for f in loaded.findings}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved convolutional network."""
    return Path(models_keras.saved(models_keras.classifier(), tmp_path_factory.mktemp("keras") / "model.keras"))


def test_convolutional_network(classifier: Path, tmp_path: Path) -> None:
    """Dict outputs keep names and order, the batch is 1, and batch normalization is gone from the program."""
    loaded = registry.load(str(classifier))
    assert ends(loaded) == (
        ["image: float32[1, 16, 16, 3] NHWC"],
        ["kind: float32[1, 4]", "angle: float32[1, 2]"],
    )
    operators = built(loaded, tmp_path)
    assert sorted(operators) == ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "FULLY_CONNECTED", "MEAN"]
    assert {"tensorflow-cpu", "tensorflow"} & set(loaded.tools)


def test_same_model_gives_same_bytes(classifier: Path, tmp_path: Path) -> None:
    """Two builds of one file give the same flatbuffer and digest."""
    loads = [registry.load(str(classifier)) for _ in range(2)]
    for number, loaded in enumerate(loads):
        loaded.to_litert(tmp_path / f"{number}.tflite")
    assert (tmp_path / "0.tflite").read_bytes() == (tmp_path / "1.tflite").read_bytes()
    assert loads[0].digest == loads[1].digest == keras_digest(classifier)


def keras_digest(path: Path) -> str:
    """Return the sha256 of a file, computed apart from edgekit."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_reference_runs_in_batches(classifier: Path) -> None:
    """The reference takes several samples at once and gives what each alone gives."""
    loaded = registry.load(str(classifier))
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    both: Any = loaded.run({"image": images})["kind"]
    single: Any = loaded.run({"image": images[1:2]})["kind"]
    np.testing.assert_allclose(both[1:2], single, rtol=1e-5)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_lists_keep_names_and_order(tmp_path: Path, name: str) -> None:
    """Inputs and outputs in lists keep their order though their names sort the other way; HDF5 and .keras alike."""
    loaded = registry.load(models_keras.saved(models_keras.two_ends(), tmp_path / name))
    assert ends(loaded) == (
        ["right_hand: float32[1, 6]", "left_hand: float32[1, 6]"],
        ["second: float32[1, 3]", "first: float32[1, 2]"],
    )
    assert "FULLY_CONNECTED" in built(loaded, tmp_path)


def test_dict_inputs_keep_their_names(tmp_path: Path) -> None:
    """A model that is called with a dict has its keys as input names, each on its own tensor."""
    keras = import_keras()
    first, second = keras.Input((3,), name="b"), keras.Input((3,), name="a")
    model = keras.Model({"one": first, "two": second}, keras.layers.Subtract(name="d")([first, second]))
    loaded = registry.load(models_keras.saved(model, tmp_path / "m.keras"))
    built(loaded, tmp_path)
    result: Any = loaded.run({"one": np.full((1, 3), 5.0), "two": np.full((1, 3), 2.0)})["d"]
    np.testing.assert_array_equal(result, np.full((1, 3), 3.0))


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers_are_written_out(tmp_path: Path, layer: str) -> None:
    """Recurrent layers become plain operators without WHILE, state or Flex, with a finding."""
    loaded = registry.load(models_keras.saved(models_keras.recurrent(layer), tmp_path / "m.keras"))
    operators = built(loaded, tmp_path)
    assert refused_operators(fb.load(tmp_path / "carrier.tflite")) == {}
    assert operators.count("TANH") >= 18
    assert "RNN_UNROLLED" in rules(loaded)


def test_open_length_needs_a_declared_shape(tmp_path: Path) -> None:
    """An open time dimension is a configuration error with the way out, and builds when it is declared."""
    location = models_keras.saved(models_keras.recurrent("GRU", None), tmp_path / "m.keras")
    with pytest.raises(ConfigError, match=r"'series' has the open or empty shape \[1, -1, 4\]") as caught:
        registry.load(location)
    assert "--shape series=1,N,4" in (caught.value.hint or "")
    loaded = registry.load(location, Declaration(inputs={"series": InputDeclaration(shape=(1, 5, 4))}))
    assert "WHILE" not in built(loaded, tmp_path)


def test_stateful_layer_is_refused(tmp_path: Path) -> None:
    """A stateful layer would lose its state without a word: it is an error with its name."""
    keras = import_keras()
    x = keras.Input((6, 4), batch_size=1)
    model = keras.Model(x, keras.layers.LSTM(3, stateful=True, name="memory")(x))
    with pytest.raises(ConversionError, match="memory are stateful"):
        registry.load(models_keras.saved(model, tmp_path / "m.keras"))


def test_lambda_needs_trust(tmp_path: Path) -> None:
    """Code in a Lambda layer runs only with trust; the message names the layer."""
    keras = import_keras()
    x = keras.Input((3,))
    location = models_keras.saved(
        keras.Model(x, keras.layers.Lambda(lambda t: t * 2, name="doubler")(x)), tmp_path / "m.keras"
    )
    with pytest.raises(SourceError, match="Python code in its Lambda layers: doubler"):
        registry.load(location)
    assert built(registry.load(location, Declaration(trust=True)), tmp_path) != []


def test_half_precision_policy_computes_in_float32(tmp_path: Path) -> None:
    """A mixed_float16 model becomes a float32 one with a finding; no float16 is left in the program."""
    keras = import_keras()
    x = keras.Input((3,))
    model = models_keras.randomized(keras.Model(x, keras.layers.Dense(2, dtype="mixed_float16")(x)))
    loaded = registry.load(models_keras.saved(model, tmp_path / "m.keras"))
    assert built(loaded, tmp_path) == ["FULLY_CONNECTED"]
    assert "WEIGHTS_CAST" in rules(loaded)
    assert loaded.signature.outputs[0].dtype == "float32"


def test_operator_without_a_litert_form_is_named(tmp_path: Path) -> None:
    """An operator that TensorFlow does not convert is named."""
    keras = import_keras()
    x = keras.Input((3,))
    loaded = registry.load(models_keras.saved(keras.Model(x, keras.ops.erf(x)), tmp_path / "m.keras"))
    with pytest.raises(ConversionError, match="no LiteRT operator for Erf"):
        loaded.to_litert(tmp_path / "x.tflite")


def test_unknown_class_is_named_and_a_factory_is_the_way_out(tmp_path: Path) -> None:
    """A custom layer is named; a Python file that defines it and returns the model is a source."""
    code = (
        "from edge.sources.keras import import_keras\n"
        "keras = import_keras()\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
        "def make():\n"
        "    x = keras.Input((3,), name='x')\n"
        "    return keras.Model(x, keras.layers.Dense(2, name='y')(Twice()(x)))\n"
    )
    (tmp_path / "own.py").write_text(code)
    loaded = registry.load(f"{tmp_path}/own.py:make")
    assert ends(loaded) == (["x: float32[1, 3]"], ["y: float32[1, 2]"])
    assert built(loaded, tmp_path) != []
    model: Any = loaded
    model._model.save(tmp_path / "own.keras")
    with pytest.raises(SourceError, match=r"classes that Keras does not have: Twice\.") as caught:
        registry.load(str(tmp_path / "own.keras"))
    assert "file.py:function" in (caught.value.hint or "")


def test_weights_without_architecture_are_refused(tmp_path: Path) -> None:
    """A weights-only HDF5 file says how to save a whole model."""
    models_keras.two_ends().save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(SourceError, match="without a Keras model configuration") as caught:
        registry.load(str(tmp_path / "model.weights.h5"))
    assert "model.save('model.keras')" in (caught.value.hint or "")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    """Half an HDF5 file is damaged, not a traceback."""
    location = Path(models_keras.saved(models_keras.two_ends(), tmp_path / "m.h5"))
    location.write_bytes(location.read_bytes()[: location.stat().st_size // 2])
    with pytest.raises(SourceError, match="damaged or truncated"):
        registry.load(str(location))


def edited(location: str, target: Path, edit: Any) -> str:
    """Copy an HDF5 model with an edited architecture."""
    import h5py

    shutil.copy(location, target)
    with h5py.File(target, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        edit(config)
        file.attrs["model_config"] = json.dumps(config)
    return str(target)


def old_arguments(config: dict[str, Any], groups: int) -> None:
    """Write the arguments of Keras 2 that Keras 3 refuses."""
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "DepthwiseConv2D":
            layer["config"]["groups"] = groups
            layer["config"]["depthwise_initializer"] = {"class_name": "Ones", "config": {"dtype": "float32"}}


def test_keras_2_arguments_are_dropped_where_they_mean_nothing(tmp_path: Path) -> None:
    """groups=1 and an initializer's dtype go with a finding each, and the weights are the file's."""
    original = models_keras.classifier()
    location = models_keras.saved(original, tmp_path / "new.h5")
    loaded = registry.load(edited(location, tmp_path / "old.h5", lambda c: old_arguments(c, 1)))
    image = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    expected: Any = original(image)["kind"].numpy()
    result: Any = loaded.run({"image": image})["kind"]
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    dropped = {f.op for f in loaded.findings if f.rule == "KERAS_ARGUMENT_DROPPED"}
    assert dropped == {"DepthwiseConv2D", "Ones"}


def test_keras_2_argument_with_a_meaning_is_an_error(tmp_path: Path) -> None:
    """groups=2 changes the result: it is not dropped."""
    location = models_keras.saved(models_keras.classifier(), tmp_path / "new.h5")
    with pytest.raises(SourceError, match="does not take groups=2 of the layer"):
        registry.load(edited(location, tmp_path / "old.h5", lambda c: old_arguments(c, 2)))


def test_weights_that_were_not_loaded_are_noticed(tmp_path: Path) -> None:
    """A variable whose value is nowhere in the file is reported by name."""
    model = models_keras.two_ends()
    location = Path(models_keras.saved(model, tmp_path / "m.h5"))
    assert keras_file.missing_weights(location, model) == ()
    model.layers[-1].kernel.assign_add(np.ones(model.layers[-1].kernel.shape))
    assert len(keras_file.missing_weights(location, model)) == 1


@needs_models
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "inputs", "outputs"),
    [
        ("mlperf-vww-mobilenet/vww_96.h5", "input_1: float32[1, 96, 96, 3] NHWC", "dense: float32[1, 2]"),
        ("mlperf-kws-dscnn/kws_model.h5", "input_1: float32[1, 49, 10, 1] NHWC", "dense: float32[1, 12]"),
        ("keras-hand-gesture/keypoint_classifier.hdf5", "input_1: float32[1, 42]", "dense_2: float32[1, 3]"),
        (
            "keras-mini-xception/fer2013_mini_XCEPTION.102-0.66.hdf5",
            "input_1: float32[1, 64, 64, 1] NHWC",
            "predictions: float32[1, 7]",
        ),
    ],
)
def test_published_keras_2_models(tmp_path: Path, file: str, inputs: str, outputs: str) -> None:
    """Real trained models of Keras 2.0 to 2.4 load, convert and equal their carrier."""
    loaded = registry.load(str(MODELS / file))
    assert ends(loaded) == ([inputs], [outputs])
    assert not {"TRANSPOSE", "WHILE"} & set(built(loaded, tmp_path))


@needs_models
def test_published_weights_only_file() -> None:
    """A published weights-only file is refused with the hint how to save a whole model."""
    with pytest.raises(SourceError, match="weights alone") as caught:
        registry.load(str(MODELS / "negative-cases/ssrnet_mobilenet_reg_0.25_64_weights_only.h5"))
    assert caught.value.exit_code == 4
