"""One function per ATen operator that has an eager form with weights or a quantized kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.targets.torch_mobile.rebuild import Builder

Bound = Mapping[str, Any]


def translate(builder: Builder, node: Any, name: str) -> Any:
    """Return the new node of an operator in its eager form; None where it has none or its weights are computed."""
    made = _TABLE.get(name)
    return made(builder, node, bind(node)) if made is not None else None


def bind(node: Any) -> Bound:
    """Return a node's arguments by their names in the operator's schema, defaults filled in."""
    bound = {}
    for i, argument in enumerate(node.target._schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        bound[argument.name] = given
    return bound


def _sizes(value: Any, dims: int) -> Any:
    """Return an int list of the schema as one size per dimension; a word (`same`) unchanged."""
    if isinstance(value, str):
        return value
    sizes = [value] if isinstance(value, int) else list(value)
    return tuple(sizes * dims if len(sizes) == 1 else sizes)


def _load(module: Any, **values: Any) -> Any:
    import torch

    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(module, name).copy_(value)
    return module


def _conv(b: Builder, node: Any, a: Bound) -> Any:
    import torch

    weight, bias = b.constant(a["weight"]), b.constant(a["bias"])
    if weight is None or (a["bias"] is not None and bias is None):
        return None
    dims = weight.dim() - 2
    cls = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
    made = cls(
        weight.shape[1] * a["groups"],
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=_sizes(a["stride"], dims),
        padding=_sizes(a["padding"], dims),
        dilation=_sizes(a["dilation"], dims),
        groups=a["groups"],
        bias=bias is not None,
    )
    return b.module(node.name, _load(made, weight=weight, bias=bias), b.value(a["input"]))


def _conv_transpose(b: Builder, node: Any, a: Bound) -> Any:
    import torch

    weight, bias = b.constant(a["weight"]), b.constant(a["bias"])
    if weight is None or (a["bias"] is not None and bias is None):
        return None
    dims = weight.dim() - 2
    cls = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}[dims]
    made = cls(
        weight.shape[0],
        weight.shape[1] * a["groups"],
        tuple(weight.shape[2:]),
        stride=_sizes(a["stride"], dims),
        padding=_sizes(a["padding"], dims),
        output_padding=_sizes(a["output_padding"], dims),
        groups=a["groups"],
        bias=bias is not None,
        dilation=_sizes(a["dilation"], dims),
    )
    return b.module(node.name, _load(made, weight=weight, bias=bias), b.value(a["input"]))


def _linear(b: Builder, node: Any, a: Bound) -> Any:
    import torch

    weight, bias = b.constant(a["weight"]), b.constant(a["bias"])
    if weight is None or weight.dim() != 2 or (a["bias"] is not None and bias is None):
        return None
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return b.module(node.name, _load(made, weight=weight, bias=bias), b.value(a["input"]))


def _batch_norm(b: Builder, node: Any, a: Bound) -> Any:
    import torch

    held = {k: b.constant(a[k]) for k in ("weight", "bias", "running_mean", "running_var")}
    held_back = [k for k, v in held.items() if v is None and a[k] is not None]
    value = node.meta.get("val")
    rank = (value[0] if isinstance(value, (tuple, list)) else value).dim() if value is not None else 0
    if held_back or held["running_mean"] is None or a.get("training") or rank < 2:
        return None
    cls = {4: torch.nn.BatchNorm2d, 5: torch.nn.BatchNorm3d}.get(rank, torch.nn.BatchNorm1d)
    made = cls(len(held["running_mean"]), eps=a["eps"], affine=held["weight"] is not None)
    return b.module(node.name, _load(made, **held), b.value(a["input"]))


def _functional_batch_norm(b: Builder, node: Any, a: Bound) -> Any:
    """Return the normalized tensor in the place of the operator's first result; the others are empty in evaluation."""
    made = _batch_norm(b, node, a)
    return None if made is None else (made, None, None)


def _recurrent(cls_name: str, states: int) -> Callable[[Builder, Any, Bound], Any]:
    def make(b: Builder, node: Any, a: Bound) -> Any:
        import torch

        weights = [b.constant(p) for p in a["params"]]
        per_layer = 4 if a["has_biases"] else 2
        layers = a["num_layers"] * (2 if a["bidirectional"] else 1)
        if any(w is None for w in weights) or len(weights) != per_layer * layers:
            return None  # projections have another number of weights
        made = getattr(torch.nn, cls_name)(
            weights[0].shape[1],
            weights[1].shape[1],
            a["num_layers"],
            bias=a["has_biases"],
            batch_first=a["batch_first"],
            bidirectional=a["bidirectional"],
        )
        with torch.no_grad():
            for held, weight in zip(made._flat_weights, weights, strict=True):
                held.copy_(weight)
        state = b.value(a["hx"])
        called = b.module(node.name, made, b.value(a["input"]), tuple(state) if states == 2 else state)
        item = b.graph.call_function
        sequence, last = (item(operator.getitem, (called, i)) for i in (0, 1))
        if states == 1:
            return (sequence, last)
        return (sequence, *(item(operator.getitem, (last, i)) for i in (0, 1)))

    return make


def _binary(function: Any) -> Callable[[Builder, Any, Bound], Any]:
    def make(b: Builder, _node: Any, a: Bound) -> Any:
        # With a number, FX gives the result its input's scale, which the kernel then changes: a concatenation after it
        # would read wrong values.
        if a.get("alpha", 1) != 1 or not hasattr(a["other"], "op"):
            return None
        return b.graph.call_function(function, (b.value(a["self"]), b.value(a["other"])))

    return make


def _function(where: str, *names: str, **fixed: Any) -> Callable[[Builder, Any, Bound], Any]:
    """Return a maker of a call of `where` (`torch.cat`) with the schema's arguments `names`, in this order."""

    def make(b: Builder, _node: Any, a: Bound) -> Any:
        import torch

        module, _, function = where.rpartition(".")
        home = torch.nn.functional if module == "F" else torch
        return b.graph.call_function(getattr(home, function), tuple(b.value(a[n]) for n in names), dict(fixed))

    return make


def _fixed(where: str) -> Callable[[Builder, Any, Bound], Any]:
    """As `_function`, for operators of a fixed output range: None where the input is not quantized already.

    FX would quantize a float input with the range of the output.
    """
    plain = _function(where, "self")

    def make(b: Builder, node: Any, a: Bound) -> Any:
        import torch

        held = b.value(a["self"])
        if held.op == "call_module":
            inner = b.root.get_submodule(held.target)
            known = (torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._BatchNorm, torch.nn.Linear)
            return plain(b, node, a) if isinstance(inner, known) else None
        return plain(b, node, a) if held.target in (operator.add, operator.mul) else None

    return make


def _reshape(b: Builder, _node: Any, a: Bound) -> Any:
    return b.graph.call_method("reshape", (b.value(a["self"]), b.value(a["size" if "size" in a else "shape"])))


def _pool(where: str, *names: str) -> Callable[[Builder, Any, Bound], Any]:
    """As `_function`; an empty stride of the schema means the kernel's size."""
    plain = _function(where, *names)

    def make(b: Builder, node: Any, a: Bound) -> Any:
        return plain(b, node, {**a, "stride": a["stride"] or a["kernel_size"]})

    return make


def _relu6(b: Builder, node: Any, a: Bound) -> Any:
    """Return a ReLU6; where `builder.saturate` is set a ReLU, whose quantized output is to saturate at 6.

    The qnnpack kernels of clamp, hardtanh and ReLU6 give wrong results for tensors that are channels-last in memory, as
    those of quantized convolutions are (seen with PyTorch 2.13: outputs near 0 instead of 6). What cannot saturate gets
    a copy in plain order first.
    """
    import torch

    if (a.get("min_val", 0), a.get("max_val", 6)) != (0, 6):
        return None
    held = b.value(a["self"])
    if not b.saturate:
        return b.module(node.name, torch.nn.ReLU6(), held)
    if node.name in b.clamped:
        return b.module(node.name, torch.nn.ReLU6(), b.graph.call_method("contiguous", (held,)))
    b.saturating.append(node.name)
    return b.module(node.name, torch.nn.ReLU(), held)


def _relu(b: Builder, node: Any, a: Bound) -> Any:
    import torch

    return b.module(node.name, torch.nn.ReLU(), b.value(a["self"]))


def _upsample(mode: str) -> Callable[[Builder, Any, Bound], Any]:
    def make(b: Builder, _node: Any, a: Bound) -> Any:
        import torch

        given: dict[str, Any] = {"size": a["output_size"], "scale_factor": a["scale_factors"], "mode": mode}
        if mode == "bilinear":
            given["align_corners"] = a["align_corners"]
        return b.graph.call_function(torch.nn.functional.interpolate, (b.value(a["input"]),), given)

    return make


def _mean(b: Builder, _node: Any, a: Bound) -> Any:
    import torch

    if a["dtype"] is not None or a["dim"] is None:
        return None
    return b.graph.call_function(torch.mean, (b.value(a["self"]), list(a["dim"]), a["keepdim"]))


def _same(b: Builder, _node: Any, a: Bound) -> Any:
    """Leave out what only copies: after in-place operators are gone, nothing can tell the copy from the original."""
    if a.get("train") or a.get("memory_format") is not None:
        return None
    return b.value(a["input"] if "input" in a else a["self"])


_TABLE: Mapping[str, Callable[[Builder, Any, Bound], Any]] = {
    **{f"aten.conv{d}d.{form}": _conv for d in (1, 2, 3) for form in ("default", "padding")},
    "aten.conv_transpose1d.default": _conv_transpose,
    "aten.conv_transpose2d.input": _conv_transpose,
    "aten.conv_transpose3d.input": _conv_transpose,
    "aten.linear.default": _linear,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _functional_batch_norm,
    "aten.lstm.input": _recurrent("LSTM", 2),
    "aten.gru.input": _recurrent("GRU", 1),
    "aten.add.Tensor": _binary(operator.add),
    "aten.mul.Tensor": _binary(operator.mul),
    "aten.cat.default": _function("torch.cat", "tensors", "dim"),
    "aten.relu.default": _relu,
    "aten.relu6.default": _relu6,
    "aten.hardtanh.default": _relu6,
    "aten.hardswish.default": _function("F.hardswish", "self"),
    "aten.hardsigmoid.default": _fixed("F.hardsigmoid"),
    "aten.leaky_relu.default": _function("F.leaky_relu", "self", "negative_slope"),
    "aten.elu.default": _function("F.elu", "self", "alpha"),
    "aten.sigmoid.default": _fixed("torch.sigmoid"),
    "aten.tanh.default": _fixed("torch.tanh"),
    "aten.max_pool2d.default": _pool(
        "F.max_pool2d", "self", "kernel_size", "stride", "padding", "dilation", "ceil_mode"
    ),
    "aten.avg_pool2d.default": _pool(
        "F.avg_pool2d", "self", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
    "aten.adaptive_avg_pool2d.default": _function("F.adaptive_avg_pool2d", "self", "output_size"),
    "aten.mean.dim": _mean,
    "aten.upsample_nearest2d.vec": _upsample("nearest"),
    "aten.upsample_bilinear2d.vec": _upsample("bilinear"),
    "aten.flatten.using_ints": _function("torch.flatten", "self", "start_dim", "end_dim"),
    "aten.permute.default": _function("torch.permute", "self", "dims"),
    "aten.transpose.int": _function("torch.transpose", "self", "dim0", "dim1"),
    "aten.unsqueeze.default": _function("torch.unsqueeze", "self", "dim"),
    "aten.squeeze.dim": _function("torch.squeeze", "self", "dim"),
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten.dropout.default": _same,
    "aten.clone.default": _same,
}
