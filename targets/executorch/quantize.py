"""From a float ExportedProgram to a quantized one, by PT2E, with ranges of edgekit's own estimators."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edge.calibration import ranges as estimators
from edge.calibration import recipe as recipes
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import REFINEMENTS, Recipe
from edge.errors import DataError, EdgekitError, QuantizationError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.signature import Quantization, Signature, TensorSpec
from edge.targets import torch_fake_quant
from edge.targets.executorch import bias, calibrate, carrier, constants, equalize, learned, readers, simplify, steps

if TYPE_CHECKING:
    from edge.calibration.data import Dataset
    from edge.targets.executorch.delegates import Accept, Delegate, Options

_QUANTIZE, _DEQUANTIZE = "quantize_per_tensor", "dequantize_per_tensor"
_MOVERS = frozenset(f"aten.{op}.default" for op in ("permute", "clone", "contiguous", "view", "reshape", "unsqueeze"))
# More that move values, which an end of the program does not look through.
_MOVES = frozenset(
    f"aten.{op}"
    for op in ("transpose", "squeeze", "slice", "select", "expand", "flatten", "split", "split_with_sizes", "chunk")
)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A program in the recipe's number formats, still an ExportedProgram, with the signature that it has now."""

    program: Any
    signature: Signature
    ranges: Ranges | None = None
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def quantize(
    program: Any,
    signature: Signature,
    recipe: Recipe,
    delegate: Delegate,
    options: Options,
    samples: Dataset | None,
    progress: Progress = no_progress,
) -> Quantized:
    """Apply a recipe to a float ExportedProgram. Raises QuantizationError, DataError."""
    _refuse(recipe, delegate, samples)
    if torch_fake_quant.marks(program.graph):
        if recipe.scheme == "int8":
            return _learned(program, signature, recipe)
        graph, dropped = learned.without(program, recipe)
        made = quantize(_exported(graph, program, signature), signature, recipe, delegate, options, samples, progress)
        return replace(made, findings=(*made.findings, dropped))
    if recipe.scheme == "float32" or (recipe.scheme == "float16" and not delegate.half):
        # Delegates other than XNNPACK store and compute in float16 by an option of their own.
        return Quantized(program=program, signature=signature)
    if recipe.scheme == "float16":
        return Quantized(program=_half(program, signature), signature=signature)
    return _pt2e(program, signature, recipe, delegate, options, samples, progress)


def folded(program: Any, signature: Signature) -> Any:
    """Return the ExportedProgram with what it computes of constants alone as constants, and simplified.

    Raises QuantizationError.
    """
    graph = constants.fold(program)
    if graph is None and not simplify.needed(program.graph):
        return program
    return _exported(simplify.apply(graph or program.module(check_guards=False)), program, signature)


def floated(program: Any) -> Any:
    """Return the ExportedProgram in float: itself, or without the fake quantization that it carries."""
    if not torch_fake_quant.marks(program.graph):
        return program
    return _exported(learned.without(program, recipes.named("float32"))[0], program, carrier.unnamed(program))


def _learned(program: Any, signature: Signature, recipe: Recipe) -> Quantized:
    graph, kept = learned.paired(program, recipe)
    simplify.quantize_pads(constants.separate(graph))
    readers.separate(graph)
    made, findings = _ends(graph, signature, recipe)
    return Quantized(program=_exported(graph, program, signature), signature=made, findings=(*findings, kept))


def _refuse(recipe: Recipe, delegate: Delegate, samples: Dataset | None) -> None:
    kind = f"{recipe.scheme}-4" if recipe.weight_bits == 4 else recipe.scheme
    if kind not in delegate.recipes:
        raise QuantizationError(
            f"The ExecuTorch delegate {delegate.name} does not take the recipe {kind}; "
            f"accepted: {', '.join(delegate.recipes)}.",
            hint="Choose one of these, or another delegate in [options.executorch] of the target.",
        )
    if odd_ones := recipe.refinements - REFINEMENTS["executorch"]:
        raise QuantizationError(f"ExecuTorch programs are not {', '.join(sorted(odd_ones))}: {recipe.name}.")
    if recipe.weights != "minmax" and delegate.name != "xnnpack":
        raise QuantizationError(f"The quantizer of the delegate {delegate.name} chooses its weight steps itself.")
    if recipe.overrides and not delegate.overrides:
        raise QuantizationError(f"The quantizer of the delegate {delegate.name} takes no overrides of operators.")
    if odd := [o for o in recipe.overrides if o.scheme != "float32"]:
        raise QuantizationError(f"ExecuTorch keeps operators float by override, not {odd[0].scheme}.")
    if recipe.needs_calibration and samples is None:
        raise DataError(
            f"The recipe {recipe.name} needs calibration data and none was given.",
            hint="Give representative samples with --calibration, or use the recipe dynamic.",
        )


def _half(program: Any, signature: Signature) -> Any:
    """Return the program with float16 weights and arithmetic; its ends stay float32."""
    import torch

    inner = copy.deepcopy(program).module(check_guards=False).half()

    class Half(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            results = self.inner(*(t.half() if t.dtype == torch.float32 else t for t in tensors))
            # A lone tensor would be taken apart along its batch, a dictionary gives its keys.
            leaves = torch.utils._pytree.tree_leaves(results)
            return tuple(r.float() if r.dtype == torch.float16 else r for r in leaves)

    return _exported(Half(), program, signature)


def _exported(module: Any, like: Any, signature: Signature) -> Any:
    """Export a graph again with the shapes, fixed and dynamic, of the program that it was made of."""
    import torch

    examples = tuple(_example(v, t) for v, t in zip(carrier.user_inputs(like), signature.inputs, strict=True))
    try:
        with torch.no_grad():
            return torch.export.export(module, examples, dynamic_shapes=_dynamic(like, module))
    except Exception as error:
        raise QuantizationError(f"The quantized graph cannot be exported: {_first(error)}") from error


def _example(value: Any, spec: TensorSpec) -> Any:
    import torch

    return torch.zeros(carrier.example_sizes(value), dtype=getattr(torch, spec.dtype))


def _dynamic(program: Any, module: Any) -> Any:
    """Return the dynamic dimensions of a program's inputs as torch.export takes them, None where all are fixed."""
    import torch

    limits = carrier.limits(program)
    found = []
    for value in carrier.user_inputs(program):
        dims = {}
        for axis, size in enumerate(value.shape):
            if carrier.size_of(size) is None:
                least, most = carrier.span_of(size, limits)
                dims[axis] = torch.export.Dim.AUTO(min=least, max=most)
        found.append(dims)
    if not any(found):
        return None
    # A module of our own takes *tensors; a graph module takes them one by one.
    return tuple(found) if hasattr(module, "graph") else (tuple(found),)


def _pt2e(
    program: Any,
    signature: Signature,
    recipe: Recipe,
    delegate: Delegate,
    options: Options,
    samples: Dataset | None,
    progress: Progress,
) -> Quantized:
    matched: set[int] = set()
    made = converted(program, signature, recipe, delegate, options, samples, progress, matched=matched)
    graph = made.graph
    _refuse_unchanged(graph, recipe)
    details: dict[str, Any] = {}
    if made.reference is not None:
        details["operators_left_float"] = len(_left_float(made.reference))
    if made.channels_equalized is not None:
        details |= {"channels_equalized": made.channels_equalized, "calibration_passes": 2}
    if recipe.bias_correction and samples is not None:
        details["bias_correction"] = bias.correct(made.reference, graph, signature, samples, progress)
    readers.separate(graph)
    signature, findings = _ends(graph, signature, recipe)
    return Quantized(
        program=_exported(graph, program, signature),
        signature=signature,
        ranges=made.ranges,
        findings=(*findings, *_unused(recipe, matched)),
        details=details,
    )


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A quantized graph with float ends; `reference` is the one that it was made of, batch normalisation folded."""

    graph: Any
    reference: Any
    ranges: Ranges | None
    channels_equalized: int | None = None


def converted(
    program: Any,
    signature: Signature,
    recipe: Recipe,
    delegate: Delegate,
    options: Options,
    samples: Dataset | None,
    progress: Progress,
    *,
    matched: set[int] | None = None,
) -> Converted:
    """Return the quantized graph of a float program, before its ends are made integer.

    `matched` receives the numbers of the overrides that speak of some operator. Raises QuantizationError, DataError.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    assert delegate.quantizer is not None
    estimator = estimators.for_recipe(recipe)
    quantizer = delegate.quantizer(options, recipe, _accept(recipe, set() if matched is None else matched))
    ranges = None
    try:
        # Preparing folds batch normalisation into weights: those of the float program stay as they are.
        own = constants.separate(copy.deepcopy(program).module(check_guards=False))
        graph = prepare_pt2e(own, quantizer)
        channels = None
        if recipe.equalize and samples is not None:
            progress("equalizing channels", None)
            channels = equalize.apply(graph, signature, recipe, samples)
        if recipe.needs_calibration and samples is not None:
            calibrate.install(graph, estimator)
            ranges = calibrate.collect(graph, signature, samples, estimator, progress=progress)
            steps.hold(graph)
        else:
            _see_once(graph, program, signature)
        progress("quantizing", None)
        reference = copy.deepcopy(graph) if recipe.needs_calibration else None
        made = simplify.quantize_pads(constants.without_unused(convert_pt2e(graph)))
        return Converted(graph=made, reference=reference, ranges=ranges, channels_equalized=channels)
    except EdgekitError:
        raise
    except Exception as error:  # each quantizer has its own assertions
        raise QuantizationError(
            f"The quantizer of {delegate.name} failed: {type(error).__name__}: {_first(error)}"
        ) from error


def _see_once(graph: Any, program: Any, signature: Signature) -> None:
    """Let the observers of weights see them."""
    import torch

    with torch.no_grad():
        graph(*(_example(v, t) for v, t in zip(carrier.user_inputs(program), signature.inputs, strict=True)))


def _accept(recipe: Recipe, matched: set[int]) -> Accept:
    """Return the test that keeps overridden operators out: by operator (`conv2d`) and by the name of its node."""

    def accept(node: Any) -> bool:
        operator = str(node.target).removeprefix("aten.").split(".")[0]
        hits = [
            i
            for i, o in enumerate(recipe.overrides)
            if o.operator in ("*", operator) and re.fullmatch(o.tensor, node.name)
        ]
        matched.update(hits)
        return not hits

    return accept


def _unused(recipe: Recipe, matched: set[int]) -> list[Finding]:
    return [
        Finding(
            rule="OVERRIDE_UNUSED",
            severity="warning",
            message=f"The override for operator {o.operator!r} and tensor {o.tensor!r} matches no operator.",
            fix="Operators are named as in torch (conv2d, linear), tensors as the nodes of the exported graph.",
        )
        for i, o in enumerate(recipe.overrides)
        if i not in matched
    ]


def _refuse_unchanged(graph: Any, recipe: Recipe) -> None:
    if not any("quantize" in str(n.target) for n in graph.graph.nodes if n.op == "call_function"):
        raise QuantizationError(
            f"The recipe {recipe.name} changed nothing: no operator of the model has such a form.",
            hint="Use the recipe float32, or another one that covers the model's operators.",
        )


# --- integer ends ------------------------------------------------------------------------------------------------


def _ends(graph: Any, signature: Signature, recipe: Recipe) -> tuple[Signature, list[Finding]]:
    """Make the ends of an int8 program integer where the recipe wants that; an end that cannot be stays float."""
    if recipe.scheme != "int8" or recipe.io == "float32":
        return signature, []
    if recipe.io == "uint8":
        raise QuantizationError(
            "ExecuTorch has int8 or float32 ends, not uint8.", hint="Use --io int8 or --io float32."
        )
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    inputs = [_input_end(graph, n, t) for n, t in zip(placeholders, signature.inputs, strict=True)]
    outputs = _output_ends(graph, signature.outputs)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    made = signature.with_tensors(tuple(inputs), tuple(outputs))
    return made, [_kept_float(t) for t in (*inputs, *outputs) if t.dtype == "float32"]


def _kept_float(spec: TensorSpec) -> Finding:
    return Finding(
        rule="END_KEPT_FLOAT",
        severity="info",
        op=spec.name,
        message=f"{spec.name!r} stays float32: the operator at this end of the program is not quantized.",
    )


def _is(node: Any, name: str) -> bool:
    return node.op == "call_function" and f"quantized_decomposed.{name}.default" in str(node.target)


def _parameters(arguments: Sequence[Any]) -> Quantization:
    return Quantization(scale=(float(arguments[0]),), zero_point=(int(arguments[1]),))


def _input_end(graph: Any, node: Any, spec: TensorSpec) -> TensorSpec:
    last = node
    # What only moves values (a channel-last input is permuted) does so with integers as well.
    users = _readers(last)
    while len(users) == 1 and str(users[0].target) in _MOVERS:
        last = users[0]
        users = _readers(last)
    same = {tuple(u.args[1:]) for u in users}
    if not users or not all(_is(u, _QUANTIZE) for u in users) or len(same) != 1:
        return spec
    for user in users:
        user.replace_all_uses_with(last)
        graph.graph.erase_node(user)
    return replace(spec, dtype="int8", quantization=_parameters(next(iter(same))))


def _left_float(prepared: Any) -> list[str]:
    """Return the operators of a prepared graph that its quantizer left float; what only moves values is none."""
    moves = {name.removesuffix(".default") for name in _MOVERS} | _MOVES
    return [
        node.name
        for node in prepared.graph.nodes
        if node.op == "call_function"
        and str(node.target).startswith("aten.")
        and str(node.target).rpartition(".")[0] not in moves
        and getattr(getattr(node.meta.get("val"), "dtype", None), "is_floating_point", False)
        and not getattr(node.meta.get("quantization_annotation"), "_annotated", False)
    ]


def _readers(node: Any) -> list[Any]:
    """Return the users of a node's values; what only asks for its sizes takes any dtype."""
    return [u for u in node.users if "sym_size" not in str(u.target)]


def _output_ends(graph: Any, specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    last = next(n for n in graph.graph.nodes if n.op == "output")
    values, made = list(last.args[0]), []
    for i, (value, spec) in enumerate(zip(values, specs, strict=True)):
        if not _is(value, _DEQUANTIZE):
            made.append(spec)
            continue
        values[i] = value.args[0]
        made.append(replace(spec, dtype="int8", quantization=_parameters(value.args[1:])))
    last.args = (type(last.args[0])(values),)
    return made


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:400]
