"""Compile a model; where the compiler gives up without a reason, find the operator that breaks it.

"Internal compiler error" names nothing. The compiler's --intermediate_tensors leaves everything behind some tensors to
the CPU, so the operators in execution order are cut by bisection: the longest beginning that compiles, and the operator
after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge.errors import StageTimeoutError
from edge.findings import Finding
from edge.targets.edgetpu import compiler
from edge.targets.edgetpu.compiler import Compilation, Compiler, Options
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph

# Called with the tensors of a cut; tells whether the model compiles up to there.
Attempt = Callable[[tuple[str, ...]], bool]


@dataclass(frozen=True, kw_only=True)
class Culprit:
    """The smallest failing cut: compiling fails as soon as operator `index` is part of it.

    `tensors` are the last cut that compiles (empty: not even the first operator does); `runs` counts compilations.
    """

    index: int
    operator: str
    output: str
    tensors: tuple[str, ...]
    runs: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of compiling a model. `retried`: the first run failed internally and the second did not."""

    compilation: Compilation
    retried: bool = False
    culprit: Culprit | None = None
    findings: tuple[Finding, ...] = ()


_RETRIED = Finding(
    rule="EDGETPU_RETRIED",
    severity="warning",
    message="The compiler gave up with an internal error and then compiled the same model.",
)


def cut_after(graph: Graph, index: int) -> tuple[str, ...]:
    """Return the names of the tensors that operators 0 to `index` compute and that something later needs."""
    made = {t for op in graph.ops[: index + 1] for t in op.outputs}
    needed = {t for op in graph.ops[index + 1 :] for t in op.inputs} | set(graph.outputs)
    return tuple(graph.tensors[t].name for t in sorted(made & needed))


def bisect(graph: Graph, attempt: Attempt) -> Culprit:
    """Return the smallest failing cut of a graph that fails as a whole, in about log2(operators) attempts.

    A cut through a tensor whose name the command line cannot carry (empty, or with a comma) is left out.
    """
    cuts = {i: cut_after(graph, i) for i in range(len(graph.ops) - 1)}
    usable = [i for i, names in cuts.items() if names and all(name and "," not in name for name in names)]
    ends = [-1, *usable, len(graph.ops) - 1]
    low, high, runs = 0, len(ends) - 1, 0
    while high - low > 1:
        middle = (low + high) // 2
        runs += 1
        if attempt(cuts[ends[middle]]):
            low = middle
        else:
            high = middle
    op = graph.ops[ends[high]]
    return Culprit(
        index=op.index,
        operator=op.custom or op.name,
        output=graph.tensors[op.outputs[0]].name if op.outputs else "",
        tensors=cuts[ends[low]] if low else (),
        runs=runs,
    )


def _finding(culprit: Culprit, total: int) -> Finding:
    if culprit.tensors:
        fix = f"Compile up to there with --intermediate-tensors {','.join(culprit.tensors)}, or replace the operator."
    else:
        fix = "Replace the operator; nothing of this model compiles with it."
    return Finding(
        rule="EDGETPU_INTERNAL_ERROR",
        severity="error",
        op=f"{culprit.index}: {culprit.operator}",
        message=f"The compiler fails as soon as operator {culprit.index} of {total} ({culprit.operator}, which "
        f"computes {culprit.output!r}) is part of what it compiles; found in {culprit.runs} further runs.",
        fix=fix,
    )


def compile_models(tool: Compiler, models: Sequence[Path], out_dir: Path, options: Options) -> Result:
    """Compile, retry once after an internal error, and then look for the operator that causes it.

    `models` share the chip's cache in order; only a single model without a cut of the user's is bisected. A compilation
    that failed is a Result whose `compilation.log.succeeded` is False.
    Raises StageTimeoutError, ToolError, ConfigError.
    """
    if options.intermediate_tensors:
        for model in models:
            compiler.check_names(model, options.intermediate_tensors)
    first = compiler.run(tool, models, out_dir, options)
    if not first.internal_error:
        return Result(compilation=first)
    second = compiler.run(tool, models, out_dir, options)
    if second.log.succeeded:
        return Result(compilation=second, retried=True, findings=(_RETRIED,))
    if not second.internal_error or len(models) > 1 or options.intermediate_tensors or options.num_segments > 1:
        return Result(compilation=second)
    graph = flatbuffer.graph(flatbuffer.load(models[0]))
    culprit = bisect(graph, lambda tensors: _compiles(tool, models[0], options, tensors))
    return Result(compilation=second, culprit=culprit, findings=(_finding(culprit, len(graph.ops)),))


def _compiles(tool: Compiler, model: Path, options: Options, tensors: tuple[str, ...]) -> bool:
    cut = replace(options, intermediate_tensors=tensors, search_delegate=False)
    with tempfile.TemporaryDirectory(prefix="edgekit-edgetpu-") as trial:
        try:
            return compiler.run(tool, [model], Path(trial), cut).log.succeeded
        except StageTimeoutError:
            return False
