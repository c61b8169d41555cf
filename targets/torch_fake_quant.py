"""Fake quantization in PyTorch: whatever form it was trained in becomes quantize and dequantize operators.

Forms: modules of torch.ao and torchao (`FakeQuantize`, fused or not, and the layers of torch.ao.nn.qat that hold one),
the operators `torch.fake_quantize_per_tensor_affine` and `..._per_channel_affine`, and programs of convert_pt2e, whose
weights may be stored as integers. Both carriers take the pairs: LiteRT's as QUANTIZE and DEQUANTIZE, ExecuTorch's as
they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from edge.errors import ConversionError
from edge.findings import Finding

_HINT = "Train it with 8-bit fake quantization, or give the float module."
_FAKE = "fake_quantize_per_"
# Widths of [low, high] that int8 holds: 256 steps, or 255 (symmetric weights).
_STEPS = (254, 255)


def operators() -> Any:
    """Return the namespace of quantize and dequantize operators, registered."""
    import torch
    import torch.ao.quantization.fx._decomposed

    return torch.ops.quantized_decomposed


# --- modules -------------------------------------------------------------------------------------------------------


def freeze(module: Any) -> tuple[Any, tuple[Finding, ...]]:
    """Return a module whose fake quantization no longer observes, its scales as they were learned.

    Modules without any are returned as they are. Raises ConversionError for widths other than 8 bits.
    """
    found = [name for name, part in module.named_modules() if _is_fake(part)]
    if not found:
        return module, ()
    if all(name.endswith("weight_fake_quant") for name in found):
        raise ConversionError(
            f"Only weights are fake-quantized ({len(found)} of them), no activation: int8 needs scales of both.",
            hint="Prepare it with activations too (a dtype that the backend configuration of prepare_qat_fx accepts), "
            "or give the float module.",
        )
    frozen = copy.deepcopy(module)
    for name, part in list(frozen.named_modules(remove_duplicate=False)):
        if _folds(part):
            _replace(frozen, name, _folded(part))
    for name, part in list(frozen.named_modules(remove_duplicate=False)):
        if _is_fake(part):
            _replace(frozen, name, _constant(part, name))
    for name, part in frozen.named_modules(remove_duplicate=False):
        if _is_observer(part):
            raise ConversionError(
                f"{name!r} still observes ({type(part).__name__}): the module was prepared and never trained.",
                hint="Convert it, or give the float module.",
            )
    return frozen.eval(), (
        Finding(
            rule="FAKE_QUANTIZED",
            severity="info",
            op=found[0],
            message=f"The module has {len(found)} fake-quantized tensors; their scales are taken as learned.",
        ),
    )


def _is_fake(part: Any) -> bool:
    return any(c.__name__ == "FakeQuantizeBase" for c in type(part).__mro__)


def _is_observer(part: Any) -> bool:
    return any(c.__name__ == "ObserverBase" for c in type(part).__mro__)


def _folds(part: Any) -> bool:
    """Tell a convolution or linear layer of quantization-aware training that holds its batch normalisation."""
    return hasattr(part, "weight_fake_quant") and getattr(part, "bn", None) is not None


def _replace(root: Any, name: str, part: Any) -> None:
    if name:
        root.set_submodule(name, part)


def _constant(part: Any, name: str) -> Any:
    import torch

    channel = "per_channel" in str(part.qscheme)
    scale, zero = (v.detach() for v in part.calculate_qparams()) if _unset(part) else (part.scale, part.zero_point)
    low, high = int(part.quant_min), int(part.quant_max)
    if high - low not in _STEPS:
        raise ConversionError(f"{name!r} was trained for {high - low + 1} steps; accepted: 8 bits.", hint=_HINT)
    shift = -128 if low >= 0 else 0
    axis = int(getattr(part, "ch_axis", 0)) if channel else None
    scale, zero = scale.detach().float().reshape(-1), zero.detach().to(torch.int64).reshape(-1) + shift
    if not int(part.fake_quant_enabled.reshape(-1)[0]):
        return torch.nn.Identity()
    return pair(scale, zero, axis, (low + shift, high + shift))


def _unset(part: Any) -> bool:
    return not hasattr(part, "scale")


def pair(scale: Any, zero: Any, axis: int | None, limits: tuple[int, int]) -> Any:
    """Return a module that quantizes to int8 and dequantizes: scale and zero point [1], or [C] along `axis`."""
    import torch

    q = operators()

    class Pair(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", scale.clone())
            self.register_buffer("zero_point", zero.clone())
            self.one = (float(scale[0]), int(zero[0]))

        def forward(self, values: Any) -> Any:
            if axis is None:
                settings = (*self.one, *limits, torch.int8)
                return q.dequantize_per_tensor.default(q.quantize_per_tensor.default(values, *settings), *settings)
            channels = (self.scale, self.zero_point, axis, *limits, torch.int8)
            return q.dequantize_per_channel.default(q.quantize_per_channel.default(values, *channels), *channels)

    return Pair()


def _folded(part: Any) -> Any:
    """Return the convolution with its batch normalisation folded into weights, as they were fake-quantized."""
    import torch

    bn = part.bn
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    shape = [1] * part.weight.dim()
    shape[0] = -1
    bias = part.bias if part.bias is not None else torch.zeros_like(bn.running_mean)
    plain = copy.deepcopy(part)
    folded = torch.nn.Parameter((part.weight * factor.reshape(shape)).detach(), requires_grad=False)
    offset = torch.nn.Parameter(((bias - bn.running_mean) * factor + bn.bias).detach(), requires_grad=False)
    relu = "ReLU" in type(part).__name__

    class Folded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight_fake_quant = plain.weight_fake_quant
            self.weight, self.bias = folded, offset
            self.inner = [plain]  # not a submodule: only its way to convolve

        def forward(self, values: Any) -> Any:
            weight = self.weight_fake_quant(self.weight)
            inner = self.inner[0]
            if hasattr(inner, "_conv_forward"):
                made = inner._conv_forward(values, weight, self.bias)
            else:
                made = torch.nn.functional.linear(values, weight, self.bias)
            return torch.relu(made) if relu else made

    return Folded()


# --- graphs --------------------------------------------------------------------------------------------------------


def marks(graph: Any) -> bool:
    """Tell whether a graph (`torch.fx`) has fake quantization in any form."""
    return any(_FAKE in str(n.target) or "quantized_decomposed" in str(n.target) for n in graph.nodes)


def activations(graph: Any) -> int:
    """Return how many values other than stored weights a graph of pairs quantizes."""
    quantizers = [n for n in graph.nodes if n.op == "call_function" and _called(n, "quantize_per_tensor")]
    return sum(n.args[0].op not in ("get_attr",) for n in quantizers)


def split_readers(module: Any) -> int:
    """Give each reader of a dequantized value a dequantize operator of its own, in place; return how many were added.

    Values stay the same. Readers are the users of the node, one of which keeps the first operator.
    """
    added = 0
    for node in [n for n in module.graph.nodes if _called(n, "dequantize_per_tensor")]:
        for user in list(node.users)[1:]:
            with module.graph.inserting_before(user):
                user.replace_input_with(node, module.graph.node_copy(node))
            added += 1
    module.recompile()
    return added


def _called(node: Any, name: str) -> bool:
    return f"quantized_decomposed.{name}." in str(node.target)


def rewrite(module: Any) -> int:
    """Bring all fake quantization of a graph module to pairs, in place; return how many it has.

    Scales and zero points become constants, integer weights become float ones with a pair behind them.
    Raises ConversionError for widths other than 8 bits and scales that are computed.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if _FAKE in str(node.target):
            _from_fake(module, node)
        elif _called(node, "dequantize_per_tensor") or _called(node, "dequantize_per_channel"):
            _normal(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return sum(_called(n, "dequantize_per_tensor") or _called(n, "dequantize_per_channel") for n in module.graph.nodes)


def constant(module: Any, node: Any) -> Any:
    """Return the value of a constant argument: a number, or a tensor held by the module, through simple operators."""
    import torch

    if isinstance(node, (int, float)):
        return torch.tensor([node])
    if not isinstance(node, torch.fx.Node):
        return None
    if node.op == "get_attr":
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value.detach()
    if node.op != "call_function" or node.target in (torch.ops.aten.rand.default, torch.ops.aten.randn.default):
        return None
    held = [constant(module, a) if isinstance(a, torch.fx.Node) else a for a in node.args]
    return None if any(h is None for h in held) else node.target(*held, **dict(node.kwargs))


def _settings(module: Any, node: Any, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    import torch

    scale, zero = (constant(module, a) for a in arguments[:2])
    if scale is None or zero is None:
        raise ConversionError(
            f"The scale of {node.name!r} is computed while the module runs; a program has fixed scales.",
            hint="Switch observers off after training, or convert the module.",
        )
    return scale.float().reshape(-1), zero.to(torch.int64).reshape(-1)


def _limits(node: Any, low: int, high: int) -> tuple[int, int, int]:
    """Return the limits as int8 and the shift of the zero point that goes with them."""
    if high - low not in _STEPS:
        raise ConversionError(f"{node.name!r} was trained for {high - low + 1} steps; accepted: 8 bits.", hint=_HINT)
    shift = -128 if low >= 0 else 0
    return low + shift, high + shift, shift


def _from_fake(module: Any, node: Any) -> None:
    channel = "per_channel" in str(node.target)
    rest = list(node.args[3:])
    axis = int(rest.pop(0)) if channel else None
    if "tensor_qparams" in str(node.target) and len(rest) > 2:
        enabled = constant(module, rest.pop(0))  # the form that scales held by tensors are lowered to
        if enabled is not None and not bool(enabled.reshape(-1)[0]):
            raise ConversionError(f"{node.name!r} is fake quantization that is switched off.", hint=_HINT)
    low, high, shift = _limits(node, int(rest[0]), int(rest[1]))
    scale, zero = _settings(module, node, node.args[1:3])
    made = _insert(module, node, node.args[0], scale, zero + shift, axis, (low, high))
    if "cachemask" in str(node.target):
        for user in list(node.users):
            user.replace_all_uses_with(made)
    else:
        node.replace_all_uses_with(made)


def _normal(module: Any, node: Any) -> None:
    """Give a dequantize operator constant int8 settings, and a float source where its integers are stored ones."""
    import torch

    channel = _called(node, "dequantize_per_channel")
    scale, zero = _settings(module, node, node.args[1:3])
    rest = list(node.args[3:])
    axis = int(rest.pop(0)) if channel else None
    low, high, shift = _limits(node, int(rest[0]), int(rest[1]))
    source, before = node.args[0], constant(module, node.args[0])
    if source.op == "call_function" and ("quantize_per_" in str(source.target)) and "decomposed" in str(source.target):
        floats = source.args[0]
    elif before is not None and not before.is_floating_point():
        floats = _stored(module, node, before, scale, zero, axis)
    else:
        return  # integers that an operator computes: what only moves them stays as it is
    settled = rest[2] == torch.int8 and not isinstance(node.args[1], torch.fx.Node)
    if settled and before is None:
        return
    node.replace_all_uses_with(_insert(module, node, floats, scale, zero + shift, axis, (low, high)))


def _stored(module: Any, node: Any, stored: Any, scale: Any, zero: Any, axis: int | None) -> Any:
    shape = [1] * stored.dim()
    if axis is not None:
        shape[axis] = -1
    values = (stored.float() - zero.float().reshape(shape)) * scale.reshape(shape)
    name = register(module, f"_{node.name}_float", values)
    with module.graph.inserting_before(node):
        return module.graph.get_attr(name)


def register(module: Any, name: str, value: Any) -> str:
    """Give a module a constant under a name like this one and return the name that it has."""
    name = name.replace(".", "_")
    while hasattr(module, name):
        name += "_"
    module.register_buffer(name, value.detach().clone())
    return name


def _insert(
    module: Any, node: Any, source: Any, scale: Any, zero: Any, axis: int | None, limits: tuple[int, int]
) -> Any:
    import torch

    q, graph = operators(), module.graph
    settings: tuple[Any, ...]
    with graph.inserting_before(node):
        if axis is None:
            settings = (float(scale[0]), int(zero[0]), *limits, torch.int8)
            stored = graph.call_function(q.quantize_per_tensor.default, (source, *settings))
            return graph.call_function(q.dequantize_per_tensor.default, (stored, *settings))
        scales = graph.get_attr(register(module, f"_{node.name}_scale", scale))
        zeros = graph.get_attr(register(module, f"_{node.name}_zero", zero))
        settings = (scales, zeros, axis, *limits, torch.int8)
        stored = graph.call_function(q.quantize_per_channel.default, (source, *settings))
        return graph.call_function(q.dequantize_per_channel.default, (stored, *settings))


def learned(module: Any) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield name of the source and scales of each pair of a rewritten graph module."""
    for node in module.graph.nodes:
        if _called(node, "quantize_per_tensor") or _called(node, "quantize_per_channel"):
            scale, _ = _settings(module, node, node.args[1:3])
            yield node.args[0].name, tuple(float(s) for s in scale)
