"""Predict how long one inference takes on a CPU board, from the work of its operators alone.

A roofline for each operator (Williams, Waterman and Patterson 2009, doi 10.1145/1498765.1498785), summed:

    time     = operators * overhead + sum of (max(compute, memory) + overlap_loss * min(compute, memory))
    compute  = MACs / (clock * MACs per cycle of the kernel class and dtype * threads ** scaling)
               (of a plain loop, which no other thread takes part in: its cycles / clock)
    memory   = bytes from DRAM / min(threads * bandwidth of one core, bandwidth of all)
               + other bytes / (clock * bytes per cycle from the caches * threads)

A tensor of activations that is larger than half of the last cache travels to DRAM and back; parameters always do,
unless parameters and activations fit into the cache together. The constants of a board are the table
`hardware.roofline` of its target; `benchmarks/pi_latency.py` fits them to published latencies and gives the interval.
Every number is of mode `predicted`, for XNNPACK's kernels on an idle board that does not throttle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.errors import ConfigError
from edge.targets.interval import Interval, interval

Kernel = Literal["dense", "depthwise", "other"]
Arithmetic = Literal["float32", "int8", "uint8"]
Array = NDArray[np.float64]
# The models of the published latencies have 56 to 20,168 million MACs. What lies outside, or runs on kernels of which
# nobody published anything, may be another factor of two off.
_PUBLISHED_MACS = (50e6, 25e9)
_UNSEEN_LOG_WIDTH = math.log(2)
# The constants are fitted to LiteRT's programs. How far those of ExecuTorch, on the same library of kernels, may lie:
# of 48 pairs (8 networks, 3 boards, 2 recipes) 80 % have ratios of predicted times and of counted instructions that
# agree within this (benchmarks/pte_prediction.py, 21 November 2026).
OTHER_RUNTIME_LOG_WIDTH = 0.56
# The fields of a board that are MACs in a cycle, by kernel class and dtype.
RATES = ("dense_float32", "dense_int8", "dense_uint8", "depthwise_float32", "depthwise_int8")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one operator makes a CPU do. `activations` are the bytes of each tensor that it reads or writes.

    `cycles`: those of a plain loop on one core. `published`: latencies of its kind of kernel were published, and so
    took part in the fit.
    """

    kernel: Kernel
    arithmetic: Arithmetic
    macs: int = 0
    activations: tuple[int, ...] = ()
    parameter_bytes: int = 0
    cycles: int = 0
    published: bool = True


@dataclass(frozen=True, kw_only=True)
class Board:
    """The constants of a board: clock in MHz, cache in kB, MACs in one cycle of one core, bandwidths in GB/s.

    `operator_kcycles`: what an operator costs whatever its size, in thousands of cycles.
    """

    clock_mhz: float
    cores: int
    cache_kb: float
    dense_float32: float
    dense_int8: float
    dense_uint8: float
    depthwise_float32: float
    depthwise_int8: float
    core_gb_per_s: float
    memory_gb_per_s: float
    cache_bytes_per_cycle: float
    operator_kcycles: float
    scaling: float
    overlap_loss: float


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A board with the interval of its predictions: the truth is within exp(+-log_width) at `rate`."""

    board: Board
    log_width: float
    rate: float


def roofline_of(hardware: Mapping[str, Any], where: str) -> Roofline | None:
    """Return the roofline of a target's hardware table, None where it has none; raise ConfigError."""
    table = hardware.get("roofline")
    if table is None:
        return None
    # The clock and the cores are facts of the board that stand beside the table.
    values = {"clock_mhz": hardware.get("clock_mhz"), "cores": hardware.get("cores"), **table}
    wanted = [*(f.name for f in fields(Board)), "log_width", "rate"]
    wrong = [name for name in wanted if not _is_positive(values.get(name))]
    if wrong:
        raise ConfigError(
            f"{where}: hardware.roofline needs positive numbers for {', '.join(wrong)}.",
            hint="targets/catalog/rpi4.toml shows the table; `extends` takes that of another board.",
        )
    board = Board(**{f.name: values[f.name] for f in fields(Board)})
    return Roofline(board=board, log_width=values["log_width"], rate=values["rate"])


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


@dataclass(frozen=True, kw_only=True)
class Load:
    """Operators as arrays: MACs, cycles of plain loops, bytes to or from DRAM, in the caches, index in `RATES`."""

    macs: Array
    cycles: Array
    moved: Array
    cached: Array
    rate: NDArray[np.intp]


def load_of(work: Sequence[Work], cache_kb: float) -> Load:
    """Return what a board with that last cache must do."""
    largest = max((sum(w.activations) for w in work), default=0)
    stays = sum(w.parameter_bytes for w in work) + largest <= 512 * cache_kb
    total = [w.parameter_bytes + sum(w.activations) for w in work]
    moved = [
        (0 if stays else w.parameter_bytes) + sum(size for size in w.activations if size > 512 * cache_kb) for w in work
    ]
    rates = [_rate_index(w) for w in work]
    return Load(
        macs=np.array([0 if w.kernel == "other" else w.macs for w in work], np.float64),
        cycles=np.array([w.cycles for w in work], np.float64),
        moved=np.array(moved, np.float64),
        cached=np.array(total, np.float64) - np.array(moved, np.float64),
        rate=np.array(rates, np.intp),
    )


def _rate_index(w: Work) -> int:
    if w.kernel == "other":
        return 0
    # By channel, XNNPACK's kernels for both kinds of integers do the same work.
    kind = "int8" if w.kernel == "depthwise" and w.arithmetic == "uint8" else w.arithmetic
    return RATES.index(f"{w.kernel}_{kind}")


def milliseconds(load: Load, board: Board, threads: int) -> float:
    """Return the time of one inference with `threads` threads, as many as the board has cores at most."""
    used = max(1, min(threads, board.cores))
    rates = np.array([getattr(board, name) for name in RATES])[load.rate]
    compute_us = load.macs / (board.clock_mhz * rates * used**board.scaling) + load.cycles / board.clock_mhz
    memory_us = load.moved / (1e3 * min(used * board.core_gb_per_s, board.memory_gb_per_s))
    memory_us = memory_us + load.cached / (board.clock_mhz * board.cache_bytes_per_cycle * used)
    overhead_us = load.macs.size * 1e3 * board.operator_kcycles / board.clock_mhz
    overlapped = np.maximum(compute_us, memory_us) + board.overlap_loss * np.minimum(compute_us, memory_us)
    return float(overlapped.sum() + overhead_us) / 1e3


def predict(
    work: Iterable[Work], roofline: Roofline, threads: Iterable[int], *, extra_log_width: float = 0.0
) -> dict[str, Interval]:
    """Return the latency by number of threads, in the order given: `threads_4`, `threads_1`.

    `extra_log_width` is what else may be wrong, independent of the rest: the runtime is not that of the fit.
    """
    known = list(work)
    load = load_of(known, roofline.board.cache_kb)
    low, high = _PUBLISHED_MACS
    seen = all(w.published for w in known) and low <= sum(w.macs for w in known) <= high
    width = math.hypot(roofline.log_width, extra_log_width, 0.0 if seen else _UNSEEN_LOG_WIDTH)
    return {
        f"threads_{count}": interval(milliseconds(load, roofline.board, count), width, roofline.rate)
        for count in dict.fromkeys(max(1, min(n, roofline.board.cores)) for n in threads)
    }
