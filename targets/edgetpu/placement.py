"""Predict which operators the Edge TPU compiler maps, as the compiler itself decides it.

Two steps. Each operator is supported or refused by the rules of `rules.toml`. Then the graph is cut into node subsets
the way TensorFlow Lite cuts it for a delegate, and only the first supported subset is kept, unless the compiler's
`--enable_multiple_subgraphs` (-a) keeps them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from edge.targets.edgetpu import rules
from edge.targets.edgetpu.rules import Case, Rule, RuleBook
from edge.targets.litert.flatbuffer import Graph

MAPPED = "Mapped to Edge TPU"
DEFAULT_RUNTIME = 14  # min_runtime_version of compiler 16


@dataclass(frozen=True, kw_only=True)
class PlacedOp:
    """One operator: `reason` in the compiler's words, None where mapped.

    `certainty` is `documented`, `observed N times` or `extrapolated`; `rule` the id in rules.toml, `fix` in the user's
    terms, `subgraph` the number of the Edge TPU subgraph it belongs to.
    """

    index: int
    op: str
    mapped: bool
    certainty: str
    reason: str | None = None
    rule: str | None = None
    fix: str | None = None
    subgraph: int | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Operators in execution order and the number of Edge TPU subgraphs (custom operators) of the compiled model."""

    operators: tuple[PlacedOp, ...]
    subgraphs: int

    @property
    def mapped(self) -> tuple[bool, ...]:
        """Per operator, whether it runs on the Edge TPU."""
        return tuple(op.mapped for op in self.operators)

    def table(self) -> tuple[tuple[str, int, str], ...]:
        """Return the rows of the compiler's own log: operator, count, status; in order of first appearance."""
        rows = Counter((op.op, op.reason or MAPPED) for op in self.operators)
        return tuple((name, count, status) for (name, status), count in rows.items())


def partition(graph: Graph, supported: Sequence[bool]) -> list[tuple[bool, list[int]]]:
    """Cut the graph into (supported?, operator indices) subsets that can each run as one node, in order of execution.

    Greedy as TFLite's PartitionGraphIntoIndependentNodeSubsets: a subset takes the kind of the first ready operator,
    then every operator of that kind whose inputs are ready, in execution order, again until none is added. So an
    operator on a branch beside a refused one still belongs to the first subset.
    """
    pending = [{t for t in op.inputs if t >= 0} for op in graph.ops]
    waiting = {t for op in graph.ops for t in op.outputs}
    left = list(range(len(graph.ops)))
    subsets: list[tuple[bool, list[int]]] = []
    while left:
        kind: bool | None = None
        members: list[int] = []
        grown = True
        while grown:
            grown = False
            for index in left:
                if pending[index] & waiting or kind not in (None, supported[index]):
                    continue
                kind = supported[index]
                members.append(index)
                waiting -= set(graph.ops[index].outputs)
                grown = True
            left = [index for index in left if index not in set(members)]
        if kind is None:  # a cycle: no interpreter could run it
            subsets.append((False, left))
            break
        subsets.append((kind, members))
    return subsets


def predict(graph: Graph, *, multiple_subgraphs: bool = False, min_runtime_version: int = DEFAULT_RUNTIME) -> Placement:
    """Predict the placement of each operator of a quantized graph.

    `multiple_subgraphs` is the compiler's -a, `min_runtime_version` its -m (10 to 14). Operators on float tensors get
    the compiler's reason for unsupported data types.
    """
    book = rules.load()
    refusals = [book.first(Case(graph=graph, op=op, runtime=min_runtime_version, book=book)) for op in graph.ops]
    kept = [members for kind, members in partition(graph, [r is None for r in refusals]) if kind]
    if not multiple_subgraphs:
        kept = kept[:1]
    home = {index: number for number, members in enumerate(kept) for index in members}
    operators = tuple(_placed(graph, i, refusals[i], home.get(i), book) for i in range(len(graph.ops)))
    return Placement(operators=operators, subgraphs=len(kept))


def _placed(graph: Graph, index: int, refusal: Rule | None, subgraph: int | None, book: RuleBook) -> PlacedOp:
    op = graph.ops[index]
    name = f"CUSTOM:{op.custom}" if op.custom else op.name
    if refusal:
        return PlacedOp(
            index=index,
            op=name,
            mapped=False,
            certainty=refusal.certainty_text,
            reason=refusal.reason,
            rule=refusal.id,
            fix=refusal.fix,
        )
    if subgraph is None:
        return PlacedOp(
            index=index,
            op=name,
            mapped=False,
            certainty="documented",
            reason=book.reasons["subgraph"],
            rule="SECOND_SUBGRAPH",
            fix="Make the operators before it map, or compile with --multiple-subgraphs (each further subgraph costs "
            "a transfer to the chip and back).",
        )
    return PlacedOp(
        index=index, op=name, mapped=True, certainty=_mapped_certainty(graph, index, book), subgraph=subgraph
    )


def _mapped_certainty(graph: Graph, index: int, book: RuleBook) -> str:
    op = graph.ops[index]
    facts = book.operators[op.name]
    tensors = (graph.tensors[t] for t in (*op.inputs, *op.outputs) if t >= 0)
    largest = max((tensor.elements for tensor in tensors if not tensor.is_constant), default=0)
    # Size limits exist that nobody wrote down, so far beyond the largest seen is a guess even where documented.
    if facts.elements and largest > 4 * facts.elements:
        return "extrapolated"
    return "documented" if facts.documented else f"observed {facts.mapped} times"
