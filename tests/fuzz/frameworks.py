"""Small models written by the frameworks themselves: `python -m tests.fuzz.frameworks KIND` prints the file's bytes.

A folder is printed as a zip of its files.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
import zipfile
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


def _hugging_face(path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=16, num_labels=2
    )
    transformers.BertForSequenceClassification(config).save_pretrained(path)


def _mlpackage(path: Path) -> None:
    import coremltools
    import numpy as np
    from coremltools.converters.mil import Builder

    from edge.signature import Signature, TensorSpec
    from edge.targets.coreml import contract
    from edge.targets.torch_common import CONTRACT

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 8))])  # type: ignore[untyped-decorator]
    def network(x: Any) -> Any:
        weights = np.ones((8, 256), np.float32)  # small ones stay in the model itself
        return Builder.relu(x=Builder.matmul(x=x, y=weights), name="y")

    x, y = TensorSpec(name="x", shape=(1, 8)), TensorSpec(name="y", shape=(1, 256))
    made = coremltools.convert(network, minimum_deployment_target=coremltools.target.iOS16, skip_model_load=True)
    made.user_defined_metadata[CONTRACT] = contract.dump(contract.contract_of(Signature(inputs=(x,), outputs=(y,)))[0])
    made.save(str(path))


def _saved_model(path: Path) -> None:
    import tensorflow as tf

    weights = tf.Variable(tf.ones((8, 4)))
    model = tf.Module()
    model.weights = weights
    model.call = tf.function(
        lambda x: {"y": tf.matmul(x, weights)}, input_signature=[tf.TensorSpec((1, 8), tf.float32, name="x")]
    )
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.call})


def _frozen_graph(path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (1, 8), name="x")
        tf.nn.softmax(tf.matmul(x, tf.ones((8, 4))), name="y")
    path.write_bytes(graph.as_graph_def().SerializeToString())


MAKERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "keras": ("m.keras", _keras),
    "h5": ("m.h5", _keras),
    "onnx": ("m.onnx", _onnx),
    "pt2": ("m.pt2", _pt2),
    "torchscript": ("m.pt", _torchscript),
    "pte": ("m.pte", _pte),
    "ptl": ("m.ptl", _ptl),
    "hugging-face": ("hub", _hugging_face),
    "mlpackage": ("m.mlpackage", _mlpackage),
    "saved-model": ("saved", _saved_model),
    "frozen-graph": ("m.pb", _frozen_graph),
}


def _zipped(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())
    return stream.getvalue()


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
            stream.write(path.read_bytes() if path.is_file() else _zipped(path))


if __name__ == "__main__":
    main(sys.argv[1])
