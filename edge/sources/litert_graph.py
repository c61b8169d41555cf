"""A float flatbuffer as a PyTorch module, operator by operator; what depends on constants alone is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ConversionError

# Imported for their converters.
from edge.sources import litert_layers, litert_ops  # noqa: F401
from edge.sources.litert_node import Keep, Node, Value, convert
from edge.sources.torch_io import from_array
from edge.targets.litert import flatbuffer as fb

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass
class _Plan:
    """What is known without data: constants by tensor, and the operators that are left."""

    graph: fb.Graph
    constants: dict[int, Array] = field(default_factory=dict)
    steps: list[fb.Op] = field(default_factory=list)


def build(model: Any) -> Any:
    """Return a module from the graph's inputs (positional tensors) to the list of its outputs.

    The module's `replay(tensors)` yields each operator with its results as arrays, in the flatbuffer's layout. Raises
    ConversionError that names the operator without a form in PyTorch.
    """
    plan = _planned(fb.graph(model))
    module = _module(plan)
    import torch

    with torch.no_grad():  # once, so that the module owns every tensor that it is made of
        module(*[_example(plan.graph.tensors[i]) for i in plan.graph.inputs])
    module.finished = True  # forward is the same from now on
    return module


def _example(tensor: fb.Tensor) -> Any:
    import torch

    if tensor.dtype == "float32":
        return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0))
    return torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype))


def _planned(graph: fb.Graph) -> _Plan:
    plan = _Plan(graph)
    for tensor in graph.tensors:
        if (value := graph.data(tensor.index)) is not None:
            plan.constants[tensor.index] = value
    for op in graph.ops:
        results = _known(op, plan)
        if results is None:
            plan.steps.append(op)
        else:
            plan.constants.update(zip(op.outputs, results, strict=True))
    return plan


def _known(op: fb.Op, plan: _Plan) -> list[Array] | None:
    """Return the results of an operator that depends on constants or on shapes alone."""
    given = [i for i in op.inputs if i >= 0]
    if op.name in ("SHAPE", "RANK"):
        tensor = plan.graph.tensors[given[0]]
        dtype = plan.graph.tensors[op.outputs[0]].dtype
        return [np.array(tensor.shape if op.name == "SHAPE" else len(tensor.shape), dtype)]
    if not all(i in plan.constants for i in given):
        return None
    import torch

    made: dict[str, Any] = {}
    with torch.no_grad():
        results = convert(_node(op, plan, {}, lambda key, make: _kept(made, key, make)), _label(op, plan))
    return [np.asarray(r.tensor(_never, first=False)) for r in results]


def _kept(made: dict[str, Any], key: str, make: Any) -> Any:
    if key not in made:
        made[key] = from_array(make())
    return made[key]


def _never(key: str, _: Any) -> Any:
    raise AssertionError(f"a result asked for the constant {key}")


def _label(op: fb.Op, plan: _Plan) -> str:
    return plan.graph.tensors[op.outputs[0]].name


def _node(op: fb.Op, plan: _Plan, values: Mapping[int, Value], keep: Keep) -> Node:
    found: list[Value | None] = []
    for i in op.inputs:
        known = plan.constants.get(i)
        if known is not None:
            found.append(Value(constant=known, key=f"t{i}"))
        else:
            # An LSTM's state has no producer: it is 0 at the start.
            found.append(values.get(i) if i >= 0 else None)
    return Node(op, found, [plan.graph.tensors[i].shape for i in op.outputs], keep)


def _module(plan: _Plan) -> Any:
    import torch

    class LiteRTGraph(torch.nn.Module):  # type: ignore[misc]
        """The operators in order; buffers are the constants in the form that each operator wants."""

        def __init__(self) -> None:
            super().__init__()
            self.training = False
            self.finished = False

        def keep(self, key: str, make: Any) -> Any:
            if not self.finished and key not in self._buffers:
                self.register_buffer(key, from_array(make()))
            return getattr(self, key)

        def forward(self, *given: Any) -> list[Any]:
            values = dict(zip(plan.graph.inputs, map(Value, given), strict=True))
            for _ in _run(plan, values, self.keep):
                pass
            return [_result(plan, values, i, self.keep) for i in plan.graph.outputs]

        def replay(self, given: Sequence[Any]) -> Iterator[tuple[fb.Op, list[Array]]]:
            """Compute operator by operator; yield each with its results."""
            values = dict(zip(plan.graph.inputs, map(Value, given), strict=True))
            for op in _run(plan, values, self.keep):
                yield op, [_result(plan, values, i, self.keep).numpy() for i in op.outputs]

    return LiteRTGraph()


def _run(plan: _Plan, values: dict[int, Value], keep: Keep) -> Iterator[fb.Op]:
    """Compute operator by operator into `values`; yield each when it is done."""
    for op in plan.steps:
        results = convert(_node(op, plan, values, keep), _label(op, plan))
        values.update(zip(op.outputs, results, strict=False))
        yield op


def _result(plan: _Plan, values: Mapping[int, Value], index: int, keep: Keep) -> Any:
    if index in plan.constants:
        return keep(f"t{index}", lambda: plan.constants[index])
    return values[index].tensor(keep, first=False)


def check_results(module: Any, model: Any) -> None:
    """Raise ConversionError where an operator's result has another shape than the flatbuffer says."""
    graph = fb.graph(model)
    for op, results in module.replay([_example(graph.tensors[i]) for i in graph.inputs]):
        for index, value in zip(op.outputs, results, strict=True):
            tensor = graph.tensors[index]
            if value.shape != tensor.shape:
                raise ConversionError(
                    f"The LiteRT operator {op.name} (tensor {tensor.name!r}) has the shape {list(value.shape)} in "
                    f"torch.export and {list(tensor.shape)} in the flatbuffer."
                )
