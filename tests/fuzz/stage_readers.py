"""What runs in a child process of edgekit, here without one: frameworks' readers, and edgekit's use of what they read.

A foreign exception is right here as far as the child turns it into words; a crash, a hang and a loss of memory are not.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge import errors, isolate_worker
from edge.errors import DataError, EdgekitError
from edge.sources.base import Declaration, InputDeclaration
from tests.fuzz import mutators
from tests.fuzz.harness import Reader
from tests.tflite_builder import GraphBuilder

ROOT = Path(__file__).resolve().parents[2]
Read = Callable[[Path], object]


def made(maker: str) -> Callable[[], list[bytes]]:
    """Return the corpus that tests/fuzz/frameworks.py makes in a process of its own: frameworks dislike being forked."""  # noqa: E501

    def make() -> list[bytes]:
        command = [sys.executable, "-m", "tests.fuzz.frameworks", maker]
        return [subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout]

    return make


def staged(read: Read) -> Read:
    """Let a foreign exception become the error that the parent of the child would raise."""

    def guarded(path: Path) -> object:
        try:
            return read(path)
        except EdgekitError:
            raise
        except Exception as error:
            raise errors.from_json(isolate_worker._describe(error)) from error

    return guarded


def unpacked(read: Read) -> Read:
    """Let a zip stand for the folder of its members."""

    def guarded(path: Path) -> object:
        folder = path.parent / "unpacked" / path.stem
        folder.mkdir(parents=True)
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DataError(f"the harness's own archive: {error}") from error
        return read(folder)

    return guarded


# --- LiteRT to PyTorch -------------------------------------------------------------------------------------------


def networks() -> list[bytes]:
    """Return float flatbuffers of many kinds of operators, channel-last images and vectors."""
    random = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.input("x", (1, 8, 8, 3))
    x = b.conv(x, random.normal(size=(4, 1, 1, 3)), random.normal(size=4), fusedActivationFunction=1)
    x = b.op("MAX_POOL_2D", [x], (1, 4, 4, 4))
    y = b.op("TRANSPOSE", [x, b.const("order", [0, 2, 1, 3])], (1, 4, 4, 4))
    x = b.op("ADD", [x, y], (1, 4, 4, 4))
    x = b.op("PAD", [x, b.const("pads", [[0, 0], [1, 1], [1, 1], [0, 0]])], (1, 6, 6, 4))
    x = b.op("AVERAGE_POOL_2D", [x], (1, 3, 3, 4))
    x = b.op("MEAN", [x, b.const("axes", [1, 2])], (1, 4))
    x = b.op("RESHAPE", [x, b.const("shape", [2, 2])], (2, 2))
    x = b.op("CONCATENATION", [x, x], (2, 4))
    x = b.op("GATHER", [x, b.const("rows", [1])], (1, 4))
    b.output(b.op("SOFTMAX", [x], (1, 4), name="y"), "y")
    v = GraphBuilder()
    a = v.input("a", (2, 3))
    a = v.fully_connected(a, random.normal(size=(4, 3)), random.normal(size=4))
    a = v.op("LEAKY_RELU", [v.op("MUL", [a, v.const("c", [0.5])], (2, 4))], (2, 4))
    v.output(v.op("LOGISTIC", [a], (2, 4)), "o")
    return [b.build(), v.build()]


def _litert_torch(path: Path) -> None:
    from edge.sources import litert_graph
    from edge.sources.litert import LiteRTSource
    from edge.targets.litert import flatbuffer

    loaded: Any = LiteRTSource().load(str(path), Declaration(dequantize=True))
    model = flatbuffer.load(loaded.program)
    litert_graph.check_results(litert_graph.build(model), model)


# --- models of other frameworks ----------------------------------------------------------------------------------


def _hugging_face(folder: Path) -> None:
    from edge.sources.hugging_face import HuggingFaceSource

    shape = InputDeclaration(shape=(1, 8))
    HuggingFaceSource().load(str(folder), Declaration(inputs={"input_ids": shape}))


def _source(name: str, **inputs: tuple[int, ...]) -> Read:
    def read(path: Path) -> object:
        from edge.sources import registry

        declared = {key: InputDeclaration(shape=shape) for key, shape in inputs.items()}
        return registry.get(name).load(str(path), Declaration(inputs=declared))

    return read


def _onnx(path: Path) -> None:
    from edge.sources import onnx_file

    onnx_file.describe(onnx_file.read(path), Declaration())


def _package(folder: Path) -> None:
    from edge.targets.coreml.inspect import inspect_package

    inspect_package(folder)


def _coreml_metadata(path: Path) -> None:
    from edge.apps import coreml_metadata

    about = coreml_metadata.Described(description="d", features={"x": "an input"}, user={"k": "v"})
    coreml_metadata.describe(path.read_bytes(), about)


def _core_ml_model() -> list[bytes]:
    """Return a model with a description of inputs, outputs and metadata, as the fields are on the wire."""
    from edge.apps.coreml_metadata import _field

    end = _field(1, b"x") + _field(2, b"an input") + _field(3, _field(5, b"\x0a\x02\x01\x08"))
    held = _field(1, b"short") + _field(2, b"1") + _field(100, _field(1, b"key") + _field(2, b"value"))
    described = _field(1, end) + _field(10, end) + _field(100, held)
    return [b"\x08\x07" + _field(2, described) + _field(502, bytes(40))]


def _pte(path: Path) -> None:
    from edge.targets import registry

    registry.runtime("executorch").inspect(path, None, {})


def _reader(name: str, read: Read, corpus: Any, mutate: mutators.Mutator, file: str) -> Reader:
    return Reader(name=name, corpus=corpus, mutate=mutate, read=staged(read), file=file, frameworks=True)


_M = mutators
READERS = (
    _reader("litert-torch", _litert_torch, networks, _M.flatbuffer, "m.tflite"),
    _reader("hugging-face", unpacked(_hugging_face), made("hugging-face"), _M.members, "hub.zip"),
    _reader("mlpackage", unpacked(_package), made("mlpackage"), _M.members, "m.mlpackage"),
    Reader(name="coreml-metadata", corpus=_core_ml_model, mutate=_M.raw, read=_coreml_metadata),
    _reader("pte", _pte, made("pte"), _M.raw, "m.pte"),
    _reader("onnx", _onnx, made("onnx"), _M.raw, "m.onnx"),
    _reader("frozen-graph", _source("frozen-graph"), made("frozen-graph"), _M.raw, "m.pb"),
    _reader("saved-model", unpacked(_source("saved-model")), made("saved-model"), _M.members, "m.zip"),
)
