"""ONNX networks with QuantizeLinear and DequantizeLinear: what they were trained for arrives, whatever is between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.sources import onnx_quantized, registry
from edge.sources.base import Declaration
from edge.targets.litert import flatbuffer, learned

pytestmark = pytest.mark.frameworks


class _Network:
    """Writes an ONNX file in which every operator's result goes through a pair, and constants are stored as int8."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self.pair("x", 0.03)

    def _keep(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def pair(self, name: str, scale: float) -> str:
        """Put a value through int8; return the name of what comes out."""
        from onnx import helper

        ends = [self._keep(f"{name}_scale", np.float32(scale)), self._keep(f"{name}_zero", np.int8(0))]
        self._nodes.append(helper.make_node("QuantizeLinear", [name, *ends], [f"{name}_q"]))
        self._nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *ends], [f"{name}_p"]))
        return f"{name}_p"

    def stored(self, name: str, *shape: int) -> str:
        """Return an int8 constant's real values: random weights, or 1 for a scalar."""
        from onnx import helper

        scale = 0.01 if shape else 1 / 127
        integers = self._rng.integers(-30, 31, shape) if shape else 127
        ends = [self._keep(f"{name}_scale", np.float32(scale)), self._keep(f"{name}_zero", np.int8(0))]
        given = [self._keep(f"{name}_q", np.asarray(integers, np.int8)), *ends]
        self._nodes.append(helper.make_node("DequantizeLinear", given, [name]))
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, *, scale: float | None = 0.04, **attributes: Any) -> str:
        """Add an operator; return the name of its result behind its pair, without one for scale None."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name if scale is None else self.pair(name, scale)

    def gelu(self, x: str, name: str) -> str:
        """Add GELU as exporters write it: five operators around quantized scalars."""
        divided = self.op("Div", [x, self._keep(f"{name}_root", np.float32(2**0.5))], f"{name}_d", scale=None)
        error = self.op("Erf", [divided], f"{name}_e", scale=1 / 127)
        sum_ = self.op("Add", [error, self.stored(f"{name}_one")], f"{name}_a", scale=2 / 127)
        return self.op("Mul", [x, sum_], f"{name}_m")

    def reshape(self, x: str, name: str, *shape: int) -> str:
        """Add a reshape with the pair of its input."""
        return self.op("Reshape", [x, self._keep(f"{name}_shape", np.asarray(shape, np.int64))], name)

    def write(self, path: Path, inputs: Sequence[int], outputs: Sequence[int], last: str) -> None:
        """Write the file; its output is the value `last`."""
        import onnx
        from onnx import TensorProto, helper

        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", inputs), (last, outputs))]
        graph = helper.make_graph(self._nodes, "net", ends[:1], ends[1:], self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def _images(path: Path) -> None:
    """Convolution, GELU, transposed convolution, and products of three dimensions."""
    net = _Network()
    x = net.op("Conv", ["x_p", net.stored("w", 4, 3, 3, 3)], "c", pads=[1, 1, 1, 1])
    x = net.op("ConvTranspose", [net.gelu(x, "g"), net.stored("t", 4, 2, 2, 2)], "d", strides=[2, 2])
    x = net.op("MatMul", [net.reshape(x, "r", 1, 2, 64), net.stored("v", 64, 6)], "m")
    turned = net.op("Transpose", [x], "k", perm=[0, 2, 1])
    net.write(path, (1, 3, 4, 4), (1, 2, 2), net.op("MatMul", [x, turned], "y"))


def test_all_layers_between_pairs_are_converted_and_computed(tmp_path: Path) -> None:
    """Loading compares the program with onnxruntime; 11 activations and the 3 weights keep what they had."""
    _images(tmp_path / "net.onnx")
    loaded = registry.detect(str(tmp_path / "net.onnx")).load(str(tmp_path / "net.onnx"), Declaration())
    loaded.to_litert(tmp_path / "net.tflite")
    model = flatbuffer.load(tmp_path / "net.tflite")
    assert learned.carries(model)
    kept = learned.take(model)
    scales = {round(float(q.scale[0]), 6) for q in kept.weights.values()}
    assert (len(kept.weights), scales) == (3, {0.01})
    found = {round(float(q.scale[0]), 6) for q in kept.activations.values()}
    assert {0.03, 0.04, round(1 / 127, 6), round(2 / 127, 6)} <= found


def test_scalars_become_plain_numbers_and_weights_stay_stored() -> None:
    """A scalar is exact on any scale, an int32 bias is folded by the converter; weights keep their pair."""
    assert onnx_quantized.keeps("DequantizeLinear", np.zeros((4, 3), np.int8))
    assert not onnx_quantized.keeps("DequantizeLinear", np.int8(5))
    assert not onnx_quantized.keeps("DequantizeLinear", np.zeros(4, np.int32))
    assert onnx_quantized.keeps("QuantizeLinear", np.zeros((4, 3), np.float32))
    assert not onnx_quantized.keeps("Conv", np.zeros((4, 3), np.int8))


def test_readers_of_a_pair_get_operators_of_their_own() -> None:
    """Each reader has its dequantize operator, and the graph computes the same bits."""
    import torch

    from edge.targets import torch_fake_quant

    class Twice(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            x = torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)
            return torch.relu(x) * torch.sigmoid(x)

    x: Any = torch.randn(2, 5)
    graph = torch.export.export(Twice(), (x,)).module(check_guards=False)
    torch_fake_quant.rewrite(graph)
    before = graph(x)
    assert torch_fake_quant.split_readers(graph) == 1
    pairs = [n for n in graph.graph.nodes if "dequantize" in str(n.target)]
    assert [len(n.users) for n in pairs] == [1, 1]
    assert torch.equal(graph(x), before)
