"""The Core ML runtime: `.mlpackage` programs by coremltools, run by Core ML on a Mac."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.calibration.recipe import Recipe
from edge.errors import ConfigError, DataError, QuantizationError, UsageError
from edge.findings import Finding
from edge.isolate import Progress
from edge.targets.base import Carrier, Inspection, Model, Program, Session, Target
from edge.targets.coreml import compress, convert, inspect, session
from edge.targets.coreml import contract as contracts
from edge.targets.coreml.contract import Contract
from edge.targets.coreml.convert import Converted
from edge.targets.torch_common import (
    CONTRACT,
    Exported,
    ExportedSession,
    example_shapes,
    load_exported,
    open_carrier,
    save_exported,
)

if TYPE_CHECKING:
    from edge.calibration.data import Dataset
    from edge.signature import Signature

_FILE = "model.mlpackage"
_FIELDS = ("author", "license", "version", "short_description")
_DEFAULT_TARGET = {"int8": "iOS17"}


class CoreML:
    """`edge.targets.base.Runtime` for Core ML: exported program in, ML program package (a folder) out.

    Kernel sets: `coreml` is the Mac's own, `torch` the package's weights in PyTorch, `auto` the best that is here.
    """

    name = "coreml"
    carrier: Carrier = "exported"
    suffix = ".mlpackage"
    recipes: tuple[str, ...] = ("float32", "float16", "weight-only", "int8")
    kernel_sets: tuple[str, ...] = ("auto", "coreml", "torch")

    def build(
        self, model: Model, recipe: Recipe, target: Target, samples: Dataset | None, workdir: Path, progress: Progress
    ) -> Program:
        """Write the package and, beside it, `emulated.pt2`: the same weights in the form that runs off a Mac.

        `target.options["coreml"]`: `minimum_deployment_target` (iOS16), `author`, `license`, `version`,
        `short_description`. Raises ConversionError with the reason of every route, QuantizationError.
        """
        self._refuse(model, recipe)
        options = _options(target)
        exported = load_exported(model.path, model.signature)
        contract, unfit = contracts.contract_of(_fixed(exported))
        progress("converting to Core ML", None)
        minimum = options.get("minimum_deployment_target", _DEFAULT_TARGET.get(recipe.scheme, "iOS16"))
        made = convert.convert(exported, contract, minimum=minimum, half=recipe.scheme != "float32")
        final, count = _compressed(made, recipe, contract, samples, workdir, progress)
        path = workdir / _FILE
        fields = {k: options[k] for k in _FIELDS if k in options}
        convert.save(final, path, {CONTRACT: contracts.dump(contract)}, fields)
        reopened, contract = session.read_package(path)
        described = inspect.check(reopened.get_spec(), contract)
        held = compress.stored(final) if count else ()
        matched, unmatched = compress.emulate(exported.program, held, recipe)
        emulated = workdir / session.EMULATED
        save_exported(exported.program, exported.signature, emulated)
        return Program(
            path=path,
            signature=contract.signature,
            recipe=recipe,
            quantizer="none" if recipe.scheme in ("float32", "float16") else "coremltools",
            tools={name: importlib.metadata.version(name) for name in ("coremltools", "torch")},
            extra_files=(emulated,),
            findings=tuple(_findings(made, exported, contract, unfit, unmatched)),
            details={
                **described,
                "route": made.route,
                "routes_failed": dict(made.failures),
                "features": dict(contract.features),
                "classifier_output": contract.classifier,
                "image_inputs": sorted(contract.images),
                "weights_quantized": len(held),
                "weights_emulated": matched,
                "not_run": [] if sys.platform == "darwin" else list(session.NOT_RUN),
            },
        )

    def inspect(self, path: Path, target: Target | None, options: Mapping[str, Any]) -> Inspection:  # noqa: ARG002
        """Read the package's operators and features; every platform can."""
        return inspect.inspect_package(path)

    def open(self, path: Path, *, kernels: str, threads: int) -> Session:
        """Open the package. `threads` limits the emulation only: Core ML chooses its own.

        Raises SourceError for what is no package, DeviceError for `coreml` without a Mac.
        """
        if kernels not in self.kernel_sets:
            raise UsageError(f"The kernel set {kernels!r} is unknown; accepted: {', '.join(self.kernel_sets)}.")
        _, contract = session.read_package(path)
        if kernels == "coreml" or (kernels == "auto" and sys.platform == "darwin"):
            return session.CoreMLSession(contract, session.predictor(path))
        import torch

        torch.set_num_threads(threads)
        return session.emulated(path, contract)

    def open_carrier(self, path: Path) -> ExportedSession:
        """Open the float carrier. Raises SourceError."""
        return open_carrier(path)

    def _refuse(self, model: Model, recipe: Recipe) -> None:
        if model.carrier != self.carrier:
            raise QuantizationError(f"Core ML builds from the exported carrier, not from {model.carrier}.")
        if recipe.name not in self.recipes:  # the name, not the kind: no refinement of int8 is made here
            raise QuantizationError(
                f"The Core ML runtime does not make {recipe.name}; accepted: {', '.join(self.recipes)}.",
                hint="weight-only has int8 weights with one scale per channel.",
            )
        if recipe.overrides:
            raise QuantizationError(
                "The Core ML runtime takes no overrides of single operators.", hint="Remove them from the recipe."
            )
        if recipe.scheme == "int8":
            compress.refuse_activations()


def _options(target: Target) -> dict[str, str]:
    given = dict(target.options.get("coreml", {}))
    accepted = ("minimum_deployment_target", *_FIELDS)
    if wrong := [k for k, v in given.items() if k not in accepted or not isinstance(v, str)]:
        raise ConfigError(f"options.coreml: {', '.join(wrong)}: accepted are strings {', '.join(accepted)}.")
    return given


def _fixed(exported: Exported) -> Signature:
    shapes = example_shapes(exported)
    inputs = tuple(replace(t, shape=s) for t, s in zip(exported.signature.inputs, shapes, strict=True))
    return exported.signature.with_tensors(inputs, exported.signature.outputs)


def _compressed(
    made: Converted, recipe: Recipe, contract: Contract, samples: Dataset | None, workdir: Path, progress: Progress
) -> tuple[Any, bool]:
    """Return the model after the recipe, and whether it has integer weights."""
    if recipe.scheme in ("float32", "float16"):
        return made.model, False
    progress("quantizing", None)
    if recipe.scheme == "weight-only":
        return compress.weights(made.model), True
    if samples is None:
        raise DataError(
            "The recipe int8 needs calibration data and none was given.", hint="Give it with --calibration."
        )
    float_package = workdir / "float.mlpackage"
    convert.save(made.model, float_package, {}, {})
    with convert.tools() as ct:
        loaded = ct.models.MLModel(str(float_package))

    def fed() -> Iterator[Mapping[str, Any]]:
        for sample in samples:
            yield session.features(contract, sample.inputs)

    return compress.weights(compress.activations(loaded, fed())), True


def _findings(
    made: Converted, exported: Exported, contract: Contract, unfit: tuple[str, ...], unmatched: int
) -> Iterator[Finding]:
    if sys.platform != "darwin":
        yield Finding(
            rule="CORE_ML_NOT_RUN",
            severity="warning",
            message=f"Only the structure was checked: Core ML runs on macOS and iOS, and this is {sys.platform}.",
            fix="Run `edgekit check ARTIFACT` on a Mac.",
        )
    for name in unfit:
        yield Finding(
            rule="PREPROCESSING_OUTSIDE",
            severity="info",
            op=name,
            message=f"The preprocessing of {name!r} is no single scale with a bias per channel of an image: "
            "the input takes preprocessed floats.",
            fix="Use one std for all channels, or preprocess in the app.",
        )
    if contract.classifier:
        yield Finding(
            rule="CLASSIFIER_VALUES",
            severity="info",
            op=contract.classifier,
            message=f"The app reads {contract.classifier!r} as {contracts.PROBABILITIES}: the model's values by label.",
        )
    if unmatched:
        yield Finding(
            rule="WEIGHTS_NOT_EMULATED",
            severity="warning",
            message=f"{unmatched} quantized weights are stored in another layout than the source's (recurrent layers): "
            "what runs off a Mac has them unquantized.",
            fix="Judge the accuracy on a Mac.",
        )
    if made.route == "trace" and any(-1 in t.shape for t in exported.signature.inputs):
        yield Finding(
            rule="SHAPES_BAKED",
            severity="warning",
            message="Dynamic sizes of the exported program become those of its example inputs.",
            fix="Declare the sizes that are wanted.",
        )
