"""A TensorFlow function that is opened: its signature, its reference outputs, and its way to a float flatbuffer.

SavedModels, frozen graphs and JAX functions all become one: a function from a dict of tensors to a dict of tensors.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConversionError, MissingPackageError, SourceError
from edge.findings import Finding
from edge.signature import DTYPES, Signature, TensorSpec
from edge.sources import declared
from edge.sources.base import Declaration
from edge.sources.carrier import check_operators, set_signature, signature_tensors
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Function:
    """What a loader found: `call` takes and returns dicts of tensors; `inputs` has open dimensions as None.

    `keep` are the variables that `call` reads; a program is made of their values.
    """

    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    inputs: tuple[tuple[str, tuple[int | None, ...], str], ...]
    keep: tuple[Any, ...] = ()
    packages: tuple[str, ...] = ()


def import_tensorflow() -> Any:
    """Return tensorflow; raise MissingPackageError."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingPackageError(
            "Reading a TensorFlow model needs the package tensorflow, which is not installed.",
            hint="pip install 'edgekit[tensorflow]'",
        ) from error
    return tf


class LoadedTensorFlow:
    """A function with a fixed signature; open batch dimensions become 1.

    Raises ConfigError for open shapes that are not declared, SourceError for inputs and outputs that a device cannot
    have, and ConversionError for a function whose result changes between calls.
    """

    _keys: tuple[str, ...] = ()  # of the outputs, known after tracing

    def __init__(
        self, function: Function, declaration: Declaration, *, digest: str, findings: Sequence[Finding], kind: str
    ) -> None:
        self._function, self.kind, self.digest = function, kind, digest
        self._sources = tuple(name for name, _, _ in function.inputs)
        self._inputs, found = _inputs(function, declaration)
        self.findings: tuple[Finding, ...] = (*findings, *found)
        self.tools: Mapping[str, str] = declared.versions("tensorflow", "tensorflow-cpu", *function.packages)
        self._outputs = self._trace()
        names = declared.output_names(declaration, declared.unique(_plain(key) for key in self._keys))
        specs = [_output(name, tensor) for name, tensor in zip(names, self._outputs, strict=True)]
        self.signature: Signature = declared.signature(declaration, self._inputs, specs)
        self._refuse_changes()

    def _traced(self) -> Any:
        tf = import_tensorflow()

        def call(*flat: Any) -> dict[str, Any]:
            results = self._function.call(dict(zip(self._sources, flat, strict=True)))
            self._keys = tuple(results)
            return {f"o{i:04d}": tf.identity(v) for i, v in enumerate(results.values())}

        specs = [tf.TensorSpec(t.shape, t.dtype, name=f"i{i:04d}") for i, t in enumerate(self._inputs)]
        return tf.function(call, input_signature=specs)

    def _trace(self) -> list[Any]:
        try:
            self._static = self._traced()
            concrete = self._static.get_concrete_function()
        except Exception as error:  # the model's own code runs here
            raise SourceError(
                f"The model cannot be called with {', '.join(map(str, self._inputs))}: {first_line(error)}",
                hint="Declare the shape that it was made for.",
            ) from error
        return [concrete.structured_outputs[k] for k in sorted(concrete.structured_outputs)]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by signature name, computed by TensorFlow. Raises SourceError where the model fails."""
        tf = import_tensorflow()
        given = {
            source: tf.constant(np.asarray(inputs[t.name]).astype(t.dtype, copy=False))
            for source, t in zip(self._sources, self._inputs, strict=True)
        }
        try:
            # The function as it was found: batches of another size run too, where it takes them.
            results = self._function.call(given)
        except Exception as error:  # the model's own code runs here
            raise SourceError(f"TensorFlow cannot run the model: {first_line(error)}") from error
        return {t.name: np.asarray(v) for t, v in zip(self.signature.outputs, results.values(), strict=True)}

    def _refuse_changes(self) -> None:
        random = np.random.default_rng(0)
        sample: dict[str, Any] = {
            t.name: random.random(t.shape).astype(t.dtype)
            if t.dtype.startswith("float")
            else np.zeros(t.shape, t.dtype)
            for t in self._inputs
        }
        first, second = self.run(sample), self.run(sample)
        if changed := [
            n for n in first if not np.array_equal(first[n], second[n], equal_nan=first[n].dtype.kind == "f")
        ]:
            raise ConversionError(
                f"The model keeps state or draws random numbers: the same input twice changes {', '.join(changed)}. "
                "A program for a device would drop that without a word.",
                hint="Make the state an input and an output of the model.",
            )

    def to_litert(self, path: Path) -> None:
        """Write a float flatbuffer through a SavedModel of one function with fixed shapes."""
        model = fb.load(self._convert(path.parent), name="The converted program")
        check_operators(model, "The converted program")
        self._tidy(model)
        inputs, outputs = (dict(sorted(side.items())) for side in signature_tensors(model))
        set_signature(
            model,
            [(t.name, inputs[f"i{i:04d}"]) for i, t in enumerate(self.signature.inputs)],
            [(t.name, i) for t, i in zip(self.signature.outputs, outputs.values(), strict=True)],
        )
        path.write_bytes(fb.dump(model))

    def _tidy(self, model: Any) -> None:
        """Rewrite the converted program in place where the kind of source asks for it."""

    def _convert(self, workdir: Path) -> bytes:
        tf = import_tensorflow()
        with tempfile.TemporaryDirectory(dir=workdir, prefix=".savedmodel-") as folder:
            try:
                module = tf.Module()
                module.kept, module.serve = list(self._function.keep), self._static
                tf.saved_model.save(module, folder, signatures=module.serve.get_concrete_function())
                program: bytes = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
            except Exception as error:  # converters raise many types
                raise cannot_convert(error) from error
        return program


def _plain(name: str) -> str:
    return name.removesuffix(":0").replace(":", "_").replace("/", "_")


def _inputs(function: Function, declaration: Declaration) -> tuple[list[TensorSpec], list[Finding]]:
    names = declared.unique(_plain(n) for n, _, _ in function.inputs)
    wishes = declared.inputs_of(declaration, names)
    specs: list[TensorSpec] = []
    findings: list[Finding] = []
    for name, (_, shape, dtype), wish in zip(names, function.inputs, wishes, strict=True):
        if dtype not in DTYPES:
            raise SourceError(
                f"The input {name!r} has dtype {dtype}; a device takes {', '.join(DTYPES)}.",
                hint="Choose another signature, or move that preprocessing out of the model.",
            )
        declared.check_dtype(name, dtype, wish.dtype)
        fixed = declared.static_shape(name, shape, wish.shape)
        specs.append(declared.tensor(name, fixed, dtype, declared.default_layout(fixed, dtype, wish.layout)))
        findings += declared.batch_finding(name, shape)
    return specs, findings


def _output(name: str, tensor: Any) -> TensorSpec:
    shape = tuple(tensor.shape) if tensor.shape.rank is not None else (None,)
    if any(d is None or d == 0 for d in shape):
        raise ConversionError(
            f"The output {name!r} has the shape {list(shape)}, which depends on the data or is empty.",
            hint="Pad it to a fixed size inside of the model, or declare the input's shape.",
        )
    if tensor.dtype.name not in DTYPES:
        raise ConversionError(f"The output {name!r} has dtype {tensor.dtype.name}; a device gives {', '.join(DTYPES)}.")
    return declared.tensor(name, shape, tensor.dtype.name, declared.default_layout(shape, tensor.dtype.name))


def first_line(error: BaseException) -> str:
    """Return the first line that says something, without TensorFlow's preambles."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines[:1] == ["in user code:"]:
        lines = [line.partition(": ")[2] for line in lines if re.match(r"\w+(Error|Exception): ", line)] or lines[1:]
    useful = [line for line in lines if not line.startswith(("Graph execution error", "Detected at node"))]
    return ((useful or lines) or [type(error).__name__])[0][:400]


def cannot_convert(error: Exception) -> ConversionError:
    """Return the ConversionError that names the operators which LiteRT lacks."""
    text = str(error)
    listed = re.search(r"(?:Flex|Custom) ops: ([\w, ]+)", text)
    operators = sorted(
        set(re.findall(r"'tf\.(\w+)' op is neither", text))
        | set(re.findall(r"\btf\.(\w+)\(tensor<", text))
        | {o.strip() for o in (listed[1].split(",") if listed else ())}
    )
    if operators:
        return ConversionError(
            f"TensorFlow has no LiteRT operator for {', '.join(operators)}; only Flex, which no target here has.",
            hint="Write that part of the model with other operators, or move it out of the model.",
        )
    return ConversionError(f"TensorFlow's converter failed: {type(error).__name__}: {first_line(error)}")
