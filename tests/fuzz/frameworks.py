"""Small models written by the frameworks themselves: `python -m tests.fuzz.frameworks KIND` prints the file's bytes."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _keras(path: Path) -> None:
    import keras

    x = keras.Input((8,), name="x")
    keras.Model(x, keras.layers.Dense(4, activation="softmax")(x)).save(path)


def _module() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 4)).eval()


def _onnx(path: Path) -> None:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    weights = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 8]), ("y", [1, 4]))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def _exported() -> Any:
    import torch

    return torch.export.export(_module(), (torch.zeros(1, 8),))


def _pt2(path: Path) -> None:
    import torch

    torch.export.save(_exported(), path)


def _torchscript(path: Path) -> None:
    import torch

    torch.jit.trace(_module(), torch.zeros(1, 8)).save(path)


def _pte(path: Path) -> None:
    from executorch.exir import to_edge

    path.write_bytes(to_edge(_exported()).to_executorch().buffer)


def _ptl(path: Path) -> None:
    import torch

    torch.jit.trace(_module(), torch.zeros(1, 8))._save_for_lite_interpreter(str(path))


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "keras": ("m.keras", _keras),
    "h5": ("m.h5", _keras),
    "onnx": ("m.onnx", _onnx),
    "pt2": ("m.pt2", _pt2),
    "torchscript": ("m.pt", _torchscript),
    "pte": ("m.pte", _pte),
    "ptl": ("m.ptl", _ptl),
}


def main(kind: str) -> None:
    """Write one file and copy it to stdout, which frameworks print to as well."""
    name, make = MAKERS[kind]
    stdout = os.dup(1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        path = Path(folder) / name
        make(path)
        with os.fdopen(stdout, "wb") as stream:
            stream.write(path.read_bytes())


if __name__ == "__main__":
    main(sys.argv[1])
