"""ONNX files: read and check one, name its inputs and outputs, and run it by onnxruntime as the reference."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConfigError, MissingPackageError, SourceError
from edge.signature import Layout, Signature
from edge.sources import declared
from edge.sources.base import Declaration, InputDeclaration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# Before opset 7 binary operators broadcast by attributes of their own.
LEAST_OPSET = 7
_QUANTIZED = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}


@dataclass(frozen=True, kw_only=True)
class OnnxInput:
    """One input: its name in the file and in the program, its fixed shape, dtype and layout, or its fixed value."""

    source: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    value: float | None = None
    open_batch: bool = False

    def constant(self) -> Array:
        """Return the fixed value in the input's shape and dtype."""
        return np.full(self.shape, self.value, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an ONNX file takes and gives: inputs in order (fixed ones included), outputs by file and program name."""

    inputs: tuple[OnnxInput, ...]
    outputs: tuple[tuple[str, str], ...]

    @property
    def free(self) -> tuple[OnnxInput, ...]:
        """The inputs that the program has."""
        return tuple(i for i in self.inputs if i.value is None)


def import_onnx() -> Any:
    """Return the package onnx; raise MissingPackageError."""
    try:
        import onnx
    except ImportError as error:
        raise MissingPackageError(
            "Reading an ONNX model needs the packages onnx and onnxruntime, which are not installed.",
            hint="pip install 'edgekit[onnx]'",
        ) from error
    return onnx


def read(path: Path) -> Any:
    """Return the checked ModelProto with external data. Raises SourceError for damaged, invalid or quantized models."""
    onnx = import_onnx()
    try:
        model = onnx.load(str(path))
    except FileNotFoundError as error:
        raise SourceError(
            f"{path} keeps weights in another file that is missing: {error.filename or _first(error)}.",
            hint="Put the file of the external data beside the model.",
        ) from error
    except Exception as error:  # protobuf and the checker of external paths raise their own kinds
        if "external" in str(error).lower() or "data file" in str(error).lower():
            raise SourceError(
                f"{path}: its external data cannot be read: {_first(error)}",
                hint="Put the file of the external data beside the model.",
            ) from error
        raise SourceError(
            f"{path} is no readable ONNX model: {_first(error)}", hint="Export or copy it again."
        ) from error
    _check(model, path)
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _check(model: Any, path: Path) -> None:
    opset = opset_of(model)
    if not opset:
        raise SourceError(f"{path} does not say its opset (opset_import is missing).", hint="Export the model again.")
    if opset < LEAST_OPSET:
        raise SourceError(
            f"{path} has opset {opset}; accepted from {LEAST_OPSET} on.",
            hint="Upgrade it with onnx.version_converter.convert_version(model, 13).",
        )
    own = {(f.domain, f.name) for f in model.functions}
    foreign = [n for n in model.graph.node if n.domain not in ("", "ai.onnx") and (n.domain, n.op_type) not in own]
    if foreign:
        listed = ", ".join(sorted({f"{n.domain}::{n.op_type}" for n in foreign}))
        first = foreign[0].name or foreign[0].output[0]
        raise SourceError(
            f"{path} has operators that are not of the ONNX standard: {listed} (first at node {first!r}).",
            hint="Export the model without custom operators, and without an optimizer for one runtime.",
        )
    if found := sorted({node.op_type for node in model.graph.node} & _QUANTIZED):
        raise SourceError(
            f"{path} is quantized already: it has {', '.join(found)}.",
            hint="Give the float model; edgekit quantizes it for each target.",
        )


def opset_of(model: Any) -> int:
    """Return the version of the default operator set, 0 where there is none."""
    return int(next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0))


def describe(model: Any, declaration: Declaration) -> Description:
    """Return inputs and outputs with declared shapes and values applied. Raises ConfigError, SourceError."""
    constants = {i.name for i in (*model.graph.initializer, *(s.values for s in model.graph.sparse_initializer))}
    values = [v for v in model.graph.input if v.name not in constants]
    names = declared.unique(plain(v.name) for v in values)
    wishes = declared.inputs_of(declaration, names)
    inputs = tuple(_input(v, n, w, model) for v, n, w in zip(values, names, wishes, strict=True))
    if all(i.value is not None for i in inputs):
        raise ConfigError("Every input of the model has a fixed value; a program needs one that is free.")
    found = [v.name for v in model.graph.output]
    outputs = declared.output_names(declaration, declared.unique(plain(n) for n in found))
    return Description(inputs=inputs, outputs=tuple(zip(found, outputs, strict=True)))


def plain(name: str) -> str:
    """Return a tensor's name without what exporters add: `serving_default_image:0` is `image`."""
    return name.removeprefix("serving_default_").removesuffix(":0").replace(":", "_")


def _input(value: Any, name: str, wish: InputDeclaration, model: Any) -> OnnxInput:
    onnx = import_onnx()
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type == onnx.TensorProto.STRING:
        raise SourceError(f"The input {name!r} is no tensor of numbers.", hint="Move that part out of the model.")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    declared.check_dtype(name, dtype, wish.dtype)
    if not kind.HasField("shape") and wish.shape is None:
        raise ConfigError(
            f"The input {name!r} has no shape in the file.",
            hint=declared.HOW_TO_DECLARE.format(name=name, shape="1,3,224,224"),
        )
    source = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    source = source if kind.HasField("shape") else [None] * len(wish.shape or ())
    if wish.value is not None and not any(d is None for d in source):
        shape = tuple(int(d or 0) for d in source)
    else:
        shape = declared.static_shape(name, [d if d else None for d in source], wish.shape)
    image = len(shape) == 4 and dtype.startswith("float")
    usual: Layout = ("NHWC" if _turned_first(value.name, model) else "NCHW") if image else "other"
    return OnnxInput(
        source=value.name,
        name=name,
        shape=shape,
        dtype=dtype,
        layout=wish.layout or usual,
        value=wish.value,
        open_batch=bool(source) and not source[0],
    )


def _turned_first(name: str, model: Any) -> bool:
    """Tell whether an input is channel-last: the first thing done with it is a transposition to channel-first."""
    readers = [n for n in model.graph.node if name in n.input]
    return bool(readers) and all(
        n.op_type == "Transpose" and [list(a.ints) for a in n.attribute if a.name == "perm"] == [[0, 3, 1, 2]]
        for n in readers
    )


class OnnxReference:
    """An ONNX file on onnxruntime, called in the layouts and names of a program's signature.

    `turned_inputs` and `turned_outputs` name what is channel-first in the file and channel-last in the program.
    """

    def __init__(
        self,
        path: Path,
        description: Description,
        *,
        turned_inputs: Sequence[str] = (),
        turned_outputs: Sequence[str] = (),
    ) -> None:
        self._description = description
        self._turned = (frozenset(turned_inputs), frozenset(turned_outputs))
        self._session = session(path)
        self._dtypes = {i.name: _dtype(i.type) for i in self._session.get_inputs()}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by program name. Raises SourceError where onnxruntime fails."""
        feed = {}
        for i in self._description.inputs:
            value = i.constant() if i.value is not None else np.asarray(inputs[i.name])
            if i.name in self._turned[0]:
                value = np.moveaxis(value, -1, 1)
            feed[i.source] = np.ascontiguousarray(value.astype(self._dtypes[i.source], copy=False))
        names = [source for source, _ in self._description.outputs]
        with _ort_errors("onnxruntime cannot run the model"):
            results = self._session.run(names, feed)
        outputs = {}
        for (_, name), value in zip(self._description.outputs, results, strict=True):
            array = np.asarray(value)
            array = np.moveaxis(array, 1, -1) if name in self._turned[1] else array
            outputs[name] = array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array
        return outputs


def typed(outputs: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """Return the outputs in the signature's dtypes."""
    return {t.name: outputs[t.name].astype(t.dtype, copy=False) for t in signature.outputs}


def _dtype(kind: str) -> str:
    names = {"tensor(float)": "float32", "tensor(double)": "float64"}
    return names.get(kind, kind.removeprefix("tensor(").removesuffix(")"))


def session(model: Path | bytes) -> Any:
    """Return an onnxruntime session on the CPU. Raises MissingPackageError, SourceError for what it refuses."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPackageError(
            "Running an ONNX model needs the package onnxruntime, which is not installed.",
            hint="pip install 'edgekit[onnx]'",
        ) from error
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 2
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with _ort_errors(f"{model if isinstance(model, Path) else 'The model'} is refused by onnxruntime"):
        return ort.InferenceSession(
            str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
        )


@contextlib.contextmanager
def _ort_errors(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's classes are made at import, without a common base of their own
        # `[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from PATH failed:` says nothing that is not known.
        text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed:)?\s*", "", _first(error))
        raise SourceError(
            f"{what}: {text}", hint="Correct the model or export it again; its graph is not valid as it is."
        ) from error


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:400]


def with_layout(item: OnnxInput, layout: Layout) -> OnnxInput:
    """Return the input with another layout."""
    return replace(item, layout=layout)
