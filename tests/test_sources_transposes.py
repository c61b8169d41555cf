"""TRANSPOSE operators of branches, moved together and cancelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.sources.transposes import remove_transposes
from edge.targets.litert import flatbuffer, session
from tests.test_sources_verify import transpose, unchanged
from tests.tflite_builder import GraphBuilder, i32

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


# --- reflections -------------------------------------------------------------------------------------------------


def _reflected(before: int, after: int, *, transposed: bool, symmetric: bool = False) -> tuple[bytes, Any]:
    """Return a program that pads the last of [1, 3, 8] by gathers, and what numpy gives for 0 to 23."""
    b, n = GraphBuilder(), 8
    x = b.input("x", (1, 3, n))
    mode = "symmetric" if symmetric else "reflect"
    rows = np.pad(np.arange(n), (before, after), mode=mode).astype(np.int32)  # type: ignore[call-overload]
    if transposed:
        y = b.op("TRANSPOSE", [x, b.const("p", i32([2, 0, 1]))], (n, 1, 3))
        y = b.op("GATHER_ND", [y, b.const("rows", rows[:, None])], (len(rows), 1, 3))
        y = b.op("TRANSPOSE", [y, b.const("q", i32([1, 2, 0]))], (1, 3, len(rows)))
    else:
        parts = [b.op("GATHER", [x, b.const("first", rows[:before])], (1, 3, before), axis=2), x]
        parts += [b.op("GATHER", [x, b.const("last", rows[len(rows) - after :])], (1, 3, after), axis=2)]
        y = b.op("CONCATENATION", parts, (1, 3, len(rows)), axis=2)
    b.output(y, "y")
    wanted = np.arange(24, dtype=np.float32).reshape(1, 3, n)[..., rows]
    return b.build(), wanted


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_reflections_by_gathers_are_mirror_pads(transposed: bool, symmetric: bool) -> None:
    """A gather of mirrored rows, whole or in parts, is one MIRROR_PAD that gives the same elements."""
    program, wanted = _reflected(3, 2, transposed=transposed, symmetric=symmetric)
    model = flatbuffer.load(program)
    remove_transposes(model)
    assert [op.name for op in flatbuffer.graph(model).ops] == ["MIRROR_PAD"]
    x = np.arange(24, dtype=np.float32).reshape(1, 3, 8)
    opened = session.LiteRTSession(flatbuffer.dump(model), kernels="builtin", threads=1)
    assert np.array_equal(opened.run({"x": x})["y"], wanted)


def test_other_gathers_stay() -> None:
    """Rows that repeat the whole signal are no reflection."""
    b = GraphBuilder()
    x = b.input("x", (1, 8))
    b.output(b.op("GATHER", [x, b.const("rows", i32([0, 1, 2, 3, 4, 5, 6, 7, 0, 1]))], (1, 10), axis=1), "y")
    model = flatbuffer.load(b.build())
    remove_transposes(model)
    assert [op.name for op in flatbuffer.graph(model).ops] == ["GATHER"]


def test_one_channel_needs_no_transposition() -> None:
    """Mono sound, [1, 1, 1, 64] to [1, 1, 64, 1], keeps the order of its elements: it is reshaped."""
    b = GraphBuilder()
    x = b.input("x", (1, 1, 1, 64))
    b.output(b.op("TRANSPOSE", [x, b.const("p", i32([0, 2, 3, 1]))], (1, 1, 64, 1)), "y")
    model = flatbuffer.load(b.build())
    assert remove_transposes(model) == 1
    assert [op.name for op in flatbuffer.graph(model).ops] == ["RESHAPE"]
