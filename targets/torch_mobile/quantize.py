"""Quantize a rebuilt module for the qnnpack kernels: static int8 with the project's own ranges, or dynamic int8."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge.calibration import ranges as estimators
from edge.calibration.ranges import Estimator, NonFiniteError
from edge.calibration.recipe import Recipe
from edge.errors import DataError, QuantizationError, ToolError
from edge.findings import Finding
from edge.isolate import Progress
from edge.targets.torch_common import first_line, quiet
from edge.targets.torch_mobile import branches, feeding, saturation
from edge.targets.torch_mobile.rebuild import Rebuilt, rebuild

if TYPE_CHECKING:
    from collections.abc import Iterator

ENGINE = "qnnpack"
# The kernels requantize with scale ratios below 1; finer steps than this can leave that range.
_LEAST_SCALE = 2.0**-23


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A module with quantized kernels, what was found, and counts for the report."""

    module: Any
    findings: tuple[Finding, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def engine() -> Iterator[None]:
    """Use the qnnpack kernels, the ones a phone has; raise ToolError where this PyTorch comes without them."""
    import torch

    backend = torch.backends.quantized
    if ENGINE not in backend.supported_engines:
        raise ToolError(
            f"This PyTorch has no {ENGINE} kernels; it has {', '.join(backend.supported_engines)}.",
            hint="Build on Linux or macOS with PyTorch from PyPI.",
        )
    before = backend.engine
    backend.engine = ENGINE
    try:
        yield
    finally:
        backend.engine = before


def dynamic(rebuilt: Rebuilt) -> Quantized:
    """Give linear and recurrent layers int8 weights (linear: per channel), activations quantized at run time.

    Raises QuantizationError where the model has no such layer.
    """
    import torch
    from torch.ao import quantization as ao

    chosen: dict[Any, Any] = {
        torch.nn.Linear: ao.per_channel_dynamic_qconfig,
        torch.nn.LSTM: ao.default_dynamic_qconfig,
        torch.nn.GRU: ao.default_dynamic_qconfig,
    }
    layers = [m for m in rebuilt.module.modules() if type(m) in chosen]
    if not layers:
        raise QuantizationError(
            "The recipe dynamic changed nothing: PyTorch Mobile has it for linear and recurrent layers only, "
            "and the model has none.",
            hint="Use the recipe int8 or float32, or `--runtime executorch`.",
        )
    left = sum(isinstance(m, torch.nn.modules.conv._ConvNd) for m in rebuilt.module.modules())
    with engine(), quiet():
        module = ao.quantize_dynamic(rebuilt.module, chosen)
    found = (_float_convolutions(left),) if left else ()
    return Quantized(module=module, findings=found, details={"quantized_layers": len(layers)})


def _float_convolutions(count: int) -> Finding:
    return Finding(
        rule="CONVOLUTIONS_FLOAT",
        severity="info",
        message=f"{count} convolutions stay float32: PyTorch Mobile has no dynamic form of them.",
        fix="Use the recipe int8, or `--runtime executorch`.",
    )


def static(
    program: Any, recipe: Recipe, calibrate: Callable[[], Iterable[Sequence[Any]]], progress: Progress
) -> Quantized:
    """Quantize weights and activations of an ExportedProgram to 8 bits with ranges by the recipe's estimator.

    `calibrate` yields the input tensors of each calibration sample anew at every call. Weights are symmetric int8, per
    output channel but for transposed convolutions; activations affine uint8. Recurrent layers get the dynamic form.
    Raises QuantizationError, DataError for NaN.
    """
    import torch
    from torch.ao.quantization.quantize_fx import convert_fx

    example = next(iter(calibrate()), None)
    if example is None:
        raise DataError("The calibration data has no samples.", hint="Give representative samples with --calibration.")
    with engine(), quiet(), torch.no_grad():
        rebuilt, prepared = _prepared(program, recipe, tuple(example))
        samples = _observe(prepared, estimators.for_recipe(recipe), calibrate, progress)
        progress("quantizing", None)
        try:
            module = convert_fx(prepared)
        except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
            raise QuantizationError(
                f"PyTorch cannot quantize the model for {ENGINE}: {first_line(error)}",
                hint="Keep the operator named here float with an override of the recipe.",
            ) from error
    return _static_result(rebuilt, recipe, module, samples)


def _prepared(program: Any, recipe: Recipe, example: tuple[Any, ...]) -> tuple[Rebuilt, Any]:
    """Return the rebuilt module and its form with observers: one that clamps follows every saturating ReLU."""
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.quantize_fx import prepare_fx

    custom = PrepareCustomConfig().set_non_traceable_module_classes([branches.opaque()])
    clamped: set[str] = set()
    while True:
        rebuilt = rebuild(program, recipe.overrides, saturate=True, clamped=clamped)
        before = rebuilt.module.graph
        prepared = prepare_fx(rebuilt.module, _mapping(recipe), example, prepare_custom_config=custom)
        ends, unable = saturation.observers(before, prepared, rebuilt.saturating)
        if not unable:
            for end in ends:
                end.register_forward_pre_hook(saturation.clamp)
            feeding.observe(prepared)
            return rebuilt, prepared
        clamped |= unable


def _mapping(recipe: Recipe) -> Any:
    import torch
    from torch.ao import quantization as ao

    per_tensor = ao.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, eps=_LEAST_SCALE)
    per_channel = ao.PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, ch_axis=0, eps=_LEAST_SCALE
    )
    activation = ao.MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=False, eps=_LEAST_SCALE)
    plain = ao.QConfig(activation=activation, weight=per_tensor)
    chosen = plain if recipe.granularity == "tensor" else ao.QConfig(activation=activation, weight=per_channel)
    mapping = ao.get_default_qconfig_mapping(ENGINE).set_global(chosen)
    for transposed in (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d):
        mapping.set_object_type(transposed, plain)
    for recurrent in (torch.nn.LSTM, torch.nn.GRU):
        mapping.set_object_type(recurrent, ao.default_dynamic_qconfig)
    return mapping


def _observe(
    prepared: Any, estimator: Estimator, calibrate: Callable[[], Iterable[Sequence[Any]]], progress: Progress
) -> int:
    """Run the samples, estimate the range that each observer sees, and hand it to the observer; return their number."""
    from torch.ao.quantization import MinMaxObserver

    observers = {n: m for n, m in prepared.named_modules() if type(m) is MinMaxObserver}
    count = 0
    with ExitStack() as hooks:
        for name, observer in observers.items():
            hooks.callback(observer.register_forward_pre_hook(_watch(estimator, name)).remove)
        for number in range(estimator.passes):
            estimator.start_pass(number)
            count = 0
            for tensors in calibrate():
                _forward(prepared, tensors)
                count += 1
                progress(f"calibrating on {count} samples", None)
    for name, (low, high) in estimator.limits().items():
        observers[name].min_val.copy_(observers[name].min_val.new_tensor(low))
        observers[name].max_val.copy_(observers[name].max_val.new_tensor(high))
    return count


def _watch(estimator: Estimator, name: str) -> Callable[[Any, Any], None]:
    def hook(observer: Any, args: Any) -> None:  # noqa: ARG001
        estimator.update(name, args[0].detach().float().contiguous().numpy())

    return hook


def _forward(prepared: Any, tensors: Sequence[Any]) -> None:
    try:
        prepared(*tensors)
    except NonFiniteError as error:
        raise DataError(
            f"An activation of the model is {error.value} on a calibration sample.",
            hint="Look for NaN or infinite values in the calibration data, and for masks of -inf in the model.",
        ) from error


def _static_result(rebuilt: Rebuilt, recipe: Recipe, module: Any, samples: int) -> Quantized:
    names = [_kind(module, node) for node in module.graph.nodes if node.op in ("call_module", "call_function")]
    done = [n for n in names if n.startswith("quantized.")]
    if not done:
        raise QuantizationError(
            f"The recipe {recipe.name} changed nothing: no operator of the model has a quantized form.",
            hint="Use the recipe float32, or `--runtime executorch`.",
        )
    kept = sorted({n for n in names if not n.startswith(("quantized.", "shape."))})
    details = {"quantized_operators": len(done), "operator_kinds_left_float": kept, "calibration_samples": samples}
    return Quantized(module=module, findings=tuple(_findings(rebuilt, recipe, module, kept)), details=details)


# Operators that move values, convert at a boundary or read an attribute: they compute nothing in float.
_NEUTRAL = (
    "quantize_per_tensor", "dequantize", "getitem", "reshape", "flatten", "permute", "transpose", "unsqueeze",
    "squeeze", "select", "slice", "expand", "unbind", "split_with_sizes", "clone", "to",
    "cat", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean", "interpolate", "relu", "ReLU", "ReLU6",
    "contiguous", "zeros", "zeros_like", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "size", "sym_size",
)  # fmt: skip


def _kind(module: Any, node: Any) -> str:
    """Return `quantized.NAME` of an operator that computes in integers, `shape.NAME` of a neutral one, else NAME."""
    if node.op == "call_module":
        held = module.get_submodule(node.target)
        home, name = type(held).__module__, type(held).__name__
    else:
        home = getattr(node.target, "__module__", "") or str(node.target)
        name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
        home = f"{home} {node.target}"
    if "quantized" in home and "intrinsic" not in name:
        return f"quantized.{name}"
    return f"shape.{name}" if name in _NEUTRAL else name


def _findings(rebuilt: Rebuilt, recipe: Recipe, module: Any, kept: Sequence[str]) -> Iterable[Finding]:
    import torch.ao.nn.quantized.dynamic as dynamic_layers

    if platform.machine() not in ("aarch64", "arm64"):
        # Measured with PyTorch 2.13 on x86-64: 2 to 3 times slower than float32.
        yield Finding(
            rule="KERNELS_FOR_ARM",
            severity="info",
            message=f"{ENGINE} is written for ARM: on this host ({platform.machine()}) int8 is slower than float32, "
            "which says nothing about a phone.",
            fix="Measure the latency on the phone.",
        )
    if any(isinstance(m, (dynamic_layers.LSTM, dynamic_layers.GRU)) for m in module.modules()):
        yield Finding(
            rule="RECURRENT_DYNAMIC",
            severity="info",
            message="Recurrent layers quantize their activations at run time: PyTorch has no static form of them.",
        )
    floats = [name for name in kept if name not in ("LSTM", "GRU", "Scripted")]
    if floats:
        yield Finding(
            rule="OPERATORS_LEFT_FLOAT",
            severity="warning",
            message=f"These operators have no quantized kernel here and run in float32: {', '.join(floats)}.",
            fix="Expect less speed-up; `--runtime executorch` covers more.",
        )
    if rebuilt.branches:
        yield Finding(
            rule="BRANCHES_FLOAT",
            severity="warning",
            message=f"The branches of {rebuilt.branches} conditions or loops stay float32.",
            fix="Compute both sides and choose with torch.where.",
        )
    for override in recipe.overrides:
        if override not in rebuilt.matched:
            yield Finding(
                rule="OVERRIDE_UNUSED",
                severity="warning",
                message=f"The override of operator {override.operator!r}, tensor {override.tensor!r} matches nothing.",
                fix="Operators are ATen names (conv2d), tensors the names of the exported graph's nodes.",
            )
