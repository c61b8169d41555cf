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
from edge.errors import ConversionError, EdgekitError, MissingPackageError, SourceError, UsageError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.signature import Layout, Signature
from edge.sources import declared
from edge.sources.base import Declaration, LoadedSource
from edge.sources.onnx_file import Description, OnnxReference, describe, read, typed
from edge.sources.sniff import sniff
from edge.sources.torch_io import narrowed, program_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# The routes of edge.sources.onnx_routes, in the order in which they are tried: `graph` is edgekit's own operators in
# PyTorch, then litert-torch or torch.export; `onnx2torch` that package, TorchScript and TS2EPConverter before the same.
ROUTES = ("graph", "onnx2torch")


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
        answer = self._first_that_works("attempt", {"carrier": str(self._carrier)})
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

    def to_litert(self, path: Path) -> None:
        """Write the program of the first route that passes verification. Raises ConversionError with all reasons."""
        if not self._carrier.is_file():
            self._convert()
        shutil.copyfile(self._carrier, path)

    def to_exported(self, path: Path, progress: Progress = no_progress) -> tuple[Finding, ...]:
        """Write the exported carrier by the first route that passes verification."""
        request = {"carrier": str(path.resolve()), "signature": codec.to_json(self.signature)}
        answer = self._first_that_works("attempt_export", request, progress)
        self.tools = {**self.tools, **answer["tools"]}
        return tuple(codec.from_json(Finding, f) for f in answer["findings"])

    def _first_that_works(
        self, stage: str, request: dict[str, Any], progress: Progress = no_progress
    ) -> dict[str, Any]:
        failed: dict[str, EdgekitError] = {}
        common = {"source": str(self.path.resolve()), "declaration": codec.to_json(self.declaration)}
        for route in ROUTES:
            try:
                answer = isolate.call(
                    f"edge.sources.onnx_routes:{stage}",
                    {**common, **request, "route": route},
                    workdir=self._folder,
                    name=f"onnx-{route}",
                    progress=progress,
                )
            except (UsageError, SourceError):
                raise
            except EdgekitError as error:
                if isinstance(error, MissingPackageError) and route == ROUTES[0]:
                    raise
                failed[route] = error
            else:
                self.findings += _route_finding(route, {r: e.message for r, e in failed.items()})
                return answer
        first = failed[ROUTES[0]]
        others = "; ".join(f"{route}: {error.message}" for route, error in list(failed.items())[1:])
        raise ConversionError(f"{first.message} The other routes failed as well: {others}", hint=first.hint) from first


def _output_layout(value: Array) -> Layout:
    return "NCHW" if value.ndim == 4 and value.dtype.kind == "f" else "other"


def _route_finding(route: str, failed: Mapping[str, str]) -> tuple[Finding, ...]:
    if not failed:
        return ()
    reasons = "; ".join(f"{name}: {text}" for name, text in failed.items())
    return (
        Finding(
            rule="ROUTE_CHOSEN",
            severity="info",
            message=f"The model was converted by the route {route}; others failed before it: {reasons}",
        ),
    )


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
