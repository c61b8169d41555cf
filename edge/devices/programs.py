"""How a program is given to the agent: by tensor index or position, so that no foreign name travels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import DeviceError
from edge.signature import Signature

# The suffix that a manifest's runtime needs on a device, and the delegate that it is run with.
_DELEGATES = {"edgetpu": "libedgetpu.so.1"}


@dataclass(frozen=True, kw_only=True)
class DeviceProgram:
    """A program file with the order of its inputs and outputs; indices are empty where position counts (.pte).

    `unsigned_convolution`: it has a convolution over uint8, the quantization of 2018 that some kernels treat otherwise.
    """

    path: Path
    runtime: str
    kernels: str
    threads: int
    signature: Signature
    input_indices: tuple[int, ...] = ()
    output_indices: tuple[int, ...] = ()
    stateful: bool = False
    delegate: str | None = None
    unsigned_convolution: bool = False

    def request(self, remote: str) -> dict[str, Any]:
        """Return what the agent needs to load the file at `remote`."""
        return {
            "path": remote,
            "runtime": self.runtime,
            "kernels": self.kernels,
            "threads": self.threads,
            "inputs": list(self.input_indices),
            "outputs": list(self.output_indices),
            "stateful": self.stateful,
            "delegate": self.delegate,
        }


def describe(path: Path, *, runtime: str, kernels: str, threads: int, signature: Signature) -> DeviceProgram:
    """Return the program at `path`; `signature` is the program's own. Raises DeviceError, SourceError."""
    if path.suffix == ".pte":
        return DeviceProgram(path=path, runtime="executorch", kernels=kernels, threads=threads, signature=signature)
    if path.suffix != ".tflite":
        raise DeviceError(
            f"Programs of the runtime {runtime} ({path.suffix or 'no suffix'}) are not run on devices; "
            "accepted: .tflite, .pte.",
            hint="`edgekit check ARTIFACT --latency quick` checks and times it on a host that has its runtime.",
        )
    return _litert(path, runtime, kernels, threads)


def _litert(path: Path, runtime: str, kernels: str, threads: int) -> DeviceProgram:
    from edge.targets.litert import contract, flatbuffer

    model = flatbuffer.load(path.read_bytes())
    names = contract.contract_of(model)
    signature = contract.signature_of(model)
    return DeviceProgram(
        path=path,
        runtime="litert",
        kernels=kernels,
        threads=threads,
        signature=signature,
        input_indices=tuple(names.inputs[t.name] for t in signature.inputs),
        output_indices=tuple(names.outputs[t.name] for t in signature.outputs),
        stateful=any(t.isVariable for g in model.subgraphs for t in g.tensors or ()),
        delegate=_DELEGATES.get(runtime),
        unsigned_convolution=any(
            op.name == "CONV_2D" and op.inputs and graph.tensors[op.inputs[0]].dtype == "uint8"
            for graph in flatbuffer.graphs(model)
            for op in graph.ops
        ),
    )
