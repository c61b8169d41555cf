"""`--platform ios`: a Swift package (a pod for TensorFlow Lite) with its XCTest and a sample view."""

from __future__ import annotations

import base64

import numpy as np

from edge.apps import naming, pins
from edge.apps.bundle import Bundle
from edge.apps.contract import Contract, TensorContract
from edge.apps.literals import Syntax, double, post_values, tensor
from edge.apps.readme import values_of
from edge.apps.render import render, template
from edge.errors import ConfigError

_ENUMS = {"bool": "boolean"}
SYNTAX = Syntax(
    text=naming.swift,
    enum=lambda _, name: f".{_ENUMS.get(name, name)}",
    ints=lambda values: "[" + ", ".join(map(str, values)) + "]",
    floats=lambda values: "[" + ", ".join(values) + "]",
    single=lambda text: text,
    double=lambda text: text,
    boolean=lambda value: str(value).lower(),
    row=lambda cells: "        TensorSpec(" + ", ".join(f"{k}: {v}" for k, v in cells) + "),",
)
_RESULTS = {
    "classification": "[Classification]",
    "detection": "[Detection]",
    "segmentation": "Mask",
    "embedding": "[Float]",
    "raw": "[[Float]]",
}


def files(bundle: Bundle) -> dict[str, bytes]:
    """Return the project's files by path; raise ConfigError for dtypes that the runtime's API lacks."""
    contract, name = bundle.contract, bundle.name
    if contract.runtime.name == "coreml":
        for spec in (*contract.inputs, *contract.outputs):
            if spec.dtype not in ("float32", "int32"):
                raise ConfigError(f"Core ML passes float32 and int32 arrays; {spec.name[:60]!r} is {spec.dtype}.")
    values = _values(bundle)
    home, tests = f"Sources/{name}", f"Tests/{name}Tests"
    manifest = {f"{name}.podspec": "Podspec.txt"} if values["TFLITE"] else {"Package.swift": "Package.swift"}
    plan = {
        **manifest,
        "README.md": "README.md",
        **{f"{home}/{n}": n for n in ("PrePost.swift", "Contract.swift", "Engine.swift")},
        f"{home}/{name}.swift": "Model.swift",
        f"{home}/{name}SampleView.swift": "SampleView.swift",
        **{f"{tests}/{n}": n for n in ("GoldenCheck.swift", "GoldenTests.swift")},
    }
    made = {path: render(template(f"ios/{source}"), values).encode() for path, source in plan.items()}
    for path, data in bundle.resources.items():
        place = tests if path == contract.golden.file else home
        made[f"{place}/Resources/{path}"] = data
    return made


def _values(bundle: Bundle) -> dict[str, str | bool]:
    contract = bundle.contract
    runtime, tolerance, post = contract.runtime.name, contract.golden.tolerance, contract.postprocess
    return {
        **values_of(bundle),
        **post_values(post),
        **_parameters(contract.inputs),
        "POST_ATTRIBUTE_AXIS": "2" if post.transposed else "1",
        "TOGETHER": post.boxes == post.scores,
        "LITERT": runtime == "litert",
        "TFLITE": runtime == "tflite",
        "EXECUTORCH": runtime == "executorch",
        "COREML": runtime == "coreml",
        "SWIFT_PACKAGE": True,
        **_features(contract),
        **_backends(contract),
        "INPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.inputs),
        "OUTPUTS": "\n".join(tensor(t, SYNTAX) for t in contract.outputs),
        "LABELS": "\n".join(f"        {naming.swift(label)}," for label in contract.labels),
        "ANCHORS": _anchors(post.anchors),
        "GOLDEN_VECTORS": str(contract.golden.vectors),
        "TOLERANCE_STEPS": str(tolerance.steps),
        "TOLERANCE_SHARE": double(tolerance.share),
        "TOLERANCE_RELATIVE": double(tolerance.relative),
        "TOLERANCE_RESULT": double(tolerance.result),
        "RESULT": _RESULTS[post.kind],
        "MINIMUM_IOS": str(pins.RUNTIMES["ios", runtime].minimum_system),
    }


def _parameters(inputs: tuple[TensorContract, ...]) -> dict[str, str]:
    def declared(image: str) -> str:
        first = "_ " if len(inputs) == 1 else ""
        return ", ".join(f"{first}{t.identifier}: {image if t.image else '[Float]'}" for t in inputs)

    def call(t: TensorContract) -> str:
        label = "" if len(inputs) == 1 else f"{t.identifier}: "
        return f"{label}try Self.pixels({t.identifier})" if t.image else f"{label}{t.identifier}"

    return {
        "PARAMETERS": declared("Pixels"),
        "CG_PARAMETERS": declared("CGImage"),
        "CV_PARAMETERS": declared("CVPixelBuffer"),
        "ENCODED": ", ".join(f"try Tensors.encode({t.identifier}, Contract.inputs[{i}])" for i, t in enumerate(inputs)),
        "PIXEL_ARGUMENTS": ", ".join(call(t) for t in inputs),
        "EXAMPLE": ", ".join((f"{t.identifier}: " if len(inputs) > 1 else "") + t.identifier for t in inputs),
    }


def _anchors(values: tuple[float, ...]) -> str:
    """Return the numbers as Base64 in lines: a long array of literals takes Swift's compiler minutes."""
    text = base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()
    return "\n".join(f'        "{text[i : i + 96]}",' for i in range(0, len(text), 96))


def _features(contract: Contract) -> dict[str, str | bool]:
    """Return Core ML's names of the tensors, and how its package takes and gives them."""

    def names(tensors: tuple[TensorContract, ...]) -> str:
        given = ("classLabel_probs" if t.carried == "dictionary" else t.feature or t.name for t in tensors)
        return ", ".join(naming.swift(name) for name in given)

    coreml = contract.runtime.name == "coreml"
    return {
        "COREML_IMAGE": coreml and any(t.carried == "image" for t in contract.inputs),
        "COREML_CLASSIFIER": coreml and any(t.carried == "dictionary" for t in contract.outputs),
        "FEATURES_IN": names(contract.inputs),
        "FEATURES_OUT": names(contract.outputs),
        "FEATURES_IMAGE": ", ".join(str(t.carried == "image").lower() for t in contract.inputs),
    }


def _backends(contract: Contract) -> dict[str, str]:
    """Return the products of ExecuTorch's package that hold the program's delegates, and what those link."""
    known = pins.RUNTIMES["ios", "executorch"].backends
    found = [known[b] for b in contract.runtime.backends]
    linked = {"backend_coreml": ', .linkedFramework("CoreML"), .linkedLibrary("sqlite3")'}
    linked["backend_mps"] = ', .linkedFramework("Metal"), .linkedFramework("MetalPerformanceShadersGraph")'
    return {
        "BACKENDS": "\n".join(f'                .product(name: "{name}", package: "executorch"),' for name in found),
        "LINKED": "".join(linked.get(name, "") for name in found),
    }
