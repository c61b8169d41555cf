"""What can be said of a `.pte` without running it, and what became of a model's operators on the way to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.findings import Finding
from edge.signature import Signature
from edge.targets.base import Inspection, Operator
from edge.targets.executorch import memory, program
from edge.targets.executorch.lower import Delegation

# Ids of backends as edgekit calls them.
_PLACES = {
    "XnnpackBackend": "xnnpack",
    "CoreMLBackend": "coreml",
    "VulkanBackend": "vulkan",
    "EthosUBackend": "ethos-u",
    "QnnBackend": "qualcomm",
    "NeuropilotBackend": "mediatek",
}
_ARENA = "activations, those inside of XNNPACK's subgraphs included; packed weights and scratch buffers come on top"
_ARENA_OUTSIDE = "activations outside of delegates; each delegate plans its own on top"
_NO_FORM = "the delegate has no form of it with these shapes and dtypes"
# Below this share a fallback is more than the odd reshape at the end.
_SHARE_WORTH_A_WARNING = 0.9


def inspect_program(path: Path, options: Mapping[str, Any]) -> Inspection:
    """Return the inspection of a `.pte` file. Raises SourceError for what is no valid program."""
    del options
    view = program.read(path)
    inside = memory.delegate_bytes(program.deserialized(path))
    known = all(value is not None for value in inside.values())
    return Inspection(
        operators=tuple(_operator(call) for call in view.calls),
        parameter_bytes=view.parameter_bytes,
        arena_bytes=max((planned + (inside[name] or 0) for name, planned in view.planned.items()), default=0),
        signature=view.signature,
        findings=() if view.own_contract else (_foreign(),),
        details={
            "size_bytes": path.stat().st_size,
            "methods": list(view.methods),
            "method_signatures": {name: _ends(s) for name, s in view.others.items() if s is not None},
            "largest_inputs": dict(view.largest),
            "planned_bytes": view.planned,
            "operator_counts": dict(Counter(c.name for c in view.calls if not c.backend)),
            "subgraphs": dict(Counter(c.backend for c in view.calls if c.backend)),
            "requires": requires(view),
            "delegate_bytes": inside,
            "arena_note": _ARENA if known else _ARENA_OUTSIDE,
        },
    )


def _ends(signature: Signature) -> dict[str, list[str]]:
    return {"inputs": list(map(str, signature.inputs)), "outputs": list(map(str, signature.outputs))}


def _operator(call: program.Call) -> Operator:
    place = _PLACES.get(call.backend, call.backend) if call.backend else "portable"
    op = "DELEGATE" if call.backend else call.name
    written = (f"{call.method}/value_{call.values[-1]}",) if call.values else ()
    return Operator(index=call.index, op=op, outputs=written, place=place)


def _foreign() -> Finding:
    return Finding(
        rule="NAMES_UNKNOWN",
        severity="info",
        message="The program does not carry the names of its inputs and outputs: they are counted.",
    )


def requires(view: program.View) -> dict[str, list[str]]:
    """Return what a runtime must be linked with to run the program, read from the program itself."""
    return {"backends": list(view.backends), "operators": list(view.operators)}


def delegation_details(found: Delegation) -> dict[str, Any]:
    """Return the delegation as JSON for manifest and report."""
    return {
        "delegated_share": found.share,
        "subgraphs": found.subgraphs,
        "delegated_nodes": found.inside,
        "non_delegated_nodes": found.outside,
        "delegated": dict(found.delegated),
        "portable": [
            {"operator": name, "count": count, "reason": found.reasons.get(name, _NO_FORM)}
            for name, count in found.portable.items()
        ],
    }


def delegation_findings(found: Delegation, delegates: str, min_delegated: float | None) -> list[Finding]:
    """Return one finding per operator left on portable kernels, and an error where the budget is broken."""
    warn = "warning" if found.share < _SHARE_WORTH_A_WARNING else "info"
    made = [
        Finding(
            rule="NOT_DELEGATED",
            severity=warn,  # type: ignore[arg-type]
            op=name,
            message=f"{name} ({count} times) stays on portable kernels, not {delegates}: "
            f"{found.reasons.get(name, _NO_FORM)}.",
            fix="Portable kernels are plain loops, tens of times slower: write that line with operators that the "
            "delegate takes, or accept it where it is small.",
        )
        for name, count in found.portable.items()
    ]
    if min_delegated is not None and found.share < min_delegated:
        made.append(
            Finding(
                rule="DELEGATED_BELOW_BUDGET",
                severity="error",
                message=f"{found.share:.1%} of the operators run on {delegates}; the budget is {min_delegated:.1%}.",
                fix="The findings NOT_DELEGATED name the operators and the reasons.",
            )
        )
    return made
