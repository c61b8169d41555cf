"""Source: frozen TensorFlow 1 graphs (`.pb`), the inputs and outputs found in the graph or declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConfigError, SourceError
from edge.sources import declared
from edge.sources.base import Declaration, LoadedSource
from edge.sources.sniff import sniff
from edge.sources.tf_model import Function, LoadedTensorFlow, first_line, import_tensorflow

# Operators that end a graph without being a result.
_NO_RESULT = {"NoOp", "Assert", "Const", "SaveV2", "RestoreV2", "Assign", "Placeholder", "PlaceholderWithDefault"}
_VARIABLES = {"VariableV2", "Variable", "VarHandleOp", "VarIsInitializedOp"}


@dataclass(frozen=True)
class FrozenGraphSource:
    """GraphDef files whose variables are constants."""

    kind: str = "frozen-graph"
    packages: tuple[str, ...] = ("tensorflow",)

    def matches(self, location: str) -> bool:
        """Tell whether the file begins as a GraphDef does."""
        return sniff(location) == "frozen-graph"

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Import the graph. Raises SourceError for a damaged or unfrozen one, ConfigError for unknown ends."""
        path = Path(location)
        tf = import_tensorflow()
        graph = tf.compat.v1.GraphDef()
        try:
            graph.ParseFromString(path.read_bytes())
        except Exception as error:  # protobuf's DecodeError has no public home
            raise SourceError(f"{path} is no readable GraphDef: {error}.", hint="Copy the model again.") from error
        _refuse_variables(graph, path)
        _refuse_mixed_constants(graph, path)
        outputs = _outputs(graph, declaration, path)
        function = _function(graph, _placeholders(graph, path), outputs, declaration)
        free = Declaration(
            inputs=declaration.inputs,
            task=declaration.task,
            labels=declaration.labels,
            postprocess=declaration.postprocess,
            layout=declaration.layout,
        )
        return LoadedTensorFlow(function, free, digest=declared.file_digest(path), findings=(), kind="frozen-graph")


def _refuse_variables(graph: Any, path: Path) -> None:
    names = [n.name for n in graph.node if n.op in _VARIABLES]
    if names:
        raise SourceError(
            f"{path} is a graph without its weights: {len(names)} variables such as {names[0]!r} are not frozen.",
            hint="Freeze it with TensorFlow 1's freeze_graph, or give the SavedModel folder.",
        )


def _refuse_mixed_constants(graph: Any, path: Path) -> None:
    """Refuse constants that hold another dtype than they say: TensorFlow's optimizer ends the process at such a one."""
    wrong = [n.name for n in graph.node if n.op == "Const" and n.attr["dtype"].type != n.attr["value"].tensor.dtype]
    if wrong:
        raise SourceError(
            f"{path} is damaged: {len(wrong)} constants such as {wrong[0]!r} hold another dtype than they say.",
            hint="Copy the model again.",
        )


def _placeholders(graph: Any, path: Path) -> list[Any]:
    found = [n for n in graph.node if n.op == "Placeholder"]
    if not found:
        raise SourceError(f"{path} has no Placeholder, so no input.", hint="Freeze the inference graph.")
    return found


def _outputs(graph: Any, declaration: Declaration, path: Path) -> tuple[str, ...]:
    """Return the declared output nodes, else those that no other reads."""
    names = {n.name for n in graph.node}
    if declaration.outputs:
        if missing := [o for o in declaration.outputs if o.partition(":")[0] not in names]:
            raise ConfigError(
                f"{path} has no node {', '.join(missing)}.", hint=f"Results of it are {', '.join(_ends(graph)[:8])}."
            )
        return tuple(declaration.outputs)
    if not (ends := _ends(graph)):
        raise SourceError(f"{path} has no node that computes a result.")
    return tuple(ends)


def _ends(graph: Any) -> list[str]:
    read = {i.lstrip("^").partition(":")[0] for n in graph.node for i in n.input}
    return [n.name for n in graph.node if n.name not in read and n.op not in _NO_RESULT]


def _function(graph: Any, placeholders: list[Any], outputs: tuple[str, ...], declaration: Declaration) -> Function:
    tf = import_tensorflow()
    tensors = [f"{p.name}:0" for p in placeholders]
    fetches = [o if ":" in o else f"{o}:0" for o in outputs]

    def load() -> None:
        tf.compat.v1.import_graph_def(graph, name="")

    try:
        wrapped = tf.compat.v1.wrap_function(load, [])
        pruned = wrapped.prune(
            [wrapped.graph.as_graph_element(t) for t in tensors], [wrapped.graph.as_graph_element(f) for f in fetches]
        )
    except Exception as error:  # an operator that TensorFlow 2 dropped, an edge to nowhere
        raise SourceError(
            f"TensorFlow cannot import the graph: {type(error).__name__}: {first_line(error)}",
            hint="Name the results with --output, or give the SavedModel it was made from.",
        ) from error

    def call(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        results = pruned(*[inputs[p.name] for p in placeholders])
        flat = results if isinstance(results, (list, tuple)) else [results]
        return dict(zip(outputs, flat, strict=True))

    ends = tuple(
        (
            p.name,
            _shape(wrapped.graph, f"{p.name}:0", declaration, position),
            tf.dtypes.as_dtype(p.attr["dtype"].type).name,
        )
        for position, p in enumerate(placeholders)
    )
    return Function(call=call, inputs=ends, keep=(pruned,))


def _shape(graph: Any, tensor: str, declaration: Declaration, position: int) -> tuple[int | None, ...]:
    shape = graph.as_graph_element(tensor).shape
    if shape.rank is not None:
        return tuple(shape)
    name = tensor.removesuffix(":0")
    wish = declaration.inputs.get(name) or declaration.inputs.get(str(position))
    if wish is None or wish.shape is None:
        raise ConfigError(
            f"The input {name!r} has no shape in the graph.",
            hint=declared.HOW_TO_DECLARE.format(name=name, shape="1,224,224,3"),
        )
    return (None,) * len(wish.shape)
