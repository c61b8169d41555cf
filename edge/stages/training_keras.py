"""Fake quantization in a Keras model: a copy of it with batch normalisation folded and layers inserted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import ConversionError
from edge.sources import keras_fake_quant
from edge.sources.base import Declaration, LoadedSource
from edge.sources.keras_model import LoadedKeras

# They move values, or pick some: both sides of them have one scale.
_PASSING = frozenset(
    {
        *("Flatten", "Reshape", "Permute", "RepeatVector", "Identity", "Dropout", "SpatialDropout2D", "MaxPooling1D"),
        *("MaxPooling2D", "GlobalMaxPooling2D", "ZeroPadding2D", "Cropping2D", "UpSampling2D", "InputLayer"),
    }
)
_FIXED = frozenset({"softmax", "sigmoid", "tanh", "log_softmax"})


class KerasTrainee:
    """`edge.stages.training.Trainee` of a functional or sequential Keras model: a Keras model with the same inputs.

    Batch normalisation behind a convolution or dense layer is folded with the statistics that it has; elsewhere it
    is frozen. Outputs of softmax, sigmoid and tanh keep the scale that their kernels demand.
    """

    def __init__(self, loaded: Any, declaration: Declaration, per_tensor: Sequence[str]) -> None:
        self._loaded, self._declaration = loaded, declaration
        self.model = _rebuilt(loaded.model, per_tensor)

    def observe(self, samples: Iterator[dict[str, Any]]) -> None:
        """Run samples without rounding; ranges start from them."""
        import keras

        with keras_fake_quant.observing():
            for inputs in samples:
                values = [keras.ops.convert_to_tensor(v) for v in inputs.values()]
                self.model(values[0] if len(values) == 1 else values, training=False)

    def settle(self) -> None:
        """Keep the ranges of activations."""
        fake, _ = keras_fake_quant.layers()
        for layer in self.model._flatten_layers(include_self=False, recursive=True):
            if isinstance(layer, fake):
                layer.settled.assign(1.0)

    def finish(self, workdir: Path) -> LoadedSource:
        """Return the trained model as a source; it is saved first, for the way through PyTorch."""
        path = workdir / "trained.keras"
        self.model.compiled = False
        self.model.save(path)
        declaration = replace(self._declaration, outputs=tuple(t.name for t in self._loaded.signature.outputs))
        return LoadedKeras(self.model, declaration, digest=self._loaded.digest, findings=(), location=str(path))


class _Plan:
    """What becomes of each layer: `folded` maps a weighted layer to the batch normalisation behind it."""

    def __init__(self, model: Any) -> None:
        self.readers = {layer.name: _readers(layer) for layer in model.layers}
        self.folded: dict[str, Any] = {}
        for layer in model.layers:
            after = self.readers[layer.name]
            plain = getattr(getattr(layer, "activation", None), "__name__", "linear") == "linear"
            one = len(after) == 1 and type(after[0]).__name__ == "BatchNormalization"
            weighted = type(layer).__name__ in keras_fake_quant.WEIGHTED
            if weighted and plain and one and _last_axis(after[0]) and layer.name not in _outputs(model):
                self.folded[layer.name] = after[0]
        self.gone = {bn.name for bn in self.folded.values()}
        self.outputs = _outputs(model)

    def quantized(self, layer: Any) -> bool:
        """Tell whether a layer's output gets a range: not before a ReLU that it is fused with, nor twice."""
        kind = type(layer).__name__
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        if kind in _PASSING or layer.name in self.folded or activation in _FIXED or kind == "Softmax":
            return False
        after = self.readers[layer.name]
        fused = len(after) == 1 and _is_relu(after[0]) and layer.name not in self.outputs
        return not (fused and activation == "linear")


def _readers(layer: Any) -> list[Any]:
    return [node.operation for node in layer._outbound_nodes]


def _outputs(model: Any) -> set[str]:
    return {t._keras_history.operation.name for t in model.outputs}


def _last_axis(bn: Any) -> bool:
    axis = bn.axis if isinstance(bn.axis, int) else bn.axis[0]
    return axis in (-1, len(bn.input.shape) - 1)


def _is_relu(layer: Any) -> bool:
    kind = type(layer).__name__
    return kind == "ReLU" or (kind == "Activation" and layer.activation.__name__ in ("relu", "relu6"))


def _rebuilt(model: Any, per_tensor: Sequence[str]) -> Any:
    import keras

    source = getattr(model, "_functional", None) or model
    if not isinstance(source, keras.Model) or not getattr(source, "_operations", None) or not source.inputs:
        raise ConversionError(
            f"The Keras model {model.name!r} is a subclassed one: fake quantization cannot be inserted into its call.",
            hint="Build it with the functional API, or train it with fake quantization of your own.",
        )
    plan = _Plan(source)
    copy = keras.models.clone_model(
        source, clone_function=_cloner(plan, per_tensor), call_function=_caller(plan), recursive=False
    )
    _copy_weights(source, copy, plan)
    return copy


def _cloner(plan: _Plan, per_tensor: Sequence[str]) -> Any:
    _, wrapper = keras_fake_quant.layers()

    def clone(layer: Any) -> Any:
        kind, config = type(layer).__name__, layer.get_config()
        if layer.name in plan.folded:
            config["use_bias"] = True
        made = type(layer).from_config(config)
        if kind == "BatchNormalization":
            made.trainable = False
        if kind not in keras_fake_quant.WEIGHTED:
            return made
        one = kind == "Dense" and "FULLY_CONNECTED" in per_tensor
        return wrapper(made, per_tensor=one, name=layer.name)

    return clone


def _caller(plan: _Plan) -> Any:
    import keras

    fake, _ = keras_fake_quant.layers()
    read: dict[int, Any] = {}

    def of_input(value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor) or not value.dtype.startswith("float"):
            return value
        origin = value._keras_history.operation
        if type(origin).__name__ != "InputLayer":
            return value
        if id(value) not in read:
            read[id(value)] = fake(name=f"{origin.name}_range")(value)
        return read[id(value)]

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(of_input, (args, kwargs))
        name = layer.name
        if name in plan.gone:
            return _ranged(layer, args[0])
        return _ranged(layer, layer(*args, **kwargs))

    def _ranged(layer: Any, value: Any) -> Any:
        known = layer.name in plan.readers and isinstance(value, keras.KerasTensor)
        if not known or not plan.quantized(getattr(layer, "layer", layer)):
            return value
        return fake(name=f"{layer.name}_range")(value)

    return call


def _copy_weights(source: Any, copy: Any, plan: _Plan) -> None:
    made = {layer.name: layer for layer in copy.layers}
    for layer in source.layers:
        if layer.name in plan.gone or not layer.weights:
            continue
        target = getattr(made[layer.name], "layer", made[layer.name])
        values = layer.get_weights()
        if layer.name in plan.folded:
            values = _folded(layer, values, plan.folded[layer.name])
        target.set_weights(values)


def _folded(layer: Any, values: list[Any], bn: Any) -> list[Any]:
    mean, variance = bn.moving_mean.numpy(), bn.moving_variance.numpy()
    factor = 1.0 / np.sqrt(variance + bn.epsilon)
    if bn.scale:
        factor = factor * bn.gamma.numpy()
    offset = bn.beta.numpy() if bn.center else np.zeros_like(mean)
    kernel, bias = values[0], values[1] if len(values) > 1 else np.zeros_like(mean)
    kind = type(layer).__name__
    if kind == "DepthwiseConv2D":
        kernel = kernel * factor.reshape(kernel.shape[-2:])
    elif kind == "Conv2DTranspose":
        kernel = kernel * factor[:, None]
    else:
        kernel = kernel * factor
    return [kernel, (bias - mean) * factor + offset]
