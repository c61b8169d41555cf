"""Quantizers for PT2E with edgekit's own number formats: XNNPACK static and dynamic, and weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.calibration.recipe import Granularity, Recipe
from edge.errors import QuantizationError
from edge.targets.executorch import simplify, weights

if TYPE_CHECKING:
    from edge.targets.executorch.delegates import Accept

# Smallest scale of weights. Larger ones (2^-12 is the framework's) cost small weights their resolution; a smaller one
# of a channel that is 0 throughout serves nothing.
_WEIGHT_EPS = 2.0**-20
# Position of the weights among an operator's arguments.
_WEIGHT_ARGUMENT = 1


def _weight(bits: int, granularity: Granularity, *, axis: int = 0, mse: bool = False) -> Any:
    """Return the spec of symmetric weights: [-127, 127] for 8 bits, [-8, 7] for 4 (XNNPACK packs two to a byte)."""
    import torch
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    channel = granularity == "channel"
    observers = weights.observer_classes() if mse else (PerChannelMinMaxObserver, MinMaxObserver)
    observer = observers[0 if channel else 1]
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=low,
        quant_max=high,
        qscheme=torch.per_channel_symmetric if channel else torch.per_tensor_symmetric,
        ch_axis=axis if channel else None,
        observer_or_fake_quant_ctr=observer.with_args(eps=_WEIGHT_EPS),
    )


def _activation(*, dynamic: bool) -> Any:
    import torch
    from torchao.quantization.pt2e import MinMaxObserver, PlaceholderObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    # The observer of static activations only marks the place: calibrate.install puts the recipe's estimator there.
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=dynamic,
        observer_or_fake_quant_ctr=(PlaceholderObserver if dynamic else MinMaxObserver).with_args(eps=2.0**-12),
    )


def _config(recipe: Recipe, bits: int) -> Any:
    from torchao.quantization.pt2e.quantizer import QuantizationConfig

    dynamic = recipe.scheme == "dynamic"
    activation = _activation(dynamic=dynamic)
    weight = _weight(bits, recipe.granularity, mse=recipe.weights == "mse")
    return QuantizationConfig(activation, None if dynamic else activation, weight, None, False)


def xnnpack_quantizer(recipe: Recipe, accept: Accept) -> Any:
    """Return XNNPACK's quantizer: int8 static or dynamic; with 4-bit weights linear layers have 4 and the rest 8.

    Raises QuantizationError for what XNNPACK does not take.
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    if recipe.scheme == "dynamic" and recipe.granularity == "tensor":
        raise QuantizationError(
            "XNNPACK takes no per-tensor weights with dynamic activations.", hint="Use granularity channel."
        )

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            if recipe.scheme == "dynamic":
                _annotate_skipped(model, _config(recipe, 8), accept)
            else:
                _annotate_pads(model, _config(recipe, 8).input_activation, accept)
            return model

    quantizer = Quantizer()
    if recipe.weight_bits == 4:
        quantizer.set_operator_type(torch.ops.aten.linear.default, _config(recipe, 4))
    return quantizer.set_global(_config(recipe, 8)).set_filter_function(accept)


def _annotate_skipped(model: Any, config: Any, accept: Accept) -> None:
    """Annotate 2-D convolutions whose only reader is a ReLU: the framework's dynamic quantizer leaves them in float.

    XNNPACK takes no dynamic convolution that is depthwise, and no transposed one with groups.
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import change_quantization_config
    from executorch.backends.xnnpack.utils.utils import is_depthwise_conv
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    aten = torch.ops.aten
    # Where the groups stand among the arguments, and the axis of the output channels of the weights.
    places = {aten.conv2d.default: (6, 0), aten.conv_transpose2d.input: (6, 1)}
    for node in model.graph.nodes:
        if node.op != "call_function" or node.target not in places or not accept(node):
            continue
        done = node.meta.get("quantization_annotation")
        shape = tuple(node.args[_WEIGHT_ARGUMENT].meta["val"].shape)
        place, axis = places[node.target]
        groups = node.args[place] if len(node.args) > place else 1
        if (done and done._annotated) or is_depthwise_conv(shape, 1, False) or (axis and groups != 1):
            continue
        weight = change_quantization_config(config.weight, ch_axis=axis) if axis else config.weight
        specs = {node.args[0]: config.input_activation, node.args[_WEIGHT_ARGUMENT]: weight}
        node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)


def _annotate_pads(model: Any, activation: Any, accept: Accept) -> None:
    """Give paddings with zeros, and what only moves values after them, the steps of what they pad.

    XNNPACK pads integers then. Left in float are paddings between float operators.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import propagate_annotation
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec

    for node in model.graph.nodes:
        done = node.meta.get("quantization_annotation")
        if (done and done._annotated) or not simplify.pads_with_zeros(node) or not accept(node):
            continue
        source = node.args[0]
        before = source.meta.get("quantization_annotation")
        readers = [user.meta.get("quantization_annotation") for user in node.users]
        if before and before.output_qspec:
            given = shared = SharedQuantizationSpec(source)
        elif any(reader and node in reader.input_qspec_map for reader in readers):
            given, shared = activation, SharedQuantizationSpec((source, node))
        else:
            continue
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map={source: given}, output_qspec=shared, _annotated=True
        )
    propagate_annotation(model)


def weights_quantizer(recipe: Recipe, accept: Accept) -> Any:
    """Return a quantizer that stores the weights of linear layers, convolutions and embeddings in 8 bits.

    They are dequantized at run time; activations stay float.
    """
    import torch
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, Quantizer

    aten = torch.ops.aten
    axis_of = {
        aten.linear.default: (_WEIGHT_ARGUMENT, 0),
        aten.conv1d.default: (_WEIGHT_ARGUMENT, 0),
        aten.conv2d.default: (_WEIGHT_ARGUMENT, 0),
        aten.conv_transpose2d.input: (_WEIGHT_ARGUMENT, 1),
        aten.embedding.default: (0, 0),
    }

    class WeightsQuantizer(Quantizer):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            for node in model.graph.nodes:
                if node.op != "call_function" or node.target not in axis_of or not accept(node):
                    continue
                argument, axis = axis_of[node.target]
                weight = node.args[argument]
                if weight.op != "get_attr":
                    continue
                spec = _weight(8, recipe.granularity, axis=axis)
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={weight: spec}, _annotated=True
                )
            return model

        def validate(self, model: Any) -> None:
            del model

    return WeightsQuantizer()
