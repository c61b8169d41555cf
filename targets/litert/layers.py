"""The linear layers of a quantized program beside those of the float one that it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge.targets.litert import coverage, flatbuffer

# Operators with a bias at their third input.
LINEAR = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})


def paired(source: Any, program: Any) -> Iterator[tuple[flatbuffer.Op, flatbuffer.Op]]:
    """Yield the linear layers of two checked `ModelT`, the float one and the quantized one, in execution order.

    They are paired by position among the operators that compute, which quantizers keep in order; nothing where they
    did not.
    """
    theirs, ours = (
        [op for op in flatbuffer.graph(m).ops if op.name not in coverage.CONVERSIONS] for m in (source, program)
    )
    if [op.name for op in theirs] != [op.name for op in ours]:
        return
    for a, b in zip(theirs, ours, strict=True):
        if b.name in LINEAR:
            yield a, b
