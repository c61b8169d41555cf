"""Check an artifact on a device: golden vectors, accuracy, latency, memory, and instructions where it is emulated."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact as artifacts
from edge import codec
from edge.artifact import Artifact
from edge.calibration import affine
from edge.calibration.data import open_dataset
from edge.devices import attach, runners
from edge.devices.base import Device, DeviceFacts
from edge.devices.client import Agent
from edge.devices.programs import DeviceProgram, describe
from edge.devices.tools_agent import ToolsAgent
from edge.errors import ArtifactError, DataError, EdgekitError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.measure.latency import summarize
from edge.measure.latency_record import PROFILES, Setting
from edge.signature import Signature
from edge.stages import checking

Array = NDArray[np.generic]
# Cores whose XNNPACK kernels round a uint8 convolution otherwise than all others (Cortex-A53 and A55).
_ROUNDING_PARTS = {"0xd03": "Cortex-A53", "0xd05": "Cortex-A55"}
_LITERT_RUNTIMES = ("ai_edge_litert", "tflite_runtime", "tensorflow")


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """One output on the device against the golden vectors: elements that differ of all, the largest difference.

    `largest` is in steps of the stored integers, or in the output's own unit for floats; `top1_changed` counts vectors
    whose largest element is another one.
    """

    output: str
    elements: int
    differing: int
    largest: float
    top1_changed: int
    vectors: int


class ReplaySession:
    """A session whose outputs were computed before, in the order of its inputs, by a device."""

    def __init__(self, signature: Signature, outputs: Iterable[dict[str, Array]], checksums: Iterable[int]) -> None:
        self.signature = signature
        self._outputs = iter(outputs)
        self._checksums = iter(checksums)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the next outputs; raise DataError where the input is another than the device had."""
        if checksum(inputs) != next(self._checksums, None):
            raise DataError(
                "The evaluation data gives other samples each time it is read.",
                hint="Make it repeatable: fix the random seed of its callable.",
            )
        return next(self._outputs)


def check_on_device(  # noqa: PLR0913 - the options of a command
    path: Path,
    device: Device,
    *,
    evaluation: str | None = None,
    metric: str | None = None,
    kernels: str = "xnnpack",
    threads: int = 1,
    profile: str = "smoke",
    runner: str = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Return the record of an artifact's check on an open device, as JSON-compatible data.

    Keys: `device`, `mode` (measured, emulated), `runner`, `facts`, `golden`, `accuracy` and `parity` (as
    edge.stages.checking gives them, null without evaluation data), `findings`, `latency` (null on an emulated board and
    for profile `none`), `instructions` (emulated boards only), `tool` (what an
    Android program tells of its own runs), `memory`. Raises ArtifactError, DeviceError, DataError.
    """
    opened = artifacts.read(path)
    program = _program(opened, kernels, threads)
    progress(f"asking {device.spec} what it is", None)
    agent, facts = runners.choose(device, program.runtime, runner=runner, delegate=program.delegate, progress=progress)
    emulated = facts.emulated or device.mode == "emulated"
    record: dict[str, Any] = {
        "device": device.spec.name or str(device.spec),
        "mode": "emulated" if emulated else "measured",
        "runner": agent.runner,
        "facts": codec.to_json(facts),
        "golden": None,
        "accuracy": None,
        "parity": [],
        "findings": [],
        "latency": None,
        "tool": None,
        "instructions": None,
    }
    findings = _not_run(agent)
    if agent.gives_outputs:
        findings = _check_golden(opened, agent, program, facts, record, progress)
    if evaluation is not None and agent.gives_outputs:
        record |= _evaluate(opened, agent, program, evaluation, metric, findings, progress)
    else:
        record["findings"] = [codec.to_json(f) for f in findings]
    sample = _sample(opened, program)
    progress("reading the memory that it needs", None)
    record["memory"] = agent.memory(program, sample)
    if emulated:
        record["instructions"] = _instructions(agent, program, sample, record, progress)
    elif isinstance(agent, ToolsAgent):
        progress(f"asking {agent.tool} for its times on {device.spec}", None)
        record["tool"] = agent.statistics(program, PROFILES[profile if profile != "none" else "smoke"])
    elif profile != "none":
        progress(f"measuring latency on {device.spec} ({profile})", None)
        record["latency"] = measure_on_device(agent, program, sample, profile)
    return record


def _not_run(agent: Agent) -> list[Finding]:
    if agent.gives_outputs:
        return []
    return [
        Finding(
            rule="NOT_CHECKED",
            severity="warning",
            message=f"Golden vectors and accuracy were not checked on {agent.device.spec}: run_model gives no outputs.",
            fix="Name benchmark_model or executor_runner in devices.toml, or use --runner native.",
        )
    ]


def check_stage(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Open the device of a request and check an artifact on it: a stage for edge.isolate.

    Keys of the request: `artifact`, `device` (a name for attach.resolve that stands for one device), and the options of
    `check_on_device`.
    """
    options = {k: v for k, v in request.items() if k not in ("artifact", "device")}
    with attach.opened(attach.resolve(request["device"])[0], progress) as device:
        return check_on_device(Path(request["artifact"]), device, progress=progress, **options)


def _program(opened: Artifact, kernels: str, threads: int) -> DeviceProgram:
    manifest = opened.manifest
    return describe(
        opened.program, runtime=manifest.runtime, kernels=kernels, threads=threads, signature=manifest.signature
    )


def _golden(opened: Artifact) -> dict[str, dict[str, Array]] | None:
    path = opened.file("golden")
    return checking.read_golden(path) if path else None


def _sample(opened: Artifact, program: DeviceProgram) -> dict[str, Array]:
    golden = _golden(opened)
    if golden:
        return {name: values[0] for name, values in golden["in"].items()}
    return {t.name: np.zeros([max(d, 1) for d in t.shape], t.dtype) for t in program.signature.inputs}


def _check_golden(
    opened: Artifact,
    agent: Agent,
    program: DeviceProgram,
    facts: DeviceFacts,
    record: dict[str, Any],
    progress: Progress,
) -> list[Finding]:
    """Run the golden vectors on the device; put the differences into the record and return the findings."""
    golden = _golden(opened)
    if golden is None:
        return []
    progress(f"running the golden vectors on {agent.device.spec}", None)
    count = len(next(iter(golden["in"].values())))
    fed = [{name: values[i] for name, values in golden["in"].items()} for i in range(count)]
    found = list(agent.run(program, fed))
    differences = [_difference(t.name, found, golden["out"][t.name]) for t in program.signature.outputs]
    record["golden"] = {"vectors": count, "outputs": [codec.to_json(d) for d in differences]}
    replay = ReplaySession(program.signature, found, map(checksum, fed))
    mismatches = checking.compare_golden(replay, golden, exact=False, scheme=_scheme(opened))
    return [*_explained(mismatches, differences, program, facts), *_versions(opened, facts)]


def _scheme(opened: Artifact) -> str:
    # A program that edgekit did not build may round on the way as well: how, is not known.
    return str(opened.manifest.recipe.get("scheme", "as given"))


def _difference(name: str, found: list[dict[str, Array]], wanted: Array) -> OutputDifference:
    got = np.stack([one[name] for one in found])
    if got.shape != wanted.shape:
        raise ArtifactError(
            f"Output {name!r} has shape {got.shape[1:]} on the device; the golden vectors have {wanted.shape[1:]}."
        )
    apart = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    rows = (got.reshape(len(got), -1), wanted.reshape(len(wanted), -1))
    return OutputDifference(
        output=name,
        elements=int(apart.size),
        differing=int(np.count_nonzero(apart)),
        largest=float(apart.max(initial=0.0)),
        top1_changed=int(np.count_nonzero(rows[0].argmax(axis=1) != rows[1].argmax(axis=1))),
        vectors=len(found),
    )


def _explained(
    mismatches: list[Finding], differences: list[OutputDifference], program: DeviceProgram, facts: DeviceFacts
) -> list[Finding]:
    """Return the mismatches, or what is known of their cause: other kernels are no damage, accuracy decides."""
    core = _ROUNDING_PARTS.get(facts.cpu_part or "")
    if not (core and program.unsigned_convolution and program.kernels == "xnnpack"):
        return mismatches
    return [
        Finding(
            rule="KERNELS_DIFFER",
            severity="warning",
            op=d.output,
            message=f"{d.differing} of {d.elements} elements differ from the host, by up to {d.largest:g}, and the "
            f"largest output changes in {d.top1_changed} of {d.vectors} vectors: XNNPACK rounds uint8 convolutions "
            f"otherwise on a {core}.",
            fix="Build with the int8 recipe, whose kernels agree on all cores, or accept it if the accuracy holds.",
        )
        for d in differences
        if d.differing
    ]


def _versions(opened: Artifact, facts: DeviceFacts) -> Iterator[Finding]:
    built = opened.manifest.tools.get("ai-edge-litert")
    there = next((facts.runtimes[name] for name in _LITERT_RUNTIMES if name in facts.runtimes), None)
    if built and there and "ai_edge_litert" in facts.runtimes and built != there:
        yield Finding(
            rule="RUNTIME_VERSION",
            severity="info",
            message=f"The device runs LiteRT {there}; the artifact was built and checked with {built}.",
            fix=f"pip install ai-edge-litert=={built} on the device, if the results differ.",
        )


def checksum(inputs: Mapping[str, Array]) -> int:
    """Return a number that tells a sample's inputs from others."""
    total = 0
    for name in sorted(inputs):
        total = zlib.crc32(np.ascontiguousarray(inputs[name]).tobytes(), total)
    return total


def _evaluate(
    opened: Artifact,
    agent: Agent,
    program: DeviceProgram,
    evaluation: str,
    metric: str | None,
    findings: list[Finding],
    progress: Progress,
) -> dict[str, Any]:
    """Return accuracy, parity and findings of the device's outputs against the float carrier on this host."""
    manifest, carrier = opened.manifest, opened.file("carrier")
    if carrier is None:
        raise ArtifactError("The artifact has no float carrier to compare with.", hint="Build the artifact again.")
    progress(f"running the evaluation samples on {agent.device.spec}", None)
    checksums: list[int] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-outputs-") as place:
        fed = _fed(evaluation, manifest.source_signature, program.signature, checksums)
        paths = store(agent.run(program, fed), Path(place), progress)
        replay = ReplaySession(program.signature, stored(paths), checksums)
        request = {
            "signature": codec.to_json(manifest.source_signature),
            "evaluation": evaluation,
            "metric": metric or (manifest.metrics.accuracy.metric if manifest.metrics.accuracy else None),
            "carrier": str(carrier),
            "carrier_runtime": manifest.runtime,
            "kernels": program.kernels,
        }
        return checking.evaluate(request, replay, findings, progress)


def _fed(evaluation: str, source: Signature, program: Signature, checksums: list[int]) -> Iterator[dict[str, Array]]:
    """Yield the program's inputs of each sample, and note their checksums."""
    for sample in open_dataset(evaluation, source, role="evaluation"):
        fed = {t.name: affine.to_program(t, sample.inputs[t.name]) for t in program.inputs}
        checksums.append(checksum(fed))
        yield fed


def store(outputs: Iterable[dict[str, Array]], place: Path, progress: Progress) -> list[Path]:
    """Write each sample's outputs to a file: all of them together may not fit into memory."""
    paths = []
    for index, output in enumerate(outputs):
        paths.append(place / f"{index}.npz")
        arrays: dict[str, Any] = {str(i): values for i, values in enumerate(output.values())}
        np.savez(paths[-1], names=np.array(list(output)), **arrays)
        progress(f"{index + 1} samples", None) if index % 100 == 99 else None
    return paths


def stored(paths: Iterable[Path]) -> Iterator[dict[str, Array]]:
    """Yield the outputs of each sample that `store` wrote."""
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            yield {str(name): data[str(i)] for i, name in enumerate(data["names"])}


def measure_on_device(
    agent: Agent, program: DeviceProgram, sample: Mapping[str, Array], profile: str
) -> dict[str, Any]:
    """Return the flat latency record of a program on a device, with its verdict and the environment there."""
    wanted = PROFILES[profile]
    timing, load_ms, first_ms = agent.measure(program, sample, wanted)
    setting = Setting(
        mode=agent.device.mode,
        threads=program.threads,
        kernels=program.kernels,
        load_ms=load_ms,
        first_ms=first_ms,
    )
    return checking.flat_latency(summarize(timing, wanted, setting))


def _instructions(
    agent: Agent, program: DeviceProgram, sample: Mapping[str, Array], record: dict[str, Any], progress: Progress
) -> dict[str, Any] | None:
    """Count instructions where the device is a board of this host; without the tools for it say so in a finding."""
    from edge.devices import instructions

    board = agent.device.spec
    if board.kind != "emulator":
        return None
    progress("counting instructions", None)
    try:
        return asdict(instructions.count_instructions(program, sample, board.address, runner=agent.runner))
    except EdgekitError as error:
        finding = Finding(rule="NOT_COUNTED", severity="info", message=error.message, fix=error.hint)
        record["findings"].append(codec.to_json(finding))
        return None
