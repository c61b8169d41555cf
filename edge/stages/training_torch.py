"""Fake quantization in a PyTorch module: its graph, batch normalisation folded, prepared by PT2E."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge.errors import ConversionError, MissingPackageError
from edge.sources.base import Declaration, LoadedSource
from edge.sources.torch_model import LoadedTorch
from edge.targets import torch_common, torch_fake_quant

_LARGEST_BATCH = 65536


class TorchTrainee:
    """`edge.stages.training.Trainee` of a PyTorch module. Called as the module is, on batches of any size.

    Batch normalisation is folded into the weights before it with the statistics that it has: what is trained is what
    runs on the device. A module whose graph fixes the batch is trained with the batch of its example inputs.
    """

    def __init__(self, loaded: Any, declaration: Declaration, per_tensor: Sequence[str]) -> None:
        self._loaded, self._declaration = loaded, declaration
        with torch_common.quiet():
            self.model = _prepare(_graph(loaded), per_tensor)

    def observe(self, samples: Iterator[dict[str, Any]]) -> None:
        """Run samples without rounding; ranges start from them."""
        import torch
        from torchao.quantization.pt2e import disable_fake_quant, enable_fake_quant

        self.model.apply(disable_fake_quant)
        with torch.no_grad():
            for inputs in samples:
                args, kwargs = self._loaded.arguments(inputs)
                self.model(*args, **kwargs)
        self.model.apply(enable_fake_quant)

    def settle(self) -> None:
        """Switch the observers of activations off; those of weights follow the weights."""
        from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

        for part in self.model.modules():
            if isinstance(part, FakeQuantizeBase) and "per_tensor_affine" in str(part.qscheme):
                part.disable_observer()

    def finish(self, workdir: Path) -> LoadedSource:
        """Return the trained graph with pairs of quantize and dequantize operators."""
        from torchao.quantization.pt2e import disable_observer
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        del workdir
        with torch_common.quiet():
            self.model.apply(disable_observer)
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
            graph = convert_pt2e(self.model, fold_quantize=False)
            torch_fake_quant.rewrite(graph)
        return LoadedTorch(graph, self._loaded.call, self._declaration, digest=self._loaded.digest, findings=())


def _graph(loaded: Any) -> Any:
    """Return the module's graph with an open batch where it has one."""
    import torch

    module, call = loaded.convertible, loaded.call
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    doubled = [torch.cat([t, t]) if t.dim() else t for t in call.tensors]
    attempts: list[tuple[Any, Any]] = [
        (call.arguments(doubled), {0: batch}),
        (call.arguments(call.tensors), None),
    ]
    failure: Exception | None = None
    for (args, kwargs), dims in attempts:
        shapes = None
        if dims is not None:
            shapes = _shapes(module, args, kwargs, dims)
        try:
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises dozens of kinds
            failure = error
            continue
        return program.module(check_guards=False)
    raise ConversionError(
        f"torch.export cannot trace the module for training: {torch_common.first_line(failure or Exception())}",
        hint="Build it with the recipe int8 first: the message there names the line.",
    )


def _shapes(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], dims: Mapping[int, Any]) -> dict[str, Any]:
    import torch
    from torch.utils import _pytree as pytree

    def of(leaf: Any) -> Any:
        return dims if isinstance(leaf, torch.Tensor) and leaf.dim() else None

    positional, named = pytree.tree_map(of, (tuple(args), dict(kwargs)))
    return {**dict(zip(_names(module, args), positional, strict=False)), **named}


def _names(module: Any, args: Sequence[Any]) -> list[str]:
    import inspect

    return list(inspect.signature(module.forward).parameters)[: len(args)]


def _prepare(graph: Any, per_tensor: Sequence[str]) -> Any:
    import torch

    try:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    except ImportError as error:
        raise MissingPackageError(
            f"Training a PyTorch module with fake quantization needs executorch and torchao: {error}.",
            hint="pip install 'edgekit[executorch]'",
        ) from error
    quantizer = XNNPACKQuantizer().set_global(_config(channel=True))
    if "FULLY_CONNECTED" in per_tensor:
        quantizer.set_operator_type(torch.ops.aten.linear.default, _config(channel=False))
    prepared = prepare_pt2e(graph, quantizer)
    for parameter in prepared.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return prepared


def _config(*, channel: bool) -> Any:
    import torch
    from torchao.quantization.pt2e import FakeQuantize, MovingAverageMinMaxObserver
    from torchao.quantization.pt2e.observer import MovingAveragePerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec

    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=2.0**-20),
    )
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric if channel else torch.per_tensor_symmetric,
        ch_axis=0 if channel else None,
        observer_or_fake_quant_ctr=FakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver if channel else MovingAverageMinMaxObserver,
            averaging_constant=1.0,  # weights are known: their range is that of now
            eps=2.0**-20,
        ),
    )
    return QuantizationConfig(activation, activation, weight, None, False)
