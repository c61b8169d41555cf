"""Source: Keras models in `.keras` and `.h5` files, of Keras 3 and, cured, of Keras 2."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgekitError, SourceError, ToolError
from edge.findings import Finding
from edge.sources import declared, keras_fake_quant, keras_file
from edge.sources.base import Declaration, LoadedSource
from edge.sources.keras_model import LoadedKeras
from edge.sources.sniff import sniff

_PACKAGES = ("tensorflow", "keras")


@dataclass(frozen=True)
class KerasSource:
    """Whole Keras models in a file."""

    kind: str = "keras"
    packages: tuple[str, ...] = _PACKAGES

    def matches(self, location: str) -> bool:
        """Tell whether the file is a `.keras` archive or HDF5."""
        return sniff(location) in ("keras", "hdf5")

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Open the model. Raises SourceError for weights alone, unknown classes, and a Lambda without trust."""
        path = Path(location)
        import_keras()
        model, findings = load_model(path, trust=declaration.trust)
        return LoadedKeras(model, declaration, digest=declared.file_digest(path), findings=findings, location=location)


def import_keras() -> Any:
    """Return keras on the TensorFlow backend. Raises ToolError where another backend was started in this process."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ToolError(
            f"Keras runs on its {keras.backend.backend()} backend in this process; the conversion needs tensorflow.",
            hint="Do not import keras with another backend before edgekit.",
        )
    return keras


def load_model(path: Path, *, trust: bool) -> tuple[Any, tuple[Finding, ...]]:
    """Return the model of a file with all its weights, and what had to be changed to load it."""
    config = keras_file.read_config(path)
    if (lambdas := keras_file.lambda_layers(config)) and not trust:
        raise SourceError(
            f"{path} carries Python code in its Lambda layers: {', '.join(lambdas)}.",
            hint="Run with --trust if you know where the file comes from, or replace them by Keras layers.",
        )
    keras_fake_quant.layers()  # registered: a model that edgekit trained has them
    plain, cast = keras_file.float32_policies(config)
    cured, dropped = keras_file.cure(plain, str(path))
    suffix = ".keras" if keras_file.is_zip(path) else ".h5"
    if not cast and not dropped and path.suffix in (suffix, ".hdf5"):
        return _open(path, path, config, trust=trust), ()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        copy = Path(folder) / f"model{suffix}"
        keras_file.write_with_config(path, cured, copy)
        return _open(copy, path, config, trust=trust), (*cast, *dropped)


def _open(path: Path, original: Path, config: dict[str, Any], *, trust: bool) -> Any:
    import keras

    try:
        model = keras.models.load_model(path, compile=False, safe_mode=not trust)
    except EdgekitError:
        raise
    except Exception as error:  # Keras raises what a foreign configuration leads to
        raise _cannot_load(original, config, error) from error
    if missing := keras_file.missing_weights(path, model):
        raise SourceError(
            f"{original}: {len(missing)} of {len(model.weights)} weights were not loaded: {', '.join(missing[:5])}.",
            hint="The architecture and the weights of the file do not belong together; save the model again.",
        )
    return model


def _cannot_load(path: Path, config: dict[str, Any], error: Exception) -> SourceError:
    text = str(error)
    if unknown := keras_file.unknown_classes(config):
        return SourceError(
            f"{path} uses classes that Keras does not have: {', '.join(unknown)}.",
            hint="Write a Python file that defines them and a function that returns the loaded model, "
            "and give file.py:function.",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    detail = next((line for line in lines if line.startswith("Exception encountered")), lines[0])
    return SourceError(
        f"Keras cannot load {path}: {type(error).__name__}: {detail[:400]}",
        hint="Load the file with the Keras version that wrote it and save it as .keras (HDF5 loses some operators).",
    )
