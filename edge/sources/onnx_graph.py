"""An ONNX graph as a PyTorch module for fixed input shapes.

The graph is walked once on example inputs. Whatever does not depend on the data (shapes, indices, constant branches) is
computed there and then; the operators that are left are converted one by one and replayed by `forward`. So sizes are
plain numbers, which export and every converter behind it need, and an `If` on a constant is its one branch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

# Imported for their converters.
from edge.errors import ConversionError
from edge.sources import onnx_layers, onnx_ops, onnx_quantized, onnx_resize  # noqa: F401
from edge.sources.onnx_file import Description, import_onnx, opset_of
from edge.sources.onnx_node import CONVERTERS, STACK, Node, convert
from edge.sources.torch_io import from_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
_SIZED_BY_DATA = {"NonZero", "NonMaxSuppression", "Unique", "Compress", "SequenceAt", "StringNormalizer"}
_CONTROL = {"If", "Loop", "Scan"}
_MOST_STEPS = 4096


@dataclass(frozen=True)
class _Step:
    node: Node
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]


@dataclass
class _Walk:
    """The state of the walk: values by number, known ones as arrays, all as tensors, and the inputs each depends on."""

    opset: int
    constants: dict[int, Array] = field(default_factory=dict)
    tensors: dict[int, Any] = field(default_factory=dict)
    depends: dict[int, frozenset[str]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)

    def add(self, tensor: Any, depends: frozenset[str], name: str = "") -> int:
        number = len(self.tensors)
        self.tensors[number], self.depends[number], self.names[number] = tensor, depends, name
        return number

    def know(self, value: Array, name: str = "") -> int:
        number = self.add(_tensor(value), frozenset(), name)
        self.constants[number] = value
        return number


def _tensor(value: Array) -> Any:
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        return None
    if array.dtype.kind not in "biuf" or array.dtype in (np.float16, np.float64):
        array = array.astype(np.float32)
    return from_array(array)


def build(model: Any, description: Description) -> Any:
    """Return a module from the free inputs (positional tensors) to a dict of outputs.

    Raises ConversionError that names the node which cannot be converted.
    """
    import torch

    walk = _Walk(opset_of(model))
    scope: dict[str, int] = {"": -1}
    inputs = []
    torch.manual_seed(0)
    for item in description.inputs:
        if item.value is not None:
            scope[item.source] = walk.know(item.constant(), item.source)
        else:
            scope[item.source] = walk.add(example(item.shape, item.dtype), frozenset({item.name}), item.source)
            inputs.append(scope[item.source])
    with torch.no_grad():
        _graph(model.graph, scope, walk, "")
    return _module(walk, inputs, {name: scope[source] for source, name in description.outputs})


def example(shape: Sequence[int], dtype: str) -> Any:
    """Return random numbers of 0 to 1, zeros for integers; half and double precision as float32."""
    import torch

    if dtype.startswith(("float", "bfloat")):
        return torch.rand(tuple(shape))
    return torch.zeros(tuple(shape), dtype=getattr(torch, dtype))


def _graph(graph: Any, scope: dict[str, int], walk: _Walk, prefix: str) -> None:
    onnx = import_onnx()
    for initializer in graph.initializer:
        scope[initializer.name] = walk.know(onnx.numpy_helper.to_array(initializer), initializer.name)
    for proto in graph.node:
        results = _node(proto, scope, walk, prefix, graph)
        scope.update({name: number for name, number in zip(proto.output, results, strict=False) if name})


def _node(proto: Any, scope: dict[str, int], walk: _Walk, prefix: str, graph: Any) -> Sequence[int]:
    kind, name = proto.op_type, prefix + (proto.name or proto.output[0])
    inputs = [scope[i] if i else None for i in proto.input]
    given = [i for i in inputs if i is not None]
    if proto.domain in ("", "ai.onnx"):
        if kind == "If":
            return _if(proto, scope, walk, name)
        if kind == "Loop":
            return _loop(proto, scope, walk, name)
        if kind in ("Shape", "Size") and given[0] not in walk.constants:
            return [walk.know(_shape(proto, walk.tensors[given[0]]), proto.output[0])]
        kept = bool(given) and onnx_quantized.keeps(kind, walk.constants.get(given[0]))
        if kind == "DequantizeLinear" and not kept and all(i in walk.constants for i in given):
            values = [None if i is None else walk.constants[i] for i in inputs]
            return [walk.know(onnx_quantized.folded(values, _attributes(proto)), proto.output[0])]
        if all(i in walk.constants for i in given) and kind not in _RANDOM | _CONTROL and not kept:
            return _evaluate(proto, [None if i is None else walk.constants[i] for i in inputs], walk, name)
    if proto.domain not in ("", "ai.onnx") or kind not in CONVERTERS:
        raise _unsupported(proto, name, graph)
    constants = tuple(None if i is None else walk.constants.get(i) for i in inputs)
    if kind in onnx_quantized.KEPT:
        constants = onnx_quantized.signed(constants)
        stored = constants[0]
        if stored is not None and stored is not walk.constants.get(given[0]):
            inputs[0] = walk.know(stored)
        inputs = inputs[:1]  # scale and zero point are settings, not values of the graph
    node = Node(
        kind=kind,
        name=name,
        attributes=_attributes(proto),
        tensors=tuple(None if i is None else walk.tensors[i] for i in inputs),
        constants=constants,
        outputs=len(proto.output),
        opset=walk.opset,
    )
    depends = frozenset[str]().union(*(walk.depends[i] for i in given))
    outputs = [walk.add(t, depends, o) for t, o in zip(convert(node), proto.output, strict=False)]
    template = Node(node.kind, node.name, node.attributes, (), node.constants, node.outputs, node.opset)
    walk.steps.append(_Step(template, tuple(inputs), tuple(outputs)))
    return outputs


def _attributes(proto: Any) -> dict[str, Any]:
    onnx = import_onnx()
    found = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [v.decode() for v in value]
        found[attribute.name] = value
    return found


def _shape(proto: Any, tensor: Any) -> Array:
    if proto.op_type == "Size":
        return np.array(tensor.numel(), np.int64)
    attributes = _attributes(proto)
    return np.array(tuple(tensor.shape)[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _evaluate(proto: Any, values: Sequence[Array | None], walk: _Walk, name: str) -> list[int]:
    """Return the outputs of an operator on known values, computed by onnx's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    onnx = import_onnx()
    feed = {n: v for n, v in zip(proto.input, values, strict=True) if n}
    outputs = [o for o in proto.output if o]
    try:
        # As a model: a lone node would be computed as the newest opset defines it.
        ends = [[onnx.helper.make_empty_tensor_value_info(n) for n in names] for names in (feed, outputs)]
        graph = onnx.helper.make_graph([proto], "one", *ends)
        imports = [onnx.helper.make_opsetid("", walk.opset)]
        results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feed)
    except Exception as error:  # the reference implementation raises whatever NumPy does
        raise ConversionError(
            f"The ONNX operator {proto.op_type} of node {name!r}, whose inputs are constants, cannot be computed: "
            f"{type(error).__name__}: {str(error)[:200]}",
            hint="Fold it when exporting, with onnx-simplifier for one.",
        ) from error
    return [walk.know(np.asarray(r), o) for r, o in zip(results, outputs, strict=False)]


def _unsupported(proto: Any, name: str, graph: Any) -> ConversionError:
    kind = proto.op_type
    if proto.domain not in ("", "ai.onnx"):
        return ConversionError(
            f"The node {name!r} is the custom operator {proto.domain}::{kind}.",
            hint="Export the model with operators of the ONNX standard, without an optimizer for one runtime.",
        )
    if kind in _RANDOM:
        return ConversionError(
            f"The node {name!r} draws random numbers ({kind}).", hint="Export the model in evaluation mode."
        )
    if kind in _SIZED_BY_DATA:
        return ConversionError(
            f"The result of {kind} (node {name!r}) has a size that depends on the data.",
            hint="Cut the model before it (postprocessing runs in the app), or use TopK with a fixed count.",
        )
    others = sorted({n.op_type for n in graph.node if n.op_type not in CONVERTERS} - {kind, "Shape", "Size", *_CONTROL})
    also = f" So do perhaps {', '.join(others)}." if others else ""
    return ConversionError(
        f"The ONNX operator {kind} (node {name!r}) has no conversion.{also}", hint="Export it with other operators."
    )


def _if(proto: Any, scope: dict[str, int], walk: _Walk, name: str) -> list[int]:
    condition = scope[proto.input[0]]
    if condition not in walk.constants:
        raise _by_data(proto, name, walk.depends[condition])
    branch = _attributes(proto)["then_branch" if bool(walk.constants[condition].ravel()[0]) else "else_branch"]
    inner = dict(scope)
    _graph(branch, inner, walk, f"{name}/")
    return [inner[o.name] for o in branch.output]


def _loop(proto: Any, scope: dict[str, int], walk: _Walk, name: str) -> list[int]:
    """Write a loop with a known number of rounds out."""
    count, keep = (scope.get(proto.input[i]) if proto.input[i] else None for i in (0, 1))
    for value in (count, keep):
        if value is not None and value not in walk.constants:
            raise _by_data(proto, name, walk.depends[value])
    rounds = _MOST_STEPS if count is None else int(walk.constants[count].ravel()[0])
    carried = [scope[i] for i in proto.input[2:]]
    body, scans = _attributes(proto)["body"], list[list[int]]()
    for number in range(min(rounds, _MOST_STEPS)):
        if keep is not None and not walk.constants[keep].ravel()[0]:
            break
        flag = keep if keep is not None else walk.know(np.array(True))
        inner = {**scope, body.input[0].name: walk.know(np.array(number, np.int64)), body.input[1].name: flag}
        inner |= {v.name: c for v, c in zip(body.input[2:], carried, strict=True)}
        _graph(body, inner, walk, f"{name}/{number}/")
        keep, *results = [inner[o.name] for o in body.output]
        if keep not in walk.constants:
            raise _by_data(proto, name, walk.depends[keep])
        carried, scanned = results[: len(carried)], results[len(carried) :]
        scans = [[*before, now] for before, now in zip(scans or [[]] * len(scanned), scanned, strict=True)]
    return [*carried, *(_stacked(parts, walk, name) for parts in scans)]


def _stacked(parts: list[int], walk: _Walk, name: str) -> int:
    import torch

    if all(p in walk.constants for p in parts):
        return walk.know(np.stack([walk.constants[p] for p in parts]))
    node = Node(STACK, f"{name}/scan", {}, (), (None,) * len(parts), 1, walk.opset)
    result = walk.add(
        torch.stack([walk.tensors[p] for p in parts]), frozenset[str]().union(*(walk.depends[p] for p in parts))
    )
    walk.steps.append(_Step(node, tuple(parts), (result,)))
    return result


def _by_data(proto: Any, name: str, depends: frozenset[str]) -> ConversionError:
    listed = ", ".join(sorted(depends))
    return ConversionError(
        f"The {proto.op_type} of node {name!r} decides by the values of {listed}; a program has fixed control flow.",
        hint=f"Where {listed} is a setting, fix it: --set {sorted(depends)[0]}=VALUE. "
        "Else compute both sides and choose with Where.",
    )


def _module(walk: _Walk, inputs: list[int], outputs: Mapping[str, int]) -> Any:
    import torch

    steps = _needed(walk.steps, set(outputs.values()))
    kept = {i for s in steps for i in s.inputs if i is not None} | set(outputs.values())
    computed = {o for s in steps for o in s.outputs} | set(inputs)

    class OnnxGraph(torch.nn.Module):  # type: ignore[misc]
        """The operators that are left, in order, over the values by number."""

        def __init__(self) -> None:
            super().__init__()
            self.training = False
            for number in sorted(kept - computed):
                self.register_buffer(f"value_{number}", walk.tensors[number])

        def forward(self, *given: Any) -> dict[str, Any]:
            values = dict(zip(inputs, given, strict=True))
            for _ in self.replay(values):
                pass
            return {name: self._value(values, number) for name, number in outputs.items()}

        def replay(self, values: dict[int, Any]) -> Iterator[tuple[Node, list[tuple[str, Any]]]]:
            """Compute step by step; yield each operator with its named outputs."""
            for step in steps:
                tensors = [None if i is None else self._value(values, i) for i in step.inputs]
                t = step.node
                node = Node(t.kind, t.name, t.attributes, tensors, t.constants, t.outputs, t.opset)
                results = convert(node)
                values.update(zip(step.outputs, results, strict=False))
                yield node, [(walk.names[o], r) for o, r in zip(step.outputs, results, strict=False)]

        def start(self, given: Sequence[Any]) -> dict[int, Any]:
            return dict(zip(inputs, given, strict=True))

        def _value(self, values: dict[int, Any], number: int) -> Any:
            return values[number] if number in values else getattr(self, f"value_{number}")

    return OnnxGraph().eval()


def _needed(steps: Sequence[_Step], wanted: set[int]) -> list[_Step]:
    kept = []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            kept.append(step)
            wanted |= {i for i in step.inputs if i is not None}
    return kept[::-1]
