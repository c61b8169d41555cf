"""TRANSPOSE operators of branches, moved together and cancelled."""

from __future__ import annotations

import numpy as np
import pytest

from tests.test_sources_verify import transpose, unchanged
from tests.tflite_builder import GraphBuilder

FIRST, SWAP = (0, 3, 1, 2), (0, 2, 1)


def reshape(builder: GraphBuilder, source: int, shape: tuple[int, ...]) -> int:
    """Add a RESHAPE."""
    return builder.op(
        "RESHAPE", [source, builder.const(f"s{len(builder.graph.tensors)}", np.array(shape, np.int32))], shape
    )


@pytest.mark.parametrize("branches", [2, 3])
def test_heads_of_a_detector_lose_their_transposes(branches: int) -> None:
    """Feature maps, each transposed and flattened, joined and transposed back, need no TRANSPOSE at all."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4, 5, 6))
    parts = []
    for _ in range(branches):
        scaled = builder.op("MUL", [x, x], (1, 4, 5, 6))
        parts.append(reshape(builder, transpose(builder, scaled, FIRST), (1, 6, 20)))
    joined = builder.op("CONCATENATION", parts, (1, 6, 20 * branches), axis=2)
    builder.output(transpose(builder, joined, SWAP), "y")
    unchanged(builder, (1, 4, 5, 6), 0)


def test_joined_branches_keep_one_transpose() -> None:
    """Branches transposed alike are joined first and transposed once, along the axis that this moves to."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4, 5, 6))
    parts = [transpose(builder, builder.op("MUL", [x, x], (1, 4, 5, 6)), FIRST) for _ in range(3)]
    builder.output(builder.op("CONCATENATION", parts, (1, 18, 4, 5), axis=-3), "y")
    unchanged(builder, (1, 4, 5, 6), 1)


def test_a_transpose_that_others_read_stays() -> None:
    """Where a branch's transposed map is read elsewhere too, joining first would save nothing: it is left."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4, 5, 6))
    first, second = (transpose(builder, builder.op("MUL", [x, x], (1, 4, 5, 6)), FIRST) for _ in "ab")
    joined = builder.op("CONCATENATION", [first, second], (1, 12, 4, 5), axis=1)
    top = builder.op("CONCATENATION", [joined, first], (1, 18, 4, 5), axis=1)
    builder.output(top, "y")
    unchanged(builder, (1, 4, 5, 6), 2)


def test_another_flattening_is_left() -> None:
    """A reshape that does not keep the channels apart is no flattening of the map."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 4, 5, 6))
    y = transpose(builder, builder.op("MUL", [x, x], (1, 4, 5, 6)), FIRST)
    builder.output(reshape(builder, y, (1, 12, 10)), "y")
    unchanged(builder, (1, 4, 5, 6), 1)
