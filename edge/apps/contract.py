"""`model_contract.json`: all that an app must know of a model, made from an artifact's manifest."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edge import codec
from edge.apps import naming
from edge.artifact import Accuracy, Manifest
from edge.errors import ArtifactError
from edge.postprocess import Postprocess
from edge.signature import Layout, Preprocess, Quantization, TensorSpec

SCHEMA_VERSION = 1
FILE = "model_contract.json"
SCHEMA_FILE = "model_contract.schema.json"
# What all generated languages read and write; float16 has no array type in Kotlin, C++17 or JavaScript.
DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The program: file name, digest and size; `built_sha256` is the digest before metadata were written into it."""

    file: str
    sha256: str
    bytes: int
    built_sha256: str


@dataclass(frozen=True, kw_only=True)
class RuntimeNeed:
    """The runtime that the app takes: `package` is pinned to `version`; `minimum` is the oldest that will do.

    `tested` is the version that the artifact was checked with, empty where the runtime does not run on the host.
    `backends` are the delegates that a program of ExecuTorch calls.
    """

    name: str
    package: str
    version: str
    minimum: str
    tested: str
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TensorContract:
    """One input or output with a static shape.

    `sample_dtype` is what preprocessing yields (the float model's dtype); where `quantize` is set, that is then stored
    as round(value / scale) + zero_point, halves away from zero. `image` says whether it takes uint8 pixels. `feature`
    is its name in a Core ML package, where it may be carried as an image (which Core ML preprocesses itself) or, a
    classifier's scores, as a dictionary by label.
    """

    name: str
    identifier: str
    shape: tuple[int, ...]
    dtype: str
    sample_dtype: str
    layout: Layout
    quantization: Quantization | None = None
    quantize: bool = False
    image: bool = False
    preprocess: Preprocess = field(default_factory=Preprocess)
    feature: str = ""
    carried: Literal["array", "image", "dictionary"] = "array"

    def spec(self) -> TensorSpec:
        """Return the tensor before quantization, as edge.preprocess takes it."""
        return TensorSpec(name=self.name, shape=self.shape, dtype=self.sample_dtype, layout=self.layout)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a device may differ from the golden outputs.

    Integers: at most `steps` on a `share` of the elements; floats: `relative` times the largest golden value.
    `result` is for postprocessing the golden outputs themselves.
    """

    steps: int = 1
    share: float = 0.999
    relative: float = 1e-3
    result: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The file of golden vectors (see edge.apps.golden) and how many it holds."""

    file: str
    sha256: str
    vectors: int
    images: int
    tolerance: Tolerance = Tolerance()


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """One latency: the median in milliseconds, where and how it was taken."""

    mode: str
    median_ms: float
    median_low_ms: float | None
    median_high_ms: float | None
    samples: int | None
    kernels: str
    threads: int | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Contract:
    """The contract between a model and the apps that use it."""

    schema_version: int = SCHEMA_VERSION
    edgekit: str
    name: str
    artifact: str
    target: str
    recipe: str
    model: ModelFile
    runtime: RuntimeNeed
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    postprocess: Postprocess
    labels: tuple[str, ...]
    golden: Golden
    accuracy: Accuracy | None
    latency: tuple[LatencyRow, ...]
    tools: Mapping[str, str]
    author: str | None
    licence: str | None


def tensors(manifest: Manifest, side: Literal["inputs", "outputs"]) -> tuple[TensorContract, ...]:
    """Return the contracts of a program's inputs or outputs; raise ArtifactError for what no app can feed."""
    specs: tuple[TensorSpec, ...] = getattr(manifest.signature, side)
    source = {t.name: t.dtype for t in getattr(manifest.source_signature, side)}
    names = naming.identifiers((t.name for t in specs), side.removesuffix("s"))
    pre = {t.name: manifest.signature.preprocess_of(t.name) for t in manifest.signature.inputs if side == "inputs"}
    return tuple(
        replace(
            _tensor(spec, identifier, source.get(spec.name, spec.dtype), pre.get(spec.name, Preprocess())),
            feature=str(manifest.details.get("features", {}).get(spec.name, "")),
            carried=_carried(manifest, spec.name),
        )
        for spec, identifier in zip(specs, names, strict=True)
    )


def _carried(manifest: Manifest, name: str) -> Literal["array", "image", "dictionary"]:
    """Return how a Core ML package takes or gives that tensor, by what its build recorded."""
    if name in manifest.details.get("image_inputs", ()):
        return "image"
    return "dictionary" if name == manifest.details.get("classifier_output") else "array"


def _tensor(spec: TensorSpec, identifier: str, sample_dtype: str, pre: Preprocess) -> TensorContract:
    shape = tuple(1 if d == -1 and axis == 0 else d for axis, d in enumerate(spec.shape))
    where = f"The tensor {spec.name[:60]!r}"
    if -1 in shape:
        raise ArtifactError(f"{where} has the dynamic shape {spec.shape}.", hint="Build it with a fixed --shape.")
    if spec.dtype not in DTYPES or sample_dtype not in DTYPES:
        raise ArtifactError(
            f"{where} has dtype {spec.dtype}; accepted at an app's side: {', '.join(DTYPES)}.",
            hint="Build it with --io float32, int8 or uint8.",
        )
    if spec.quantization is not None and len(spec.quantization.scale) != 1:
        raise ArtifactError(f"{where} is quantized per channel.", hint="Quantize inputs and outputs per tensor.")
    quantize = spec.quantization is not None and sample_dtype == "float32" and spec.dtype != "float32"
    if not quantize and sample_dtype != spec.dtype and "float32" in (sample_dtype, spec.dtype):
        raise ArtifactError(f"{where} goes from {sample_dtype} to {spec.dtype} without scale and zero point.")
    return TensorContract(
        name=spec.name,
        identifier=identifier,
        shape=shape,
        dtype=spec.dtype,
        sample_dtype=sample_dtype,
        layout=spec.layout,
        quantization=spec.quantization,
        quantize=quantize,
        image=_takes_images(spec, shape, pre),
        preprocess=pre,
    )


def _takes_images(spec: TensorSpec, shape: tuple[int, ...], pre: Preprocess) -> bool:
    """Whether edge.preprocess takes uint8 pixels for this input."""
    if spec.layout in ("NHWC", "NCHW"):
        return shape[3 if spec.layout == "NHWC" else 1] in (1, 3)
    return spec.layout == "other" and len(shape) == 3 and pre.colour == "gray"


def latency_rows(manifest: Manifest) -> tuple[LatencyRow, ...]:
    """Return the latencies of a manifest that have a median."""
    rows = (manifest.metrics.latency, manifest.metrics.predicted_latency)
    return tuple(_latency(row) for row in rows if row and isinstance(row.get("median_ms"), int | float))


def _latency(row: Mapping[str, Any]) -> LatencyRow:
    return LatencyRow(
        mode=str(row.get("mode", "")),
        median_ms=float(row["median_ms"]),
        median_low_ms=row.get("median_low_ms"),
        median_high_ms=row.get("median_high_ms"),
        samples=row.get("samples"),
        kernels=str(row.get("kernels", "")),
        threads=row.get("threads"),
        verdict=str(row.get("verdict", "")),
    )


def needed_tflite(operator_versions: Mapping[str, Any]) -> str:
    """Return the first TensorFlow Lite version that knows all operators in their versions, 2.5.0 at least.

    Operators and versions that are older, or unknown to the table (from TensorFlow Lite's versioning code), count as
    2.5.0.
    """
    table: dict[str, dict[str, str]] = json.loads(
        Path(__file__).with_name("operator_versions.json").read_text(encoding="utf-8")
    )
    needed = [
        table[op][str(version)]
        for op, versions in operator_versions.items()
        for version in versions
        if str(version) in table.get(op, {})
    ]
    return max(["2.5.0", *needed], key=version_key)


def version_key(version: str) -> tuple[int, ...]:
    """Return a version as numbers that compare."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def dumps(contract: Contract) -> str:
    """Return the contract as JSON text that names its schema."""
    return codec.dumps({"$schema": f"./{SCHEMA_FILE}", **codec.to_json(contract)})


@functools.cache
def schema() -> str:
    """Return the JSON Schema of the contract."""
    described = codec.json_schema(Contract)
    described["properties"]["$schema"] = {"type": "string"}
    return codec.dumps(described)
