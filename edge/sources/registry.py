"""Find the source that opens a location: the built-in ones first, entry points only for what they do not know."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from edge.errors import SourceError, UsageError
from edge.sources.base import Declaration, LoadedSource, Source
from edge.sources.routes import routes_of
from edge.sources.sniff import Content, sniff, split_factory

ENTRY_POINT_GROUP = "edgekit.sources"

_BUILT_IN: dict[str, tuple[str, str]] = {
    "keras": ("edge.sources.keras", "KerasSource"),
    "torch": ("edge.sources.torch", "TorchSource"),
    "litert": ("edge.sources.litert", "LiteRTSource"),
    "onnx": ("edge.sources.onnx", "OnnxSource"),
    "saved-model": ("edge.sources.saved_model", "SavedModelSource"),
    "frozen-graph": ("edge.sources.frozen_graph", "FrozenGraphSource"),
    "torchscript": ("edge.sources.torchscript", "TorchScriptSource"),
    "hugging-face": ("edge.sources.hugging_face", "HuggingFaceSource"),
}
ACCEPTED = (
    "Keras .keras and .h5 with the whole model, PyTorch or JAX as file.py:factory, .pt2 (torch.export.save), "
    "TorchScript, ONNX, TensorFlow SavedModel folders and frozen .pb, Hugging Face folders, and float .tflite"
)
_NOT_YET: dict[Content, tuple[str, str]] = {
    "torch-lite": (
        "a PyTorch Mobile program (.ptl)",
        "It is compiled already; give file.py:factory that builds the module.",
    ),
    "torch-pickle": (
        "a file of torch.save (a state_dict or a pickled module), which has no graph",
        "Write a function that builds the module and loads this file into it, and give file.py:function.",
    ),
    "executorch": ("an ExecuTorch program (.pte)", "It is compiled already; give the PyTorch module or its .pt2."),
    "numpy": ("NumPy data, not a model", "Give data with --calibration or --evaluation."),
}


# Of each kind: what it is for a reader, the distributions that read it, the extra that brings them.
_ABOUT: dict[str, tuple[str, tuple[str, ...], str]] = {
    "keras": ("Keras .keras, .h5 and .hdf5 with the whole model", ("keras", "tensorflow"), "tensorflow"),
    "torch": ("PyTorch and Keras by file.py:factory; PyTorch .pt2", ("torch", "litert-torch"), "torch"),
    "litert": (
        "LiteRT .tflite: float, float16 or int8 weights; all of int8 with --dequantize",
        ("ai-edge-litert",),
        "litert",
    ),
    "onnx": ("ONNX .onnx, opset 7 and later", ("onnx", "onnxruntime", "torch", "litert-torch"), "onnx"),
    "saved-model": (
        "TensorFlow SavedModel folders, also of Keras 2 with its optimizer's slots",
        ("tensorflow",),
        "tensorflow",
    ),
    "frozen-graph": ("frozen TensorFlow graphs .pb", ("tensorflow",), "tensorflow"),
    "torchscript": ("TorchScript .pt and .jit", ("torch", "litert-torch"), "torch"),
    "hugging-face": (
        "Hugging Face folders (config.json and weights)",
        ("transformers", "torch", "litert-torch"),
        "transformers",
    ),
    "jax": ("JAX functions, Flax and Equinox modules by file.py:factory", ("jax", "tensorflow"), "jax"),
}
# Packages that a factory's own file imports: only models of theirs need them.
_OPTIONAL = {"onnx": ("onnx2torch",), "jax": ("flax", "equinox")}
# Distributions that a platform has under another name.
_ALSO = {"tensorflow": ("tensorflow-cpu", "tensorflow-macos", "tensorflow-intel")}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of source: what it is, its packages with the installed version (None: missing), their extra.

    `optional` packages are needed by some models only; `routes` names the ways to each carrier in their order.
    """

    kind: str
    what: str
    packages: Mapping[str, str | None]
    extra: str
    optional: Mapping[str, str | None] = field(default_factory=dict)
    routes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the kind as JSON-compatible data."""
        return {
            "kind": self.kind,
            "what": self.what,
            "packages": dict(self.packages),
            "optional": dict(self.optional),
            "routes": {carrier: list(names) for carrier, names in self.routes.items()},
            "ready": self.ready,
        }

    @property
    def ready(self) -> bool:
        """Whether every package is installed."""
        return None not in self.packages.values()


def kinds() -> tuple[Kind, ...]:
    """Return the built-in kinds, then those that other packages bring; no framework is imported."""
    own = [
        Kind(
            kind=kind,
            what=what,
            packages={p: _version(p) for p in packages},
            extra=extra,
            optional={p: _version(p) for p in _OPTIONAL.get(kind, ())},
            routes={c: tuple(r.name for r in routes_of(kind, c)) for c in ("litert", "exported")},
        )
        for kind, (what, packages, extra) in _ABOUT.items()
    ]
    found = [Kind(kind=e.name, what=f"by {e.value}", packages=_brought(e), extra="") for e in _plugins()]
    return (*own, *found)


@functools.cache  # looks into each installed package
def _plugins() -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=ENTRY_POINT_GROUP))


def _brought(entry: metadata.EntryPoint) -> dict[str, str | None]:
    return {entry.dist.name: entry.dist.version} if entry.dist else {}


def _version(distribution: str) -> str | None:
    for name in (distribution, *_ALSO.get(distribution, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def names() -> tuple[str, ...]:
    """Return the kinds of the built-in sources."""
    return tuple(_BUILT_IN)


def get(kind: str) -> Source:
    """Return the source of that kind; raise UsageError for an unknown one."""
    if kind in _BUILT_IN:
        module, name = _BUILT_IN[kind]
        source: Source = getattr(importlib.import_module(module), name)()
        return source
    for entry in _plugins():
        if entry.name == kind:
            return _from_entry_point(entry)
    raise UsageError(f"There is no source kind {kind!r}; accepted: {', '.join(_BUILT_IN)}.")


def _from_entry_point(entry: metadata.EntryPoint) -> Source:
    try:
        source: Source = entry.load()()
    except Exception as error:
        raise SourceError(
            f"The source plug-in {entry.name!r} ({entry.value}) cannot be loaded: {type(error).__name__}: {error}.",
            hint="Update or uninstall the package that brings it.",
        ) from error
    return source


def detect(location: str) -> Source:
    """Return the source that opens `location`, judged by its content.

    Raises UsageError for a missing file and SourceError for an unreadable, unknown or not yet supported one.
    """
    content = sniff(location)
    for kind in _BUILT_IN:
        if (source := get(kind)).matches(location):
            return source
    for entry in _plugins():
        if (source := _from_entry_point(entry)).matches(location):
            return source
    raise _unsupported(location, content)


def _unsupported(location: str, content: Content) -> Exception:
    if content in _NOT_YET:
        what, hint = _NOT_YET[content]
        return SourceError(f"{location} is {what}; accepted: {ACCEPTED}.", hint=hint)
    if content == "python":
        path = split_factory(location)
        return UsageError(f"{location} names no function.", hint=f"Write {path[0] if path else location}:make_model.")
    return SourceError(f"{location} is of no known kind; accepted: {ACCEPTED}.")


def load(location: str, declaration: Declaration | None = None) -> LoadedSource:
    """Open `location` in this process; imports its framework. Raises what `detect` and `Source.load` raise."""
    return detect(location).load(location, declaration or Declaration())
