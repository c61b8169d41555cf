"""Run a Core ML package: on a Mac by Core ML, elsewhere in the last form that PyTorch can run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import DataError, DeviceError, SourceError
from edge.targets.base import Mode
from edge.targets.coreml import contract as contracts
from edge.targets.coreml.contract import Contract
from edge.targets.coreml.convert import tools
from edge.targets.torch_common import ExportedSession, first_line, load_exported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.signature import Signature

    Array = NDArray[np.generic]

EMULATED = "emulated.pt2"
NOT_RUN = (
    "Core ML's compiler",
    "Core ML's kernels (macOS and iOS only): PyTorch ran the package's weights in float32 arithmetic",
)
Predict = Callable[[dict[str, Any]], Mapping[str, Any]]


def features(contract: Contract, inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Return a session's inputs as Core ML features: Pillow images of image inputs, else arrays. Raises DataError."""
    made: dict[str, Any] = {}
    for spec in contract.signature.inputs:
        if spec.name not in inputs:
            given = ", ".join(map(repr, sorted(inputs))) or "none"
            raise DataError(f"Input {spec.name!r} is missing; given: {given}.")
        values = np.asarray(inputs[spec.name])
        if spec.name not in contract.images:
            made[contract.features[spec.name]] = values.astype(spec.dtype, copy=False)
            continue
        from PIL import Image

        made[contract.features[spec.name]] = Image.fromarray(contracts.pixels(spec, contract.images[spec.name], values))
    return made


def arrays(contract: Contract, found: Mapping[str, Any]) -> dict[str, Array]:
    """Return Core ML's outputs as arrays by signature name; a classifier's dictionary in the order of the labels."""
    made: dict[str, Array] = {}
    for spec in contract.signature.outputs:
        if spec.name == contract.classifier:
            values = found[contracts.PROBABILITIES]
            made[spec.name] = np.asarray([[values[label] for label in contract.signature.labels]], spec.dtype)
        else:
            made[spec.name] = np.asarray(found[contract.features[spec.name]]).astype(spec.dtype, copy=False)
    return made


class CoreMLSession:
    """An opened package, run by `predict`; arrays by signature name, image inputs as preprocessed floats."""

    mode: Mode = "measured"
    kernels = "coreml"
    not_run: tuple[str, ...] = ()

    def __init__(self, contract: Contract, predict: Predict) -> None:
        self.signature: Signature = contract.signature
        self._contract, self._predict = contract, predict

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises DataError for a missing input, DeviceError where Core ML fails."""
        fed = features(self._contract, inputs)
        try:
            found = self._predict(fed)
        except Exception as error:  # Core ML's errors arrive as RuntimeError or NSError proxies
            raise DeviceError(f"Core ML failed: {type(error).__name__}: {first_line(error)}") from error
        return arrays(self._contract, found)


class EmulatedSession:
    """The package's weights, run by PyTorch: `mode` and `not_run` say what that does not prove."""

    mode: Mode = "emulated"
    kernels = "torch"
    not_run: tuple[str, ...] = NOT_RUN

    def __init__(self, contract: Contract, inner: ExportedSession) -> None:
        self.signature: Signature = contract.signature
        self._inner = inner

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Raises DataError for a wrong name, shape or dtype."""
        found = self._inner.run(inputs)
        return {t.name: found[t.name].astype(t.dtype, copy=False) for t in self.signature.outputs}


def read_package(path: Path) -> tuple[Any, Contract]:
    """Return an `MLModel` that is not loaded, and its contract. Raises SourceError."""
    model = load_model(path)
    return model, contracts.load(model.user_defined_metadata, path.name)


def load_model(path: Path) -> Any:
    """Return an `MLModel` that is not loaded into Core ML. Raises SourceError for what is no package."""
    with tools() as ct:
        try:
            return ct.models.MLModel(str(path), skip_model_load=True)
        except Exception as error:  # a damaged package raises whatever its parts lead to
            raise SourceError(
                f"{path.name} is no Core ML package: {type(error).__name__}: {first_line(error)}",
                hint="Build it again.",
            ) from error


def predictor(path: Path) -> Predict:
    """Return Core ML's own `predict` of the package. Raises DeviceError where there is no Core ML."""
    if sys.platform != "darwin":
        raise DeviceError(
            f"Core ML runs on macOS and iOS only; this is {sys.platform}.",
            hint="Run `edgekit check ARTIFACT` on a Mac, or choose the kernels `torch`: its weights in PyTorch.",
        )
    with tools() as ct:
        try:
            made: Predict = ct.models.MLModel(str(path)).predict
        except Exception as error:  # compiling a package fails with the system's own words
            raise DeviceError(f"Core ML cannot load {path.name}: {first_line(error)}") from error
    return made


def emulated(path: Path, contract: Contract) -> EmulatedSession:
    """Return the session of the file `emulated.pt2` beside the package. Raises DeviceError where it is absent."""
    beside = path.parent / EMULATED
    if not beside.is_file():
        raise DeviceError(
            f"{path.name} cannot be run here: Core ML is absent, and so is {EMULATED} beside the package.",
            hint="Run `edgekit check ARTIFACT` on a Mac.",
        )
    return EmulatedSession(contract, ExportedSession(load_exported(beside)))
