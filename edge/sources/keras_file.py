"""Keras model files: read their configuration, cure what Keras 3 no longer takes, prove that all weights arrived."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import SourceError
from edge.findings import Finding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# TorchModuleWrapper holds a pickle, TFSMLayer a path to a program of TensorFlow.
_CARRIES_CODE = ("Lambda", "TorchModuleWrapper", "TFSMLayer")
HOW_TO_SAVE = "Save the whole model: model.save('model.keras')."

# Arguments that only shape training or the first values of weights: dropping them cannot change inference.
_TRAINING_ONLY = ("initializers", "regularizers", "constraints")
# Class names of serialized values that are no classes of Keras.
_STRUCTURE = (
    "Functional",
    "__tuple__",
    "__tensor__",
    "__keras_tensor__",
    "__lambda__",
    "__slice__",
    "function",
    "Policy",
)
# Values that mean "not used" in every layer that had such an argument: groups=1, time_major=False, ragged=False, …
_NEUTRAL: tuple[Any, ...] = (None, False, 1, "", [], {})


def is_zip(path: Path) -> bool:
    """Tell a `.keras` archive from HDF5."""
    return zipfile.is_zipfile(path)


def read_config(path: Path) -> dict[str, Any]:
    """Return the architecture of a `.keras` or `.h5` file. Raises SourceError for weights without architecture."""
    try:
        text = _zip_config(path) if is_zip(path) else _hdf5_config(path)
        config = json.loads(text)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise SourceError(
            f"{path} is damaged or truncated: {type(error).__name__}: {error}.", hint="Save or copy the model again."
        ) from error
    if not isinstance(config, dict):
        raise SourceError(f"{path} holds no Keras architecture.", hint=HOW_TO_SAVE)
    return config


def _zip_config(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read("config.json").decode()


def _hdf5_config(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None:
            names = ", ".join(list(file)[:4])
            raise SourceError(
                f"{path} is HDF5 without a Keras model configuration (it holds {names}, …): weights alone, "
                "or another program's data.",
                hint=HOW_TO_SAVE,
            )
        return config.decode() if isinstance(config, bytes) else str(config)


def objects(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every serialized object below `config`, inner ones first."""
    if isinstance(config, dict):
        for value in config.values():
            yield from objects(value)
        if isinstance(config.get("class_name"), str) and isinstance(config.get("config"), dict):
            yield config
    elif isinstance(config, list):
        for value in config:
            yield from objects(value)


def lambda_layers(config: Any) -> tuple[str, ...]:
    """Return the names of the layers that carry code: Lambdas, and wrappers of what other frameworks pickled."""
    return tuple(str(o["config"].get("name", "?")) for o in objects(config) if o["class_name"] in _CARRIES_CODE)


def unknown_classes(config: Any) -> tuple[str, ...]:
    """Return the names of the classes that Keras does not have."""
    names = {o["class_name"]: None for o in objects(config) if not str(o.get("module")).startswith("keras")}
    return tuple(n for n in names if _find(n)[0] is None and n not in _STRUCTURE)


def _find(name: str) -> tuple[Any, str]:
    import keras

    for room in ("layers", *_TRAINING_ONLY, "dtype_policies", "models", "optimizers", "losses", "metrics"):
        found = getattr(getattr(keras, room, None), name, None)
        if found is not None:
            return found, room
    return None, ""


def cure(config: dict[str, Any], where: str) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Return the configuration without the arguments that Keras 3 refuses, with a finding for each kind.

    Only what Keras really refuses is touched. Raises SourceError for an argument whose value has a meaning.
    """
    cured = copy.deepcopy(config)
    dropped: dict[tuple[str, str], int] = {}
    for item in objects(cured):
        cls, room = _find(item["class_name"])
        if cls is None or room not in ("layers", *_TRAINING_ONLY) or _holds_layers(item["config"]):
            continue
        for argument in _refused(cls, item["config"]):
            value = item["config"].pop(argument)
            if room == "layers" and not any(value is n or value == n for n in _NEUTRAL):
                raise SourceError(
                    f"{where}: Keras 3 does not take {argument}={value!r} of the layer "
                    f"{item['config'].get('name', '?')!r} ({item['class_name']}), and it changes the result.",
                    hint="Load the model with the Keras version that wrote it and rebuild that layer.",
                )
            dropped[item["class_name"], argument] = dropped.get((item["class_name"], argument), 0) + 1
    findings = tuple(
        Finding(
            rule="KERAS_ARGUMENT_DROPPED",
            severity="info",
            op=name,
            message=f"Keras 3 does not know the argument {argument!r} of {name}; it was dropped {times} times.",
        )
        for (name, argument), times in sorted(dropped.items())
    )
    return cured, findings


def _holds_layers(config: dict[str, Any]) -> bool:
    return "layers" in config


def _refused(cls: Any, config: dict[str, Any]) -> list[str]:
    """Return the arguments that must go before `cls.from_config` takes the configuration, none if nothing helps."""
    if _accepts(cls, config):
        return []
    import inspect

    known = {"name", "dtype", "trainable", "batch_input_shape", "batch_shape", "input_shape", "activity_regularizer"}
    known = known if "Layer" in {c.__name__ for c in cls.__mro__} else set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            known |= set(inspect.signature(base.__init__).parameters)
    return [argument for argument in config if argument not in known]


def _accepts(cls: Any, config: dict[str, Any]) -> bool:
    try:
        cls.from_config(copy.deepcopy(config))
    except Exception:  # whatever a foreign configuration leads to: the load that follows reports it
        return False
    return True


def float32_policies(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """Return the configuration with half and double precision layers computing in float32, with a finding."""
    changed = copy.deepcopy(config)
    names = set()
    for item in objects(changed):
        dtype = item["config"].get("dtype")
        name = dtype["config"].get("name") if isinstance(dtype, dict) and "config" in dtype else dtype
        if isinstance(name, str) and any(part in name for part in ("float16", "float64")):
            names.add(name)
            item["config"]["dtype"] = "float32"
    if not names:
        return config, ()
    return changed, (
        Finding(
            rule="WEIGHTS_CAST",
            severity="info",
            message=f"The source computes in {', '.join(sorted(names))}; the program and its reference in float32.",
        ),
    )


def write_with_config(path: Path, config: dict[str, Any], target: Path) -> None:
    """Write a copy of a model file with another architecture, without training state."""
    text = json.dumps(config)
    if is_zip(path):
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
            for member in source.infolist():
                data = text.encode() if member.filename == "config.json" else source.read(member)
                archive.writestr(member, data)
        return
    import h5py

    shutil.copyfile(path, target)
    with h5py.File(target, "r+") as file:
        file.attrs["model_config"] = text
        for name in ("training_config",):
            if name in file.attrs:
                del file.attrs[name]


def missing_weights(path: Path, model: Any) -> tuple[str, ...]:
    """Return the paths of the model's variables whose values are nowhere in the file: they were not loaded."""
    stored: dict[tuple[int, ...], list[Array]] = {}
    for value in _stored_arrays(path):
        stored.setdefault(value.shape, []).append(value)
    missing = []
    digests: dict[tuple[tuple[int, ...], str], set[bytes]] = {}
    for variable in model.weights:
        if "seed_generator" in variable.path:
            continue
        value = np.asarray(variable.numpy())
        key = (value.shape, value.dtype.name)
        if key not in digests:
            digests[key] = {_hash(s.astype(value.dtype)) for s in stored.get(value.shape, [])}
        if _hash(value) not in digests[key]:
            missing.append(str(variable.path))
    return tuple(missing)


def _hash(value: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()


def _stored_arrays(path: Path) -> list[Array]:
    import h5py

    found: list[Array] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            found.append(np.asarray(item[()]))

    if not is_zip(path):
        with h5py.File(path, "r") as file:
            file.visititems(visit)
        return found
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r") as file:
        file.visititems(visit)
    return found
