"""A Keras model that is opened: its signature, its reference outputs, and its way to a float flatbuffer."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec, isolate
from edge.errors import ConfigError, ConversionError, SourceError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.signature import DTYPES, Signature, TensorSpec
from edge.sources import declared
from edge.sources.base import Declaration, InputDeclaration, OpenDimension
from edge.sources.carrier import check_operators, set_signature, signature_tensors
from edge.sources.sniff import split_factory
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


class LoadedKeras:
    """A Keras model with a fixed signature; open batch dimensions become 1.

    Raises ConfigError for open shapes that are not declared, SourceError for inputs that a device cannot take, and
    ConversionError for a model that keeps state between calls.
    """

    def __init__(
        self,
        model: Any,
        declaration: Declaration,
        *,
        digest: str,
        findings: Sequence[Finding],
        location: str,
        kind: str = "keras",
    ) -> None:
        self._model = model
        self._location, self._trust = location, declaration.trust
        self._structure, self._inputs, found = _inputs(model, declaration)
        self.kind, self.digest = kind, digest
        self._keys: list[str] = []  # of the nested outputs, known after tracing
        self.findings: tuple[Finding, ...] = (*findings, *found)
        self.tools: Mapping[str, str] = declared.versions("tensorflow", "tensorflow-cpu", "keras")
        _refuse_stateful(model)
        self._reference, names, outputs = self._trace()
        self._open = _open(self._inputs, declaration)
        specs = [_output(name, tensor, opened=bool(self._open)) for name, tensor in zip(names, outputs, strict=True)]
        self.signature: Signature = declared.signature(declaration, self._inputs, _renamed(specs, declaration))
        self._refuse_changes()

    @property
    def model(self) -> Any:
        """The Keras model."""
        return self._model

    def to_exported(self, path: Path, progress: Progress = no_progress) -> tuple[Finding, ...]:
        """Write the torch.export carrier, by Keras's torch backend: that needs a process of its own."""
        request: dict[str, Any] = {
            "source": self._location,
            "signature": codec.to_json(self.signature),
            "path": str(path),
            "trust": self._trust,
            "open": {name: [codec.to_json(d) for d in dims] for name, dims in self._open.items()},
        }
        if split_factory(self._location):
            # The factory runs once more there, and one that trains or draws would give other weights.
            weights = path.parent / "export_keras.npz"
            np.savez(weights, *self._model.get_weights())
            request["weights"] = str(weights)
        answer = isolate.call(
            "edge.sources.exported:export_keras", request, workdir=path.parent, name="export_keras", progress=progress
        )
        self.tools = {**self.tools, **answer["tools"]}
        return tuple(codec.from_json(Finding, f) for f in answer["findings"])

    def _function(self) -> Any:
        import keras
        import tensorflow as tf

        def call(*flat: Any) -> dict[str, Any]:
            arguments = keras.tree.pack_sequence_as(self._structure, list(flat))
            results = flatten(self._model(arguments, training=False))
            self._keys = [key for key, _ in results]
            return {f"o{number:04d}": tf.identity(value) for number, (_, value) in enumerate(results)}

        return call

    def _specs(self) -> list[Any]:
        import tensorflow as tf

        shapes = [[None if d == -1 else d for d in t.shape] for t in self._inputs]
        return [tf.TensorSpec(shapes[k], t.dtype, name=f"i{k:04d}") for k, t in enumerate(self._inputs)]

    def _trace(self) -> tuple[Any, tuple[str, ...], list[Any]]:
        import tensorflow as tf

        try:
            # Without an input signature: batches of another size, for reference outputs, are traced when they come.
            reference = tf.function(self._function())
            function = reference.get_concrete_function(*self._specs())
        except Exception as error:  # a model's own code runs here
            raise SourceError(
                f"The model cannot be called with {', '.join(map(str, self._inputs))}: {_first(error)}",
                hint="Declare the shape that it was made for.",
            ) from error
        outputs = [function.structured_outputs[key] for key in sorted(function.structured_outputs)]
        return reference, output_names(self._model, self._keys), outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the model's float outputs, by signature name, computed by TensorFlow."""
        import tensorflow as tf

        flat = [tf.constant(np.asarray(inputs[t.name]).astype(t.dtype, copy=False)) for t in self._inputs]
        results = self._reference(*flat)
        keys = sorted(results)
        return {t.name: results[key].numpy() for t, key in zip(self.signature.outputs, keys, strict=True)}

    def _refuse_changes(self) -> None:
        random = np.random.default_rng(0)
        sample = {t.name: _any_value(t, self._open.get(t.name, ()), random) for t in self._inputs}
        kept = [v for v in self._model.non_trainable_variables if "seed_generator" not in v.path]
        first, before = self.run(sample), [v.numpy() for v in kept]
        second = self.run(sample)
        changed = [
            v.path for v, b in zip(kept, before, strict=True) if not np.array_equal(v.numpy(), b, equal_nan=True)
        ]
        different = [n for n in first if not np.array_equal(first[n], second[n], equal_nan=first[n].dtype.kind == "f")]
        if changed or different:
            raise ConversionError(
                "The model keeps state or draws random numbers: the same input twice changes "
                f"{', '.join(changed or different)}. A program for a device would drop that without a word.",
                hint="Make the state an input and an output of the model.",
            )

    def to_litert(self, path: Path) -> None:
        """Write a float flatbuffer through a SavedModel of one function with fixed shapes."""
        with unrolled(self._model) as steps:
            program = self._convert(path.parent)
        model = fb.load(program)
        check_operators(model, "The converted program")
        inputs, outputs = (list(side.values()) for side in _in_order(model))
        set_signature(
            model,
            [(t.name, i) for t, i in zip(self.signature.inputs, inputs, strict=True)],
            [(t.name, i) for t, i in zip(self.signature.outputs, outputs, strict=True)],
        )
        path.write_bytes(fb.dump(model))
        if steps and not any(f.rule == "RNN_UNROLLED" for f in self.findings):
            self.findings = (*self.findings, _unroll_finding(steps))

    def _convert(self, workdir: Path) -> bytes:
        import tensorflow as tf

        with tempfile.TemporaryDirectory(dir=workdir, prefix=".savedmodel-") as folder:
            try:
                # Only the variables are tracked: Keras's own export traces each layer with its open shapes as well.
                module = tf.Module()
                module.kept = [v.value for v in self._model.variables]
                module.serve = tf.function(self._function(), input_signature=self._specs())
                tf.saved_model.save(module, folder, signatures=module.serve.get_concrete_function())
                # Not from_concrete_functions(functions, model): it leaves the weights uninitialised without a word.
                program: bytes = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
            except Exception as error:  # converters raise many types
                raise _cannot_convert(error) from error
        return program


def _in_order(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    inputs, outputs = signature_tensors(model)
    return dict(sorted(inputs.items())), dict(sorted(outputs.items()))


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the tensors of nested dicts and lists in their own order, each with its keys joined by `_`."""
    if isinstance(value, Mapping):
        return [leaf for key, v in value.items() for leaf in flatten(v, f"{prefix}{key}_")]
    if isinstance(value, (list, tuple)):
        return [leaf for number, v in enumerate(value) for leaf in flatten(v, f"{prefix}{number}_")]
    return [(prefix.removesuffix("_"), value)]


def output_names(model: Any, keys: Sequence[str]) -> tuple[str, ...]:
    """Return dict keys where the outputs have them, else the names of the layers, else `output_0`, `output_1`, …"""
    if keys and not any(key.split("_")[0].isdigit() or not key for key in keys):
        return declared.unique(keys)
    layers = getattr(model, "output_names", None)
    if layers is None and len(keys) == 1 and type(model).__name__ == "Sequential":
        layers = [model.layers[-1].name]
    if layers and len(layers) == len(keys):
        return declared.unique(layers)
    return tuple(f"output_{number}" for number in range(len(keys)))


def _inputs(model: Any, declaration: Declaration) -> tuple[Any, list[TensorSpec], list[Finding]]:
    structure, tensors = _symbolic_inputs(model, declaration)
    names = declared.unique(name for name, _, _ in tensors)
    specs: list[TensorSpec] = []
    findings: list[Finding] = []
    wishes = declared.inputs_of(declaration, names)
    for name, (_, shape, dtype), wish in zip(names, tensors, wishes, strict=True):
        if dtype not in DTYPES:
            raise SourceError(
                f"The input {name!r} has dtype {dtype}; a device takes {', '.join(DTYPES)}.",
                hint="Move that preprocessing out of the model.",
            )
        declared.check_dtype(name, dtype, wish.dtype)
        fixed = declared.open_shape(name, shape, wish)
        specs.append(declared.tensor(name, fixed, dtype, declared.default_layout(fixed, dtype, wish.layout)))
        findings += declared.batch_finding(name, shape)
    return structure, specs, findings


def _symbolic_inputs(model: Any, declaration: Declaration) -> tuple[Any, list[tuple[str, Any, str]]]:
    """Return the structure of the model's inputs and each leaf's name, shape and dtype, in the structure's order."""
    import keras

    tensors = getattr(model, "inputs", None)
    if not tensors:
        return _declared_inputs(model, declaration)
    try:
        structure = model.input
    except AttributeError:  # a Sequential model is called with its one tensor
        structure = tensors[0]
    leaves = keras.tree.flatten(structure)
    # keras.tree sorts the keys of a dict; the tensors tell which is which.
    keys = {id(tensor): key for key, tensor in flatten(structure)} if isinstance(structure, Mapping) else {}
    return structure, [
        (keys.get(id(t)) or t.name, tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in leaves
    ]


def _declared_inputs(model: Any, declaration: Declaration) -> tuple[Any, list[tuple[str, Any, str]]]:
    tensors = [(n, d.shape, d.dtype or "float32") for n, d in declaration.inputs.items() if d.shape is not None]
    if not tensors:
        raise ConfigError(
            f"The model {model.name!r} is a subclassed one: its file does not say its inputs.",
            hint="Declare the shape of each input in the order of its call: --shape image=1,96,96,3.",
        )
    names = [n for n, _, _ in tensors]
    return (names[0] if len(names) == 1 else names), tensors


def _open(inputs: Sequence[TensorSpec], declaration: Declaration) -> dict[str, tuple[OpenDimension, ...]]:
    names = [t.name for t in inputs]
    wishes = declared.inputs_of(declaration, names)
    return {name: w.open for name, w in zip(names, wishes, strict=True) if w.open}


def _output(name: str, tensor: Any, *, opened: bool = False) -> TensorSpec:
    shape, dtype = tuple(-1 if d is None and opened else d for d in tensor.shape), tensor.dtype.name
    if any(d is None or d == 0 for d in shape):
        raise ConversionError(
            f"The output {name!r} has the shape {list(shape)}, which depends on the data or is empty.",
            hint="Pad it to a fixed size inside of the model.",
        )
    if dtype not in DTYPES:
        raise ConversionError(f"The output {name!r} has dtype {dtype}; a device gives {', '.join(DTYPES)}.")
    return declared.tensor(name, shape, dtype, declared.default_layout(shape, dtype))


def _renamed(specs: Sequence[TensorSpec], declaration: Declaration) -> list[TensorSpec]:
    names = declared.output_names(declaration, [t.name for t in specs])
    return [declared.tensor(n, t.shape, t.dtype, t.layout) for n, t in zip(names, specs, strict=True)]


def _any_value(spec: TensorSpec, opened: tuple[OpenDimension, ...], random: np.random.Generator) -> Array:
    shape = declared.example_shape(spec.name, InputDeclaration(shape=spec.shape, open=opened))
    if spec.dtype.startswith("float"):
        return random.random(shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)


def _all_layers(model: Any) -> list[Any]:
    return list(model._flatten_layers(include_self=True, recursive=True))


def _refuse_stateful(model: Any) -> None:
    if names := [layer.name for layer in _all_layers(model) if getattr(layer, "stateful", False) is True]:
        raise ConversionError(
            f"The layers {', '.join(names)} are stateful: a program for a device would drop their state.",
            hint="Build them with stateful=False, or make the state an input and an output (return_state=True).",
        )


@contextlib.contextmanager
def unrolled(model: Any) -> Iterator[tuple[str, ...]]:
    """Let recurrent layers be built step by step: as a loop, no quantizer takes them (TensorFlow's crashes)."""
    import keras

    layers = [layer for layer in _all_layers(model) if isinstance(layer, keras.layers.RNN) and not layer.unroll]
    for layer in layers:
        layer.unroll = True
    try:
        yield tuple(layer.name for layer in layers)
    finally:
        for layer in layers:
            layer.unroll = False


def _unroll_finding(names: tuple[str, ...]) -> Finding:
    return Finding(
        rule="RNN_UNROLLED",
        severity="info",
        op=names[0],
        message=f"The recurrent layers {', '.join(names)} are written out step by step; operators grow with the steps.",
    )


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # AutoGraph puts a traceback first and the message after it.
    if lines[:1] == ["in user code:"]:
        lines = [line.partition(": ")[2] for line in lines if re.match(r"\w+(Error|Exception): ", line)] or lines[1:]
    return (lines or [type(error).__name__])[0][:400]


def _cannot_convert(error: Exception) -> ConversionError:
    text = str(error)
    operators = sorted(
        set(re.findall(r"'tf\.(\w+)' op is neither", text)) | set(re.findall(r"\btf\.(\w+)\(tensor<", text))
    )
    if operators:
        return ConversionError(
            f"TensorFlow has no LiteRT operator for {', '.join(operators)}.",
            hint="Write that part of the model with other layers.",
        )
    return ConversionError(f"TensorFlow's converter failed: {type(error).__name__}: {_first(error)}")
