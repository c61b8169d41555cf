"""Source: ONNX models."""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec, isolate
from edge.errors import EdgekitError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.signature import Layout, Signature
from edge.sources import declared, routes
from edge.sources.base import Declaration, LoadedSource
from edge.sources.onnx_file import Description, OnnxReference, describe, read, typed
from edge.sources.sniff import sniff
from edge.sources.torch_io import narrowed, program_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]


@dataclass(frozen=True)
class OnnxSource:
    """ONNX models in one file, or with external data beside it."""

    kind: str = "onnx"
    packages: tuple[str, ...] = ("onnx", "onnxruntime", "torch", "litert_torch")

    def matches(self, location: str) -> bool:
        """Tell whether the file begins as an ONNX ModelProto does."""
        return sniff(location) == "onnx"

    def load(self, location: str, declaration: Declaration) -> LoadedSource:
        """Open the model and convert it. Raises SourceError, ConversionError with what each route says."""
        path = Path(location)
        description = describe(read(path), declaration)
        return LoadedOnnx(path, description, declaration)


class LoadedOnnx:
    """An ONNX model: reference outputs by onnxruntime, a program by the first route that passes verification.

    With layouts kept the file itself says the signature, and the conversion waits until it is asked for.
    """

    kind = "onnx"

    def __init__(self, path: Path, description: Description, declaration: Declaration) -> None:
        self.path, self.description, self.declaration = path, description, declaration
        self._reference = OnnxReference(path, description)  # a model that onnxruntime refuses needs no conversion
        self._folder = Path(tempfile.mkdtemp(prefix="edgekit-onnx-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._carrier = self._folder / "carrier.tflite"
        self._route, self._failed = "", dict[str, EdgekitError]()
        self.tools: Mapping[str, str] = declared.versions("onnx", "onnxruntime")
        self.findings: tuple[Finding, ...] = tuple(
            f for i in description.free for f in declared.batch_finding(i.name, [-1 if i.open_batch else 1])
        )
        if declaration.layout == "keep":
            self.signature = self._own_signature()
        else:
            self._convert()

    def _own_signature(self) -> Signature:
        inputs = [
            declared.tensor(i.name, i.shape, program_dtype(i.dtype, i.name), i.layout) for i in self.description.free
        ]
        sample = {t.name: np.zeros(t.shape, t.dtype) for t in inputs}
        results = self._reference.run(sample)
        outputs = [
            declared.tensor(n, v.shape, program_dtype(v.dtype.name, n), _output_layout(v)) for n, v in results.items()
        ]
        wide = [(i.name, i.dtype) for i in self.description.free] + [(n, v.dtype.name) for n, v in results.items()]
        self.findings += tuple(f for name, dtype in wide for f in narrowed(name, dtype))
        return declared.signature(self._free(), inputs, outputs)

    def _free(self) -> Declaration:
        """Return the declaration for the program's own inputs: those without a fixed value."""
        by_position = {str(k): i.name for k, i in enumerate(self.description.inputs)}
        free = {i.name for i in self.description.free}
        named = {by_position.get(k, k): v for k, v in self.declaration.inputs.items()}
        return replace(self.declaration, inputs={n: v for n, v in named.items() if n in free}, outputs=())

    def _convert(self) -> None:
        """Find the layouts: those of the first route whose program passes verification on random inputs."""
        failed: dict[str, EdgekitError] = {}
        for route in routes.routes_of("onnx", "litert"):
            try:
                answer = self._attempt("attempt", {"carrier": str(self._carrier)}, route.name)
            except EdgekitError as error:
                if not failed and routes.is_users(error):
                    raise
                failed[route.name] = error
            else:
                self._route, self._failed = route.name, failed
                self._take(answer)
                self.findings += routes.route_finding(route.name, {n: e.message for n, e in failed.items()})
                return
        raise routes.all_failed(failed)

    def _attempt(
        self, stage: str, request: dict[str, Any], route: str, progress: Progress = no_progress
    ) -> dict[str, Any]:
        common = {"source": str(self.path.resolve()), "declaration": codec.to_json(self.declaration), "route": route}
        return isolate.call(
            f"edge.sources.onnx_routes:{stage}",
            {**common, **request},
            workdir=self._folder,
            name=f"onnx-{route}",
            progress=progress,
        )

    def _take(self, answer: Mapping[str, Any]) -> None:
        self.signature = codec.from_json(Signature, answer["signature"])
        known = {(f.rule, f.op) for f in self.findings}
        found = [codec.from_json(Finding, f) for f in answer["findings"]]
        self.findings += tuple(f for f in found if (f.rule, f.op) not in known)
        self.tools = {**self.tools, **answer["tools"]}
        self._reference = OnnxReference(
            self.path,
            self.description,
            turned_inputs=answer["turned_inputs"],
            turned_outputs=answer["turned_outputs"],
        )

    @functools.cached_property
    def digest(self) -> str:
        """The sha256 of the file and its external data."""
        return digest(self.path)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return onnxruntime's outputs by signature name, in the signature's layouts and dtypes."""
        return typed(self._reference.run(inputs), self.signature)

    def to_litert(self, path: Path, route: str = "") -> None:
        """Write the program of a route, without a name the one that passed first. Raises ConversionError."""
        if not self._carrier.is_file():
            self._convert()
        if route in self._failed:
            raise self._failed[route]
        if route in ("", self._route):
            shutil.copyfile(self._carrier, path)
            return
        # The layouts are settled by the route that passed first.
        self._attempt("attempt", {"carrier": str(path.resolve()), "signature": codec.to_json(self.signature)}, route)

    def to_exported(self, path: Path, progress: Progress = no_progress, route: str = "") -> tuple[Finding, ...]:
        """Write the exported carrier by a route, without a name by the first. Raises ConversionError."""
        request = {"carrier": str(path.resolve()), "signature": codec.to_json(self.signature)}
        name = route or routes.routes_of("onnx", "exported")[0].name
        answer = self._attempt("attempt_export", request, name, progress)
        self.tools = {**self.tools, **answer["tools"]}
        return tuple(codec.from_json(Finding, f) for f in answer["findings"])

    def first_difference(self, sample: Mapping[str, Array], route: str) -> str:
        """Return a sentence on the first operator that differs from onnxruntime's on an input of the signature."""
        stored = self._folder / "culprit.npz"
        np.savez(stored, *[np.asarray(sample[t.name]) for t in self.signature.inputs])
        request = {"inputs": str(stored), "signature": codec.to_json(self.signature)}
        where: str = self._attempt("culprit", request, route)["where"]
        return where


def _output_layout(value: Array) -> Layout:
    return "NCHW" if value.ndim == 4 and value.dtype.kind == "f" else "other"


def digest(path: Path) -> str:
    """Return the sha256 of an ONNX file, external data included."""
    import hashlib

    from edge.sources.onnx_file import import_onnx

    onnx = import_onnx()
    tensors = onnx.external_data_helper._get_all_tensors(onnx.load(str(path), load_external_data=False))
    names = {
        entry.value
        for t in tensors
        if t.data_location == t.EXTERNAL
        for entry in t.external_data
        if entry.key == "location"
    }
    total = hashlib.sha256(declared.file_digest(path).encode())
    for name in sorted(names):
        total.update(f"\0{name}\0{declared.file_digest(path.parent / name)}".encode())
    return total.hexdigest() if names else declared.file_digest(path)
