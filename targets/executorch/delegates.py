"""The delegates of ExecuTorch: what each can take, which packages it needs, its partitioner and its quantizer."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.calibration.recipe import Recipe
from edge.errors import ConfigError, MissingPackageError, ToolError
from edge.targets.executorch import partition

# Tells whether a node of the graph may be quantized.
Accept = Callable[[Any], bool]
Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Delegate:
    """One backend.

    `backend` is the id that a `.pte` names, None for the portable kernels. A recipe that is not in `recipes` is
    refused. `needs` maps an importable module to the command that brings it; `sdk` is the environment variable with the
    folder of an SDK, and what to do without it. `half` tells that float16 means a program that computes in float16
    throughout, ends excepted; `overrides` that its quantizer leaves out single operators.
    """

    name: str
    backend: str | None
    recipes: tuple[str, ...]
    partitioners: Callable[[Options, Recipe], list[Any]]
    quantizer: Callable[[Options, Recipe, Accept], Any] | None = None
    needs: Mapping[str, str] | None = None
    sdk: tuple[str, str] | None = None
    half: bool = False
    overrides: bool = False

    def check(self) -> None:
        """Raise MissingPackageError where what it needs is not there."""
        # Before any import: without its SDK Qualcomm's module would try to download it.
        if self.sdk and not os.environ.get(self.sdk[0]):
            raise MissingPackageError(
                f"The ExecuTorch delegate {self.name} needs an SDK, and {self.sdk[0]} is not set.", hint=self.sdk[1]
            )
        for module, command in (self.needs or {}).items():
            try:
                importlib.import_module(module)
            except Exception as error:  # SDK modules fail with whatever their loader raises
                raise MissingPackageError(
                    f"The ExecuTorch delegate {self.name} needs {module}, which cannot be imported: {_first(error)}",
                    hint=command,
                ) from error


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def chosen(options: Options) -> tuple[Delegate, ...]:
    """Return the delegates of a target's `[options.executorch]`, in order; the first one decides how to quantize.

    Raises ConfigError for an unknown name, MissingPackageError where a package is absent.
    """
    found = _named(options)
    for delegate in found:
        delegate.check()
    return found


def leading(options: Options) -> Delegate:
    """Return the delegate that decides how to quantize, whether its packages are here or not. Raises ConfigError."""
    return _named(options)[0]


def _named(options: Options) -> tuple[Delegate, ...]:
    names = options.get("delegates", ("xnnpack",))
    if unknown := [n for n in names if n not in DELEGATES]:
        raise ConfigError(
            f"options.executorch.delegates names {', '.join(map(repr, unknown))}; accepted: {', '.join(DELEGATES)}."
        )
    return tuple(DELEGATES[n] for n in names) or (DELEGATES["portable"],)


def _none(options: Options, recipe: Recipe) -> list[Any]:  # noqa: ARG001
    return []


def _xnnpack(options: Options, recipe: Recipe) -> list[Any]:
    from executorch.backends.xnnpack.partition import xnnpack_partitioner as xnnpack

    del options
    if recipe.scheme == "dynamic":
        # Dynamically quantized operators in subgraphs of their own first, what is left in float after them.
        return [xnnpack.XnnpackDynamicallyQuantizedPartitioner(), xnnpack.XnnpackPartitioner()]
    return [xnnpack.XnnpackPartitioner(configs=partition.configs())]


def _xnnpack_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    from edge.targets.executorch import schemes

    del options
    return schemes.xnnpack_quantizer(recipe, accept)


def _weights_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    from edge.targets.executorch import schemes

    del options
    return schemes.weights_quantizer(recipe, accept)


def _coreml(options: Options, recipe: Recipe) -> list[Any]:
    import coremltools as ct
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    single = recipe.scheme == "float32" or (recipe.io == "float32" and options.get("precision") == "float32")
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, str(options.get("minimum_deployment_target", "iOS17"))),
        compute_precision=ct.precision.FLOAT32 if single else ct.precision.FLOAT16,
    )
    return [CoreMLPartitioner(compile_specs=specs)]


def _coreml_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    if recipe.scheme == "weight-only":
        return _weights_quantizer(options, recipe, accept)
    import coremltools as ct
    import torch
    from executorch.backends.apple.coreml.quantizer import CoreMLQuantizer

    del accept
    quantization = ct.optimize.torch.quantization
    return CoreMLQuantizer(
        quantization.LinearQuantizerConfig(
            global_config=quantization.ModuleLinearQuantizerConfig(
                quantization_scheme="symmetric",
                activation_dtype=torch.quint8,
                weight_dtype=torch.qint8,
                weight_per_channel=recipe.granularity == "channel",
            )
        )
    )


def _vulkan(options: Options, recipe: Recipe) -> list[Any]:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    del options
    return [VulkanPartitioner({"force_fp16": True} if recipe.scheme == "float16" else {})]


def _vulkan_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    from executorch.backends.vulkan.quantizer import vulkan_quantizer as vulkan

    del options
    config = vulkan.get_symmetric_quantization_config(is_dynamic=recipe.scheme == "dynamic")
    quantizer = vulkan.VulkanQuantizer().set_global(config)
    quantizer.filter_fn = accept
    return quantizer


_ACCELERATORS = (
    *(f"ethos-u55-{n}" for n in (32, 64, 128, 256)),
    *(f"ethos-u65-{n}" for n in (256, 512)),
    *(f"ethos-u85-{n}" for n in (128, 256, 512, 1024, 2048)),
)


def _ethos_spec(options: Options) -> Any:
    from executorch.backends.arm.ethosu import EthosUCompileSpec

    keys = ("system_config", "memory_mode")
    accelerator = str(options.get("accelerator", "ethos-u55-128"))
    if accelerator not in _ACCELERATORS:
        raise ConfigError(
            f"options.executorch.ethos-u.accelerator is {accelerator!r}; accepted: {', '.join(_ACCELERATORS)}."
        )
    return EthosUCompileSpec(accelerator, **{k: str(options[k]) for k in keys if k in options})


def _ethos(options: Options, recipe: Recipe) -> list[Any]:
    from executorch.backends.arm.ethosu import EthosUPartitioner

    del recipe
    return [EthosUPartitioner(_ethos_spec(options))]


def _ethos_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config

    del accept
    config = get_symmetric_quantization_config(is_per_channel=recipe.granularity == "channel")
    return EthosUQuantizer(_ethos_spec(options)).set_global(config)


def _cortex_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    from executorch.backends.cortex_m.quantizer.quantizer import CortexMQuantizer

    del options, recipe, accept
    # Explicit: graphs are channel-first here, and CMSIS-NN takes channel-last.
    return CortexMQuantizer(use_explicit_layout=True)


def _qualcomm(options: Options, recipe: Recipe) -> list[Any]:
    try:
        from executorch.backends.qualcomm.partition.qnn_partitioner import QnnPartitioner
        from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset
        from executorch.backends.qualcomm.utils import utils as qnn

        chipset = getattr(QcomChipset, str(options.get("chipset", "SM8550")))
        backend = qnn.generate_htp_compiler_spec(use_fp16=recipe.scheme != "int8")
        return [QnnPartitioner(qnn.generate_qnn_executorch_compiler_spec(soc_model=chipset, backend_options=backend))]
    except AttributeError as error:
        raise ConfigError(f"options.executorch.qualcomm.chipset is unknown to this ExecuTorch: {error}.") from error
    except Exception as error:
        raise ToolError(
            f"The Qualcomm delegate cannot start: {_first(error)}",
            hint="Install the Qualcomm AI Engine Direct SDK and set QNN_SDK_ROOT to its folder.",
        ) from error


def _qualcomm_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    from executorch.backends.qualcomm.quantizer.quantizer import QnnQuantizer

    del options, recipe, accept
    return QnnQuantizer()


def _mediatek(options: Options, recipe: Recipe) -> list[Any]:
    from executorch.backends.mediatek import NeuropilotPartitioner
    from executorch.exir.backend.backend_details import CompileSpec

    del recipe
    platform = str(options.get("platform", "mt6989"))
    return [NeuropilotPartitioner([CompileSpec("platform-config", platform.encode())])]


def _mediatek_quantizer(options: Options, recipe: Recipe, accept: Accept) -> Any:
    from executorch.backends.mediatek import NeuropilotQuantizer, Precision

    del options, recipe, accept
    quantizer = NeuropilotQuantizer()
    quantizer.setup_precision(Precision.A8W8)
    return quantizer


_ARM_PACKAGES = "pip install --no-deps ethos-u-vela==5.1.0 tosa-tools==2026.5.0 (without --no-deps they replace numpy)"

# Adding a delegate is adding an entry.
DELEGATES: Mapping[str, Delegate] = {
    d.name: d
    for d in (
        Delegate(
            name="xnnpack",
            backend="XnnpackBackend",
            recipes=("float32", "float16", "dynamic", "dynamic-4", "int8"),
            partitioners=_xnnpack,
            quantizer=_xnnpack_quantizer,
            half=True,
            overrides=True,
        ),
        Delegate(
            name="coreml",
            backend="CoreMLBackend",
            recipes=("float32", "float16", "weight-only", "int8"),
            partitioners=_coreml,
            quantizer=_coreml_quantizer,
            needs={"coremltools": "pip install coremltools"},
        ),
        Delegate(
            name="vulkan",
            backend="VulkanBackend",
            recipes=("float32", "float16", "dynamic"),
            partitioners=_vulkan,
            quantizer=_vulkan_quantizer,
            overrides=True,
        ),
        Delegate(
            name="ethos-u",
            backend="EthosUBackend",
            recipes=("int8",),
            partitioners=_ethos,
            quantizer=_ethos_quantizer,
            needs={"ethosu.vela": _ARM_PACKAGES, "tosa_serializer": _ARM_PACKAGES},
        ),
        Delegate(
            name="cortex-m",
            backend=None,
            recipes=("int8",),
            partitioners=_none,
            quantizer=_cortex_quantizer,
            needs={"tosa_serializer": _ARM_PACKAGES},
        ),
        Delegate(
            name="qualcomm",
            backend="QnnBackend",
            recipes=("float16", "int8"),
            partitioners=_qualcomm,
            quantizer=_qualcomm_quantizer,
            sdk=(
                "QNN_SDK_ROOT",
                "Install the Qualcomm AI Engine Direct SDK (qpm.qualcomm.com) and set QNN_SDK_ROOT to its folder.",
            ),
        ),
        Delegate(
            name="mediatek",
            backend="NeuropilotBackend",
            recipes=("float16", "int8"),
            partitioners=_mediatek,
            quantizer=_mediatek_quantizer,
            needs={
                "mtk_converter": "Install mtk_converter and mtk_neuron of MediaTek's NeuroPilot Express SDK "
                "(neuropilot.mediatek.com), then build again."
            },
        ),
        Delegate(
            name="portable",
            backend=None,
            recipes=("float32", "weight-only"),
            partitioners=_none,
            quantizer=_weights_quantizer,
            overrides=True,
        ),
    )
}
