"""Rewrite an int8 flatbuffer into the dialect that the frozen Edge TPU compiler reads, without changing one output bit.

The compiler's TensorFlow Lite is of 2021: it refuses a file for an operator version that it does not know, even where
nothing newer is used, and it leaves on the CPU what it would map if written otherwise. Each step edits the object tree
of the schema (`ModelT`) and returns what it did; `verify_identical` runs both programs and refuses a difference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import QuantizationError
from edge.targets.edgetpu import rules
from edge.targets.edgetpu.normalize_edit import Editor
from edge.targets.edgetpu.normalize_shapes import fold_shapes
from edge.targets.edgetpu.normalize_versions import minimum_version
from edge.targets.litert import flatbuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One rewrite, as it stands in the manifest. `op` is the output tensor's name of the operator it is about."""

    kind: str
    op: str
    before: str
    after: str

    def to_json(self) -> dict[str, str]:
        """Return the change as JSON-compatible data."""
        return {"kind": self.kind, "op": self.op, "before": self.before, "after": self.after}


@dataclass(frozen=True, kw_only=True)
class Normalized:
    """The rewritten program and the list of changes; the same bytes as given where there are none."""

    program: bytes
    changes: tuple[Change, ...]


Step = Callable[[Editor], list[Change]]  # its __name__ is the kind of its changes


def normalize(program: bytes, *, inputs: Sequence[Sequence[Array]] = ()) -> Normalized:
    """Rewrite a quantized flatbuffer for the Edge TPU compiler.

    `inputs` are golden inputs, one array per graph input each; where given, outputs before and after are compared bit
    by bit, and the rewrites of TENTATIVE are tried too. Raises SourceError for no valid flatbuffer, QuantizationError
    where an output differs. Files with several subgraphs (control flow) only get their versions lowered.
    """
    result, changes = _apply(program, STEPS)
    if inputs:
        for step in TENTATIVE:
            tried, more = _apply(result, (step, *CLEANUP))
            if any(change.kind == step.__name__ for change in more) and not _differences(result, tried, inputs):
                result, changes = tried, [*changes, *more]
        verify_identical(program, result, inputs)
    return Normalized(program=result, changes=tuple(changes))


def _apply(program: bytes, steps: Sequence[Step]) -> tuple[bytes, list[Change]]:
    model = flatbuffer.load(program)
    editor = Editor(model)
    if len(model.subgraphs) > 1:
        steps = tuple(step for step in steps if step is lower_versions)
    changes = [change for step in steps for change in step(editor)]
    if not changes:
        return bytes(program), []
    result = flatbuffer.dump(model)
    flatbuffer.load(result)  # what we wrote must pass the check that we make of others
    return result, changes


def fix_batch(editor: Editor) -> list[Change]:
    """Declare dynamic dimensions as what the file's concrete shape says (1 for a batch)."""
    changes = []
    ends = {*editor.graph.inputs, *editor.graph.outputs}
    for index, tensor in enumerate(editor.graph.tensors):
        signature = [] if tensor.shapeSignature is None else [int(d) for d in tensor.shapeSignature]
        if -1 not in signature:
            continue
        tensor.shapeSignature = None
        if index in ends:
            before, after = str(signature), str([int(d) for d in tensor.shape])
            changes.append(Change(kind="fix_batch", op=flatbuffer.text(tensor.name), before=before, after=after))
    return changes


def fold_constant_shapes(editor: Editor) -> list[Change]:
    """Replace SHAPE and the integer arithmetic after it by constants; with static shapes all are known."""
    return [
        Change(kind="fold_constant_shapes", op=name, before=operator, after=f"constant {value}")
        for name, operator, value in fold_shapes(editor)
    ]


def grouped_to_depthwise(editor: Editor) -> list[Change]:
    """Write a CONV_2D whose filter is [C * m, kh, kw, 1] over C channels as DEPTHWISE_CONV_2D [1, kh, kw, C * m].

    Output channel o of a grouped convolution reads input channel o // m, which is the order of a depth multiplier m.
    Per-channel scales move from axis 0 to axis 3.
    """
    changes = []
    for op in editor.operators("CONV_2D", inputs=2):
        source, weights = editor.tensor(op.inputs[0]), editor.constant(op.inputs[1])
        depth = int(source.shape[-1])
        if weights is None or weights.shape[3] != 1 or depth == 1 or weights.shape[0] % depth:
            continue
        before = f"CONV_2D filter {list(weights.shape)}"
        rewritten = np.ascontiguousarray(weights.transpose(3, 1, 2, 0))
        quantization = editor.copy_quantization(op.inputs[1])
        if quantization.scale is not None and len(quantization.scale) > 1:
            quantization.quantizedDimension = 3
        inputs = list(op.inputs)
        inputs[1] = editor.add_constant(rewritten, like=op.inputs[1], quantization=quantization)
        op.inputs = inputs
        old = op.builtinOptions
        options = flatbuffer.schema().DepthwiseConv2DOptionsT()
        for field in ("padding", "strideW", "strideH", "fusedActivationFunction", "dilationWFactor", "dilationHFactor"):
            setattr(options, field, getattr(old, field))
        options.depthMultiplier = weights.shape[0] // depth
        editor.become(op, "DEPTHWISE_CONV_2D", options)
        after = f"DEPTHWISE_CONV_2D filter {list(rewritten.shape)}"
        changes.append(Change(kind="grouped_to_depthwise", op=editor.label(op), before=before, after=after))
    return changes


def grouped_to_convolutions(editor: Editor) -> list[Change]:
    """Write any other grouped CONV_2D as SPLIT over channels, one CONV_2D per group, CONCATENATION."""
    changes = []
    for op in editor.operators("CONV_2D", inputs=2):
        source, weights = editor.tensor(op.inputs[0]), editor.constant(op.inputs[1])
        depth = int(source.shape[-1])
        if weights is None or weights.shape[3] == depth or depth % weights.shape[3]:
            continue
        groups = depth // weights.shape[3]
        if weights.shape[0] % groups:
            continue
        before = f"CONV_2D with {groups} groups"
        _split_groups(editor, op, groups)
        after = f"SPLIT, {groups} CONV_2D, CONCATENATION"
        changes.append(Change(kind="grouped_to_convolutions", op=editor.label(op), before=before, after=after))
    return changes


def _split_groups(editor: Editor, op: Any, groups: int) -> None:
    module = flatbuffer.schema()
    source, target = op.inputs[0], op.outputs[0]
    weights = editor.constant(op.inputs[1])
    assert weights is not None  # the caller looked
    part, made = weights.shape[3], weights.shape[0] // groups
    pieces = [editor.add_activation([*editor.shape(source)[:-1], part], like=source) for _ in range(groups)]
    results = [editor.add_activation([*editor.shape(target)[:-1], made], like=target) for _ in range(groups)]
    split = module.SplitOptionsT()
    split.numSplits = groups
    axis = editor.add_constant(np.array(3, np.int32), name="axis")
    editor.insert_before(op, "SPLIT", [axis, source], pieces, split)
    for group in range(groups):
        inputs = [pieces[group], *(editor.channels(t, group * made, made) for t in op.inputs[1:])]
        editor.insert_before(op, "CONV_2D", inputs, [results[group]], op.builtinOptions)
    concatenation = module.ConcatenationOptionsT()
    concatenation.axis = 3
    op.inputs = results
    editor.become(op, "CONCATENATION", concatenation)


def split_to_slices(editor: Editor) -> list[Change]:
    """Write a SPLIT over the first axis and UNPACK, which stay on the CPU, as STRIDED_SLICEs, which are mapped."""
    changes = []
    for op in editor.operators("SPLIT", inputs=2):
        axis = editor.constant(op.inputs[0])
        shape = editor.shape(op.inputs[1])
        if axis is None or len(op.outputs) < 2 or len(shape) < 2 or int(axis.reshape(-1)[0]) % len(shape) != 0:
            continue
        _slices(editor, op, op.inputs[1], 0, list(op.outputs))
        changes.append(_sliced(editor, op, f"SPLIT axis 0 into {len(op.outputs)}"))
    for op in editor.operators("UNPACK"):
        shape = editor.shape(op.inputs[0])
        axis_ = op.builtinOptions.axis % max(1, len(shape))
        parts = [1 if i == axis_ else d for i, d in enumerate(shape)]
        if len(shape) < 2 or editor.dtype(op.inputs[0]) not in ("int8", "uint8"):
            continue
        pieces = [editor.add_activation(parts, like=t) for t in op.outputs]
        _slices(editor, op, op.inputs[0], axis_, pieces)
        for piece, output in zip(pieces, op.outputs, strict=True):
            options, inputs = _reshape(editor, piece, editor.shape(output))
            editor.insert_before(op, "RESHAPE", inputs, [output], options)
        changes.append(_sliced(editor, op, f"UNPACK axis {axis_} into {len(op.outputs)}"))
    return changes


def _sliced(editor: Editor, op: Any, before: str) -> Change:
    editor.remove(op)
    return Change(kind="split_to_slices", op=editor.label(op), before=before, after=f"{len(op.outputs)} STRIDED_SLICE")


def _slices(editor: Editor, op: Any, source: int, axis: int, outputs: list[int]) -> None:
    shape = editor.shape(source)
    step = shape[axis] // len(outputs)
    for number, output in enumerate(outputs):
        begin, end = [0] * len(shape), list(shape)
        begin[axis], end[axis] = number * step, (number + 1) * step
        arguments = [
            editor.add_constant(np.array(values, np.int32), name=name)
            for name, values in (("begin", begin), ("end", end), ("strides", [1] * len(shape)))
        ]
        options = flatbuffer.schema().StridedSliceOptionsT()
        editor.insert_before(op, "STRIDED_SLICE", [source, *arguments], [output], options)


def to_reshape(editor: Editor) -> list[Change]:
    """Write EXPAND_DIMS and SQUEEZE, which need newer runtimes, as RESHAPE to the same shape."""
    changes = []
    for name in ("EXPAND_DIMS", "SQUEEZE"):
        for op in editor.operators(name, options=False):
            shape = editor.shape(op.outputs[0])
            _become_reshape(editor, op, op.inputs[0], shape)
            change = Change(kind="to_reshape", op=editor.label(op), before=name, after=f"RESHAPE {shape}")
            changes.append(change)
    return changes


def _become_reshape(editor: Editor, op: Any, source: int, shape: list[int]) -> None:
    options, op.inputs = _reshape(editor, source, shape)
    editor.become(op, "RESHAPE", options)


def _reshape(editor: Editor, source: int, shape: list[int]) -> tuple[Any, list[int]]:
    options = flatbuffer.schema().ReshapeOptionsT()
    options.newShape = shape
    return options, [source, editor.add_constant(np.array(shape, np.int32), name="shape")]


def matmul_to_fully_connected(editor: Editor) -> list[Change]:
    """Write BATCH_MATMUL by one constant matrix, which stays on the CPU, as FULLY_CONNECTED and RESHAPE."""
    changes = []
    for op in editor.operators("BATCH_MATMUL", inputs=2):
        matrix = editor.constant(op.inputs[1])
        source, target = editor.tensor(op.inputs[0]), op.outputs[0]
        quantization = editor.tensor(op.inputs[1]).quantization
        one_scale = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
        if matrix is None or matrix.dtype != np.int8 or not one_scale or op.builtinOptions.adjX:
            continue
        if int(np.prod(matrix.shape[:-2], dtype=np.int64)) != 1 or not len(source.shape):
            continue
        flat = matrix.reshape(matrix.shape[-2:])
        weights = np.ascontiguousarray(flat if op.builtinOptions.adjY else flat.T)
        filter_ = editor.add_constant(weights, like=op.inputs[1], quantization=editor.copy_quantization(op.inputs[1]))
        rows = int(np.prod(editor.shape(target)[:-1], dtype=np.int64))
        flat_output = editor.add_activation([rows, weights.shape[0]], like=target)
        options = flatbuffer.schema().FullyConnectedOptionsT()
        editor.insert_before(op, "FULLY_CONNECTED", [op.inputs[0], filter_, -1], [flat_output], options)
        _become_reshape(editor, op, flat_output, editor.shape(target))
        before, after = f"BATCH_MATMUL {list(matrix.shape)}", f"FULLY_CONNECTED {list(weights.shape)}, RESHAPE"
        changes.append(Change(kind="matmul_to_fully_connected", op=editor.label(op), before=before, after=after))
    return changes


def dense_to_known(editor: Editor) -> list[Change]:
    """Write newer forms of FULLY_CONNECTED in the form of version 4: three inputs, one scale, a 2-D result.

    Two inputs get an omitted bias; a result that keeps its dimensions is made flat and reshaped.
    """
    changes = []
    for op in editor.operators("FULLY_CONNECTED", inputs=2):
        before = _dense_form(editor, op)
        if not before:
            continue
        if len(op.inputs) == 2:
            op.inputs = [*op.inputs, -1]
        kept = bool(op.builtinOptions.keepNumDims)
        after = _flatten_dense(editor, op) if kept else "FULLY_CONNECTED with an omitted bias"
        changes.append(Change(kind="dense_to_known", op=editor.label(op), before=before, after=after))
    return changes


def per_channel_dense(editor: Editor) -> list[Change]:
    """Write a FULLY_CONNECTED with a scale per output as a 1x1 CONV_2D: the compiler's kernel reads one scale only."""
    changes = []
    for op in editor.operators("FULLY_CONNECTED", inputs=2):
        weights = editor.constant(op.inputs[1])
        if editor.scales(op.inputs[1]) < 2 or weights is None or weights.ndim != 2 or op.builtinOptions.weightsFormat:
            continue
        before = f"FULLY_CONNECTED with {len(weights)} scales"
        after = _dense_to_convolution(editor, op, weights)
        changes.append(Change(kind="per_channel_dense", op=editor.label(op), before=before, after=after))
    return changes


def _dense_form(editor: Editor, op: Any) -> str:
    news = {
        "two inputs": len(op.inputs) == 2,
        "kept dimensions": bool(op.builtinOptions.keepNumDims) and len(editor.shape(op.outputs[0])) != 2,
    }
    return "FULLY_CONNECTED with " + ", ".join(k for k, v in news.items() if v) if any(news.values()) else ""


def _flatten_dense(editor: Editor, op: Any) -> str:
    shape = editor.shape(op.outputs[0])
    flat = editor.add_activation([int(np.prod(shape[:-1], dtype=np.int64)), shape[-1]], like=op.outputs[0])
    options = copy.copy(op.builtinOptions)
    options.keepNumDims = False
    editor.insert_before(op, "FULLY_CONNECTED", list(op.inputs), [flat], options)
    _become_reshape(editor, op, flat, shape)
    return "FULLY_CONNECTED, RESHAPE"


def _dense_to_convolution(editor: Editor, op: Any, weights: Array) -> str:
    outputs, depth = weights.shape
    source, filter_, bias = op.inputs[:3]
    elements = int(np.prod(editor.shape(source), dtype=np.int64))
    rows = elements // depth
    image = editor.add_activation([1, rows, 1, depth], like=source)
    result = editor.add_activation([1, rows, 1, outputs], like=op.outputs[0])
    options, inputs = _reshape(editor, source, [1, rows, 1, depth])
    editor.insert_before(op, "RESHAPE", inputs, [image], options)
    kernel = editor.add_constant(
        weights.reshape(outputs, 1, 1, depth), like=filter_, quantization=editor.copy_quantization(filter_)
    )
    convolution = flatbuffer.schema().Conv2DOptionsT()
    convolution.strideW = convolution.strideH = 1
    convolution.dilationWFactor = convolution.dilationHFactor = 1
    convolution.fusedActivationFunction = op.builtinOptions.fusedActivationFunction
    if bias < 0:
        bias = editor.add_constant(np.zeros(outputs, np.int32), name="bias", quantization=_bias(editor, op))
    editor.insert_before(op, "CONV_2D", [image, kernel, bias], [result], convolution)
    _become_reshape(editor, op, result, editor.shape(op.outputs[0]))
    return "RESHAPE, CONV_2D 1x1, RESHAPE"


def _bias(editor: Editor, op: Any) -> Any:
    quantization = editor.copy_quantization(op.inputs[1])
    scale = np.asarray(editor.tensor(op.inputs[0]).quantization.scale, np.float32)[0]
    quantization.scale = np.asarray(quantization.scale, np.float32) * scale
    quantization.zeroPoint = np.zeros(len(quantization.scale), np.int64)
    quantization.min = quantization.max = None
    quantization.quantizedDimension = 0
    return quantization


def merge_reshapes(editor: Editor) -> list[Change]:
    """Let a RESHAPE of a RESHAPE read the first one's input; `prune` removes the first where nobody else reads it."""
    changes = []
    made = {int(op.outputs[0]): op for op in editor.operators("RESHAPE", options=False)}
    for op in made.values():
        first = made.get(int(op.inputs[0]))
        if first is None or not editor.same_quantization(first.inputs[0], op.outputs[0]):
            continue
        op.inputs = [int(first.inputs[0]), *op.inputs[1:]]
        changes.append(Change(kind="merge_reshapes", op=editor.label(op), before="RESHAPE of RESHAPE", after="RESHAPE"))
    return changes


def drop_idle_quantize(editor: Editor) -> list[Change]:
    """Remove QUANTIZE operators between two tensors of the same dtype, scale and zero point."""
    changes = []
    for op in editor.operators("QUANTIZE", options=False):
        source, target = op.inputs[0], op.outputs[0]
        if target in editor.graph.outputs or not editor.same_quantization(source, target):
            continue
        changes.append(Change(kind="drop_idle_quantize", op=editor.label(op), before="QUANTIZE", after="nothing"))
        editor.replace_uses(target, source)
        editor.remove(op)
    return changes


def lower_versions(editor: Editor) -> list[Change]:
    """Lower versions that the compiler does not know to the lowest that has all the features the operator uses."""
    operators = rules.load().operators
    lowered: dict[tuple[str, int, int], str] = {}
    for number, graph in enumerate(flatbuffer.graphs(editor.model)):
        targets = editor.model.subgraphs[number].operators
        for op in graph.ops:
            needed = minimum_version(graph, op)
            known = operators[op.name].version if op.name in operators else 1
            if needed is not None and needed < op.version > known:
                lowered.setdefault((op.name, op.version, needed), graph.tensors[op.outputs[0]].name)
                editor.set_version(targets[op.index], needed)
    return [
        Change(kind="lower_versions", op=name, before=f"{operator} version {before}", after=f"version {after}")
        for (operator, before, after), name in lowered.items()
    ]


def prune(editor: Editor) -> list[Change]:
    """Remove operators whose result nobody reads, then tensors, buffers and operator codes that nothing names."""
    removed = editor.remove_dead_operators()
    changes = [Change(kind="prune", op=label, before=name, after="nothing") for name, label in removed]
    editor.compact()
    return changes


CLEANUP: tuple[Step, ...] = (merge_reshapes, prune, lower_versions)
STEPS: tuple[Step, ...] = (
    fix_batch,
    fold_constant_shapes,
    grouped_to_depthwise,
    grouped_to_convolutions,
    split_to_slices,
    to_reshape,
    dense_to_known,
    drop_idle_quantize,
    *CLEANUP,
)
# Equal in exact arithmetic, but the kernels round in different places: kept only where the golden vectors show no
# difference. BATCH_MATMUL and FULLY_CONNECTED differ in about one value of 200 by one step.
TENTATIVE: tuple[Step, ...] = (matmul_to_fully_connected, per_channel_dense)


def verify_identical(before: bytes, after: bytes, inputs: Sequence[Sequence[Array]]) -> None:
    """Run both programs on each set of inputs, in reference and in optimized kernels, and compare all output bits.

    Raises QuantizationError that names the output and the largest difference.
    """
    found = _differences(before, after, inputs)
    if found:
        raise QuantizationError(
            f"The rewrite for the Edge TPU changes {found[0]}; it must not change a bit.",
            hint="Build without the rewrite and report the model: this is a fault of edgekit.",
        )


def _differences(before: bytes, after: bytes, inputs: Sequence[Sequence[Array]]) -> list[str]:
    found = []
    for kernels in ("reference", "xnnpack"):
        first, second = _interpreter(before, kernels), _interpreter(after, kernels)
        for number, values in enumerate(inputs):
            for name, a, b in _compare(first, second, values):
                if a.shape != b.shape or a.dtype != b.dtype or a.tobytes() != b.tobytes():
                    where = f"output {name!r} on golden input {number} with {kernels} kernels"
                    found.append(f"{where}: {_difference(a, b)}")
    return found


def _compare(first: Any, second: Any, values: Sequence[Array]) -> list[tuple[str, Array, Array]]:
    results = [_invoke(interpreter, values) for interpreter in (first, second)]
    if len(results[0]) != len(results[1]):
        raise QuantizationError(f"The rewrite has {len(results[1])} outputs, the program {len(results[0])}.")
    names = [str(detail["name"]) for detail in first.get_output_details()]
    return list(zip(names, *results, strict=True))


def _difference(a: Array, b: Array) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    worst = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
    return f"{int(np.sum(a != b))} of {a.size} values differ, by up to {worst:g}"


def _interpreter(program: bytes, kernels: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind: Mapping[str, Any] = {"reference": OpResolverType.BUILTIN_REF, "xnnpack": OpResolverType.AUTO}
    try:
        interpreter = Interpreter(model_content=program, experimental_op_resolver_type=kind[kernels], num_threads=1)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise QuantizationError(f"The program does not load with {kernels} kernels: {error}.") from error
    return interpreter


def _invoke(interpreter: Any, values: Sequence[Array]) -> list[Array]:
    details = interpreter.get_input_details()
    if len(details) != len(values):
        raise QuantizationError(f"{len(values)} golden inputs for a program with {len(details)}.")
    for detail, value in zip(details, values, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(d["index"])) for d in interpreter.get_output_details()]
