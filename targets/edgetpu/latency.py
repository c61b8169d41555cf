"""Predict how long one inference takes on an Edge TPU, from shapes alone.

The model adds what the hardware must do one after the other:

    time = floor * invocations + inputs / in-rate + outputs / out-rate + chip + host
    chip = max(stream, compute) + overlap_loss * min(stream, compute)

`compute` takes the cycles that old compilers estimate for a convolution,
2*ceil(H/4)*ceil(W/4)*ceil(Co/32)*kh*kw*ceil(Ci/4) (a 4 x 4 grid of tiles over the output map), at an effective clock,
and rates by element for the rest. `stream` is the transfer of the parameters that are not cached on the chip. `host` is
the CPU's time for operators that are not mapped.
Constants and their sources are in latency.toml; the interval is the error of leave-one-out prediction of the latencies
published at coral.ai/docs/edgetpu/benchmarks. Every number is of mode `predicted`.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from edge.errors import ConfigError
from edge.targets.base import Mode
from edge.targets.edgetpu.memory import MemoryPlan
from edge.targets.interval import Interval, interval
from edge.targets.litert.flatbuffer import Graph, Op

MODE: Mode = "predicted"

_ARITHMETIC = frozenset(
    {
        *("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "SUM", "PRELU"),
        *("SOFTMAX", "LOGISTIC", "TANH", "RSQRT", "L2_NORMALIZATION"),
    }
)
_FREE = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS"))
_PASS_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Constants:
    """The fitted constants of the chip and its links; `overlap_loss` is what is not hidden of the shorter part."""

    clock_mhz: float
    depthwise_macs_per_us: float
    arithmetic_elements_per_us: float
    moved_elements_per_us: float
    operator_us: float
    usb3_stream_mb_per_s: float
    pcie_stream_mb_per_s: float
    overlap_loss: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one inference makes the chip, the link and the host do; a value that can be summed over operators."""

    conv_cycles: int = 0
    depthwise_macs: int = 0
    arithmetic_elements: int = 0
    moved_elements: int = 0
    operators: int = 0
    streamed_bytes: float = 0.0
    input_bytes: int = 0
    output_bytes: int = 0
    host_macs: int = 0
    host_desktop_ns: float = 0.0
    invocations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@functools.cache
def _table() -> Mapping[str, Any]:
    text = resources.files("edge.targets.edgetpu").joinpath("latency.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def table(name: str) -> Mapping[str, Any]:
    """Return a table of latency.toml: `fitted`, `prior`, `interval`, `links`, `hosts`."""
    found: Mapping[str, Any] = _table()[name]
    return found


@functools.cache
def fitted() -> Constants:
    """Return the constants that latency.toml carries."""
    return Constants(**table("fitted"))


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _last(shape: Sequence[int]) -> int:
    return shape[-1] if shape else 1


def _grid(shape: Sequence[int]) -> tuple[int, int]:
    """Return height and width of an NHWC map; what is no map is one row per leading index."""
    if len(shape) >= 4:
        return shape[-3], shape[-2]
    return 1, max(1, math.prod(shape[:-1]))


def conv_cycles(height: int, width: int, co: int, ci: int, kernel: int) -> int:
    """Return the cycles of a convolution with `kernel` taps into `co` channels of a height x width map.

    7x7 map, 64 to 64 channels, 3x3: 2 * ceil(7/4) * ceil(7/4) * ceil(64/32) * 9 * ceil(64/4) = 2304.
    """
    return 2 * _ceil(height, 4) * _ceil(width, 4) * _ceil(co, 32) * kernel * _ceil(ci, 4)


def dense_cycles(rows: int, co: int, ci: int) -> int:
    """Return the cycles of `rows` vector-matrix products [ci] x [ci, co].

    With no map to tile, a quarter of the tiles is busy: cached dense layers of 2048 to 2688 units grow by 7 us for
    a million multiply-accumulates.
    """
    return 2 * rows * _ceil(co, 128) * _ceil(ci, 4)


def _macs(graph: Graph, op: Op) -> int:
    """Return the multiply-accumulates of an operator with weights, 0 for another."""
    out = graph.tensors[op.outputs[0]]
    if op.name in ("CONV_2D", "FULLY_CONNECTED"):
        return out.elements * math.prod(graph.tensors[op.inputs[1]].shape[1:])
    if op.name == "DEPTHWISE_CONV_2D":
        return out.elements * math.prod(graph.tensors[op.inputs[1]].shape[1:3])
    if op.name == "TRANSPOSE_CONV":
        weights, x = graph.tensors[op.inputs[1]].shape, graph.tensors[op.inputs[2]]
        return x.elements * math.prod(weights[:3])
    if op.name == "BATCH_MATMUL":
        return out.elements * _last(graph.tensors[op.inputs[0]].shape)
    if op.name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        weights_2d = [graph.tensors[t] for t in op.inputs[1:] if t >= 0 and len(graph.tensors[t].shape) == 2]
        steps = out.elements // max(1, _last(out.shape))
        return steps * sum(t.elements for t in weights_2d if t.is_constant)
    return 0


def _weighted(graph: Graph, op: Op) -> Work | None:
    """Return the chip's work of an operator with weights, None for another."""
    macs = _macs(graph, op)
    if op.name == "DEPTHWISE_CONV_2D":
        return Work(depthwise_macs=macs)
    if op.name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        return Work(conv_cycles=_ceil(macs, 256))
    if op.name not in ("CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"):
        return None
    weights, out = graph.tensors[op.inputs[1]].shape, graph.tensors[op.outputs[0]]
    co, ci = weights[0], _last(weights)
    if op.name == "FULLY_CONNECTED":
        return Work(conv_cycles=dense_cycles(out.elements // max(1, co), co, ci))
    # A transposed convolution passes once over its input map.
    source = graph.tensors[op.inputs[2]] if op.name == "TRANSPOSE_CONV" else out
    return Work(conv_cycles=conv_cycles(*_grid(source.shape), co, ci, math.prod(weights[1:3])))


def _activations(graph: Graph, op: Op) -> list[int]:
    return [t for t in op.inputs if t >= 0 and not graph.tensors[t].is_constant]


def _chip(graph: Graph, op: Op) -> Work:
    work = _weighted(graph, op)
    if work is None:
        produced = sum(graph.tensors[t].elements for t in op.outputs)
        consumed = max((graph.tensors[t].elements for t in _activations(graph, op)), default=0)
        if op.name in _ARITHMETIC:
            work = Work(arithmetic_elements=max(produced, consumed))
        else:
            work = Work() if op.name in _FREE else Work(moved_elements=max(produced, consumed))
    return work + Work(operators=1)


def _host(graph: Graph, op: Op) -> Work:
    if macs := _macs(graph, op):
        return Work(host_macs=macs)
    if op.name in _FREE:
        return Work()
    counted = op.outputs if op.name.startswith("RESIZE") else _activations(graph, op) or op.outputs
    costs = table("host_ns")
    elements = sum(graph.tensors[t].elements for t in counted)
    return Work(host_desktop_ns=elements * float(costs.get(op.name, costs["other"])))


def _crossings(graph: Graph, mapped: Sequence[bool]) -> tuple[int, int]:
    """Return the bytes of activations that the chip takes from the host and gives to it."""
    producers, consumers = graph.producers(), graph.consumers()
    inward = outward = 0
    for t in graph.tensors:
        if t.is_constant:
            continue
        made = t.index in producers and mapped[producers[t.index]]
        users = [mapped[op] for op in consumers.get(t.index, [])]
        inward += t.nbytes if not made and any(users) else 0
        wanted = t.index in graph.outputs or not all(users)
        outward += t.nbytes if made and wanted else 0
    return inward, outward


def _streamed(graph: Graph, parameters: MemoryPlan) -> float:
    """Return the bytes of parameters that travel at each inference.

    A streamed layer with large maps is worked off in parts and its weights travel once for each: between 3.2 and 7.4
    times for 3.7 to 5.9 MB of maps, about once per MiB (CONV_MACs sweeps, see latency.toml).
    """
    total = 0.0
    for layer in parameters.layers:
        if not layer.on_chip:
            op = graph.ops[layer.op]
            maps = sum(graph.tensors[t].nbytes for t in (*_activations(graph, op), *op.outputs))
            total += layer.parameter_bytes * max(1.0, maps / _PASS_BYTES)
    return total


def work(graph: Graph, mapped: Sequence[bool], parameters: MemoryPlan, *, invocations: int = 1) -> Work:
    """Return the work of one inference; `mapped` is in execution order, `invocations` counts Edge TPU subgraphs."""
    if len(mapped) != len(graph.ops):
        raise ValueError(f"{len(mapped)} placements for {len(graph.ops)} operators")
    total = Work(invocations=invocations if any(mapped) else 0, streamed_bytes=_streamed(graph, parameters))
    for op, on_chip in zip(graph.ops, mapped, strict=True):
        total += _chip(graph, op) if on_chip else _host(graph, op)
    inward, outward = _crossings(graph, mapped)
    return total + Work(input_bytes=inward, output_bytes=outward)


def milliseconds(work: Work, link: str, host: str, constants: Constants) -> tuple[float, float]:
    """Return the time of one inference over a link, and the part of it that the host's CPU takes; both in ms."""
    facts, cpu = table("links")[link], _host_class(host)
    stream_rate = getattr(constants, f"{link}_stream_mb_per_s", None) or facts["stream_mb_per_s"]
    compute_us = (
        work.conv_cycles / constants.clock_mhz
        + work.depthwise_macs / constants.depthwise_macs_per_us
        + work.arithmetic_elements / constants.arithmetic_elements_per_us
        + work.moved_elements / constants.moved_elements_per_us
        + work.operators * constants.operator_us
    )
    stream_us = work.streamed_bytes / stream_rate
    chip_us = max(stream_us, compute_us) + constants.overlap_loss * min(stream_us, compute_us)
    transfer_us = work.input_bytes / stream_rate + work.output_bytes / facts["output_mb_per_s"]
    host_ms = (work.host_macs * cpu["ns_per_mac"] + work.host_desktop_ns * cpu["slowdown"]) / 1e6
    return work.invocations * facts["floor_ms"] + (chip_us + transfer_us) / 1e3 + host_ms, host_ms


def _host_class(name: str) -> Mapping[str, float]:
    hosts = table("hosts")
    if name not in hosts:
        raise ConfigError(f"The host CPU class is {name!r}; accepted: {', '.join(hosts)}.")
    found: Mapping[str, float] = hosts[name]
    return found


def predict_latency(
    graph: Graph,
    mapped: Sequence[bool],
    parameters: MemoryPlan,
    *,
    invocations: int = 1,
    hosts: Mapping[str, str] | None = None,
) -> dict[str, Interval]:
    """Return the latency of one inference for `usb3`, `pcie` and `usb2`.

    `invocations` is the number of Edge TPU subgraphs; `hosts` maps a link to the CPU class (`desktop`, `a53`, `a72`,
    `a76`) that runs the unmapped operators, where it is another than the link's usual.
    Raises ConfigError for an unknown class.
    """
    total = work(graph, mapped, parameters, invocations=invocations)
    width = table("interval")
    found = {}
    for link, facts in table("links").items():
        value, host_ms = milliseconds(total, link, (hosts or {}).get(link, facts["host"]), fitted())
        share = host_ms / value if value else 0.0
        spread = math.hypot(width["log_width"], facts["log_width"], share * width["host_log_width"])
        found[link] = interval(value, spread, width["rate"])
    return found
