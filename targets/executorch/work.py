"""What each operator of a `.pte` makes a CPU do, for targets/roofline.py: XNNPACK's subgraphs and portable kernels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge import codec
from edge.targets import roofline
from edge.targets.base import Target
from edge.targets.executorch import program, xnnpack_graph
from edge.targets.executorch.lower import CONTRACT_METHOD
from edge.targets.executorch.xnnpack_graph import DelegateGraph, Node, Value
from edge.targets.roofline import Arithmetic, Kernel, Work

_XNNPACK = "XnnpackBackend"
# Nothing is computed, and XNNPACK lets both tensors share their memory.
_FREE = frozenset(("StaticReshape",))
# XNNPACK makes the bounds of a clamp those of the operator before it.
_TAKES_CLAMP = frozenset(
    ("Add", "AvgPooling2d", "Clamp", "Conv2d", "ConvTranspose2d", "DepthwiseConv2d", "Div", "FullyConnected",
     "MaxPooling2d", "Multiply", "Subtract")
)  # fmt: skip
# By XNNPACK's type of the activations: the arithmetic, and whether latencies of it were published.
_ARITHMETIC: Mapping[str, tuple[Arithmetic, bool]] = {
    "fp32": ("float32", True),
    "qint8": ("int8", True),
    "quint8": ("uint8", True),
    "qdint8": ("int8", False),
    "qpint8": ("int8", False),
}
# Portable kernels whose cost grows with more than their tensors' size: of these plain loops no published latency tells.
_HEAVY = re.compile(
    r"(b?addb?)?b?mm|conv.*|linear|matmul|.*lstm.*|.*gru.*|.*attention.*|cumsum|sort|topk|.*fft.*|grid_.*"
)
_KNOWN = ("aten", "dim_order_ops", "quantized_decomposed")
# Portable kernels that change the view of a tensor, or write a size.
_NOTHING = ("aten::sym_size", "executorch_prim::", "aten::view", "aten::alias")
# Cycles that a portable kernel takes for an element of its largest tensor: the 35 of the network `transformer` of
# benchmarks/pte_prediction.py take 584,000 instructions for 29,312 elements on the emulated A53; one in a cycle here.
_PORTABLE_CYCLES = 20


def predicted_latency(path: Path, target: Target | None) -> Mapping[str, Any]:
    """Return `latency_ms`, intervals by number of threads, or `latency_note`; nothing for a target without a roofline.

    The interval is wider than that of a LiteRT program by `roofline.OTHER_RUNTIME_LOG_WIDTH`. Raises ConfigError,
    SourceError.
    """
    known = roofline.roofline_of(target.hardware, f"target {target.name}") if target else None
    if target is None or known is None:
        return {}
    try:
        found = work_of(program.deserialized(path))
    except ValueError as error:
        return {"latency_note": f"no latency is predicted: {error}"}
    threads = (int(target.options.get("threads", 1)), 1)
    intervals = roofline.predict(found, known, threads, extra_log_width=roofline.OTHER_RUNTIME_LOG_WIDTH)
    return {"latency_ms": {name: codec.to_json(i) for name, i in intervals.items()}}


def work_of(file: Any) -> tuple[Work, ...]:
    """Return the work of the main method's operators. Raises ValueError with the reason where there is none."""
    plans = [plan for plan in file.program.execution_plan if plan.name != CONTRACT_METHOD]
    if not plans:
        raise ValueError("the program has no method")
    main = next((plan for plan in plans if plan.name == "forward"), plans[0])
    if _is_dynamic(main):
        raise ValueError("it has dynamic dimensions")
    return tuple(work for call in _calls(main) for work in _work_of_call(file, main, call))


def _is_dynamic(plan: Any) -> bool:
    tensors = (plan.values[index].val for index in plan.inputs)
    return any(getattr(getattr(t, "shape_dynamism", None), "name", "STATIC") != "STATIC" for t in tensors)


def _calls(plan: Any) -> Iterator[Any]:
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if type(call).__name__ == "JumpFalseCall":
                raise ValueError("how often its parts run is not known before")
            if type(call).__name__ in ("KernelCall", "DelegateCall"):
                yield call


def _work_of_call(file: Any, plan: Any, call: Any) -> Iterator[Work]:
    if type(call).__name__ == "KernelCall":
        yield from _portable(plan, call)
        return
    graph = delegate_graph(file, plan.delegates[call.delegate_index])
    for node in _kept(graph):
        yield _work(graph, node)


def delegate_graph(file: Any, delegate: Any) -> DelegateGraph:
    """Return the operators of a delegated subgraph. Raises ValueError where it is not XNNPACK's, or cannot be read."""
    if delegate.id != _XNNPACK:
        raise ValueError(f"what the delegate {delegate.id} computes is not known")
    place = delegate.processed
    if place.location.name != "INLINE":
        raise ValueError("the delegate's payload lies outside of the program")
    return xnnpack_graph.read(bytes(file.program.backend_delegate_data[place.index].data))


def _portable(plan: Any, call: Any) -> Iterator[Work]:
    operator = plan.operators[call.op_index]
    name = f"{operator.name}.{operator.overload}"
    if name.startswith(_NOTHING):
        return
    library, _, word = operator.name.partition("::")
    if library not in _KNOWN:
        raise ValueError(f"the cost of the operator {name} is not known")
    if _HEAVY.fullmatch(word):
        raise ValueError(f"{name} runs on a portable kernel, of which no published latency tells")
    tensors = [plan.values[value].val for value in call.args]
    sizes = [math.prod(t.sizes) for t in tensors if getattr(t, "sizes", None) is not None]
    yield Work(
        kernel="other",
        arithmetic="float32",
        cycles=_PORTABLE_CYCLES * max(sizes, default=0),
        published=False,
    )


def _kept(graph: DelegateGraph) -> Iterator[Node]:
    """Yield the nodes that are run: no reshapes, and no clamp that the only operator before it takes over."""
    consumers = Counter(value for node in graph.nodes for value in node.inputs)
    makers = {value: node.kind for node in graph.nodes for value in node.outputs}
    for node in graph.nodes:
        taken = node.kind == "Clamp" and all(
            makers.get(v) in _TAKES_CLAMP and consumers[v] == 1 and v not in graph.ends for v in node.inputs
        )
        if node.kind not in _FREE and not taken:
            yield node


def _work(graph: DelegateGraph, node: Node) -> Work:
    used = [graph.values[v] for v in node.inputs]
    made = [graph.values[v] for v in node.outputs]
    activations = [v for v in used if not v.constant]
    macs = _macs(node, used, made)
    arithmetic, published = _arithmetic(activations or made) if macs else ("float32", True)
    kernel: Kernel = "depthwise" if node.kind == "DepthwiseConv2d" else "dense" if macs else "other"
    return Work(
        kernel=kernel,
        arithmetic=arithmetic,
        macs=macs,
        activations=tuple(v.nbytes for v in (*activations, *made)),
        parameter_bytes=sum(v.nbytes for v in used if v.constant),
        published=published,
    )


def _arithmetic(activations: list[Value]) -> tuple[Arithmetic, bool]:
    kind = activations[0].type
    if kind not in _ARITHMETIC:
        raise ValueError(f"{_SPOKEN.get(kind, kind)} arithmetic runs on kernels that no published latency tells of")
    return _ARITHMETIC[kind]


_SPOKEN = {"fp16": "float16", "bf16": "bfloat16"}


def _macs(node: Node, used: list[Value], made: list[Value]) -> int:
    """Return the multiply-accumulates: elements of the output times what each is a sum of."""
    out = made[0].elements if made else 0
    field = node.fields
    match node.kind:
        case "Conv2d":
            return int(out * field["kernel_height"] * field["kernel_width"] * field["group_input_channels"])
        case "DepthwiseConv2d":
            return int(out * field["kernel_height"] * field["kernel_width"])
        case "ConvTranspose2d":
            taps = field["kernel_height"] * field["kernel_width"] * field["group_output_channels"]
            return int(used[0].elements * taps)
        case "FullyConnected" | "BatchMatrixMultiply":
            return out * used[0].shape[-1]
        case "ScaledDotProductAttention":  # queries times keys, and those weights times values
            return 2 * used[0].elements * used[1].shape[-2]
    return 0
