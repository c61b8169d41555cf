"""Small ONNX models for tests, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    *,
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
    dtypes: Mapping[str, int] | None = None,
) -> Any:
    """Return a checked-shape ModelProto; the outputs have no shapes."""
    import onnx

    kinds = dict(dtypes or {})
    graph = onnx.helper.make_graph(
        list(nodes),
        "g",
        [onnx.helper.make_tensor_value_info(n, kinds.get(n, onnx.TensorProto.FLOAT), s) for n, s in inputs.items()],
        [
            onnx.helper.make_tensor_value_info(n, kinds[n], None)
            if n in kinds
            else onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
            for n in outputs
        ],
        [onnx.numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 10
    )


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    """Return a node named after its operator."""
    import onnx

    return onnx.helper.make_node(kind, inputs, outputs, name=f"the_{kind}", **attributes)


def save(proto: Any, folder: Path, name: str = "model.onnx") -> Path:
    """Write a model, to a path that is returned."""
    import onnx

    path = folder / name
    onnx.save(proto, str(path))
    return path


def convolution(random: np.random.Generator, **attributes: Any) -> Any:
    """Return conv, relu, average, dense over a channel-first image."""
    attributes = attributes or {"auto_pad": "SAME_UPPER"}
    return model(
        [
            node("Conv", ["image", "w", "b"], ["c"], **attributes, strides=[2, 2]),
            node("Relu", ["c"], ["r"]),
            node("GlobalAveragePool", ["r"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "d"], ["scores"], transB=1),
        ],
        {"image": [1, 3, 8, 8]},
        ["scores"],
        constants={
            "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
            "b": random.standard_normal(4).astype(np.float32),
            "d": random.standard_normal((5, 4)).astype(np.float32),
        },
    )
