"""Values that the templates of all platforms share; texts of users are made harmless here."""

from __future__ import annotations

from edge.apps import naming
from edge.apps.bundle import Bundle
from edge.apps.contract import TensorContract
from edge.artifact import what_ran
from edge.preprocess import describe


def values_of(bundle: Bundle) -> dict[str, str | bool]:
    """Return the places that every template may use."""
    contract = bundle.contract
    images = [t for t in contract.inputs if t.image]
    return {
        "NAME": bundle.name,
        "PACKAGE": bundle.package,
        "SNAKE": naming.snake(bundle.name),
        "KIND": contract.postprocess.kind,
        "RUNTIME": contract.runtime.name,
        "RUNTIME_PACKAGE": contract.runtime.package,
        "RUNTIME_VERSION": contract.runtime.version,
        "RUNTIME_MINIMUM": contract.runtime.minimum,
        "MODEL_FILE": contract.model.file,
        "MODEL_SHA256": contract.model.sha256,
        "MODEL_BYTES": str(contract.model.bytes),
        "FACTS": facts(bundle),
        "LICENCE": naming.markdown(contract.licence or "not stated"),
        "HAS_IMAGE": bool(images),
        "SINGLE": len(contract.inputs) == 1,
        "SINGLE_IMAGE": len(contract.inputs) == 1 and bool(images),
        "CLASSIFICATION": contract.postprocess.kind == "classification",
        "DETECTION": contract.postprocess.kind == "detection",
        "SEGMENTATION": contract.postprocess.kind == "segmentation",
        "EMBEDDING": contract.postprocess.kind == "embedding",
        "RAW": contract.postprocess.kind == "raw",
        "DECODED": bool(contract.postprocess.anchors),
        "EXPONENTIAL": contract.postprocess.size_decoding == "exp",
    }


def facts(bundle: Bundle) -> str:
    """Return the table of a project's README in Markdown."""
    contract = bundle.contract
    rows = [
        ("model", f"`{contract.model.file}`, {contract.model.bytes} bytes, sha256 `{contract.model.sha256}`"),
        ("built for", f"{naming.markdown(contract.target)}, recipe {naming.markdown(contract.recipe)}"),
        ("runtime", f"{contract.runtime.package} {contract.runtime.version} (at least {contract.runtime.minimum})"),
        *((f"input {i}", _tensor(t)) for i, t in enumerate(contract.inputs)),
        *((f"output {i}", _tensor(t)) for i, t in enumerate(contract.outputs)),
    ]
    if (accuracy := contract.accuracy) is not None:
        text = f"{naming.markdown(accuracy.metric)} {accuracy.quantized:.4g} (float {accuracy.float:.4g})"
        rows.append(
            ("accuracy", f"{text} on {accuracy.samples} samples, {accuracy.mode} with {what_ran(accuracy.kernels)}")
        )
    rows += [
        ("latency", f"median {row.median_ms:.3g} ms, {naming.markdown(row.mode)}, {naming.markdown(row.verdict)}")
        for row in contract.latency
    ]
    rows.append(("licence of the model", naming.markdown(contract.licence or "not stated")))
    return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])


def _tensor(tensor: TensorContract) -> str:
    layout = "" if tensor.layout == "other" else f" {tensor.layout}"
    steps = describe(tensor.preprocess)
    shown = f"{naming.markdown(tensor.name)}: {tensor.dtype} {list(tensor.shape)}{layout}"
    return shown if steps == "identity" else f"{shown}; {steps}"
