"""Source: ONNX models."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec, isolate
from edge.errors import ConversionError, EdgekitError, MissingPackageError, SourceError, UsageError
from edge.findings import Finding
from edge.signature import Signature
from edge.sources import declared
from edge.sources.base import Declaration, LoadedSource
from edge.sources.onnx_file import Description, OnnxReference, describe, read, typed
from edge.sources.sniff import sniff

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

# The attempts of edge.sources.onnx_routes, in order.
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
    """An ONNX model: reference outputs by onnxruntime, a program by the first route that passes verification."""

    kind = "onnx"

    def __init__(self, path: Path, description: Description, declaration: Declaration) -> None:
        self.path, self.description, self.declaration = path, description, declaration
        OnnxReference(path, description)  # a model that onnxruntime refuses needs no conversion
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-onnx-", ignore_cleanup_errors=True)
        self._carrier = Path(self._folder.name) / "carrier.tflite"
        answer, failed = _first_that_works(path, declaration, self._carrier)
        self.signature = codec.from_json(Signature, answer["signature"])
        self.tools: Mapping[str, str] = {**answer["tools"], **declared.versions("onnx", "onnxruntime")}
        self.findings: tuple[Finding, ...] = (
            *(f for i in description.free for f in declared.batch_finding(i.name, [-1 if i.open_batch else 1])),
            *(codec.from_json(Finding, f) for f in answer["findings"]),
            *_route_finding(answer["route"], failed),
        )
        self._reference = OnnxReference(
            path,
            description,
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
        """Write the program of the route that passed verification."""
        shutil.copyfile(self._carrier, path)


def _first_that_works(path: Path, declaration: Declaration, carrier: Path) -> tuple[dict[str, Any], dict[str, str]]:
    failed: dict[str, EdgekitError] = {}
    for route in ROUTES:
        request = {
            "source": str(path.resolve()),
            "declaration": codec.to_json(declaration),
            "route": route,
            "carrier": str(carrier),
        }
        try:
            answer = isolate.call(
                "edge.sources.onnx_routes:attempt", request, workdir=carrier.parent, name=f"onnx-{route}"
            )
        except (UsageError, SourceError):
            raise
        except MissingPackageError as error:
            if route == ROUTES[0]:
                raise
            failed[route] = error
        except EdgekitError as error:
            failed[route] = error
        else:
            return {**answer, "route": route}, {r: e.message for r, e in failed.items()}
    first = failed[ROUTES[0]]
    others = "; ".join(f"{route}: {error.message}" for route, error in list(failed.items())[1:])
    raise ConversionError(f"{first.message} The other routes failed as well: {others}", hint=first.hint) from first


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
