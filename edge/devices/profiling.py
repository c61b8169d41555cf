"""Profile an artifact on a device, or compare two: what is asked of the stopwatch, and the records of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact as artifacts
from edge import codec
from edge.artifact import Artifact
from edge.devices import runners
from edge.devices.base import Device, DeviceFacts
from edge.devices.client import Agent
from edge.devices.native_agent import NativeAgent, refuse_controls
from edge.devices.programs import DeviceProgram, describe
from edge.devices.stopwatch_client import Sample, Stopwatch
from edge.devices.tools_agent import ToolsAgent
from edge.errors import ArtifactError, DeviceError, EdgekitError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.measure import comparison, trace
from edge.measure.comparison import LOOKS, Comparison, Launch
from edge.measure.environment import Environment
from edge.measure.latency import Timing, summarize
from edge.measure.latency_record import PROFILES, Latency, Profile, Setting
from edge.stages import checking
from edge.targets.base import Mode

COLD_STARTS = 3
OPERATOR_RUNS = 100
LEAST_US = 2.0
# Four blocks of this length make a group; short, so that a disturbance strikes both programs alike.
BLOCK_S = 0.015
GROUPS = 4


_FOREIGN_TIMES = Finding(
    rule="EMULATED_TIMES",
    severity="warning",
    message="The board is emulated: these times are the emulator's on its host and say nothing of a real board.",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An artifact as it is run: the program with its first golden input. Raises as `subject` does."""

    artifact: Artifact
    program: DeviceProgram
    sample: Sample


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure: `controls` may hold `governor` (true: performance while measuring) and `cpus` (numbers)."""

    profile: str = "quick"
    threads: int = 1
    kernels: str = "xnnpack"
    per_op: bool = False
    controls: Mapping[str, Any] = field(default_factory=dict)
    runner: str = "auto"


def subject(path: Path, settings: Settings, *, compiled: bool = False) -> Subject:
    """Open an artifact for measuring; `compiled` asks for the Edge TPU's program. Raises ArtifactError, DeviceError."""
    opened = artifacts.read(path)
    runtime, file = opened.manifest.runtime, opened.program
    if compiled:
        found = opened.file("compiled")
        if found is None:
            hint = f"Run `edgekit compile {path}` where the compiler is."
            raise ArtifactError(f"{path} holds no compiled model.", hint=hint)
        file = found
    # Without an accelerator the program of an edgetpu artifact is one of LiteRT's.
    name = "litert" if runtime == "edgetpu" and not compiled else runtime
    program = describe(
        file, runtime=name, kernels=settings.kernels, threads=settings.threads, signature=opened.manifest.signature
    )
    return Subject(artifact=opened, program=program, sample=_sample(opened, program))


def _sample(opened: Artifact, program: DeviceProgram) -> Sample:
    if opened.golden:
        return {name: values[0] for name, values in checking.read_golden(opened.golden)["in"].items()}
    return {t.name: np.zeros([max(d, 1) for d in t.shape], t.dtype) for t in program.signature.inputs}


def profile_on_device(
    subject: Subject, device: Device, settings: Settings, progress: Progress = no_progress
) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
    """Return the record of a profile as JSON-compatible data, and the raw times in ns (None on an emulated board).

    Keys: those of edge.report.timing.ProfileRecord from `device` on. Raises DeviceError.
    """
    progress(f"asking {device.spec} what it is", None)
    agent, facts = _chosen(subject, device, settings.runner, progress)
    emulated = facts.emulated or device.mode == "emulated"
    findings: list[Finding] = []
    record: dict[str, Any] = {
        "device": device.spec.name or str(device.spec),
        "mode": "emulated" if emulated else "measured",
        "runner": agent.runner,
        "facts": codec.to_json(facts),
        "profile": settings.profile,
        "threads": settings.threads,
        "kernels": settings.kernels,
    }
    samples = None
    if device.spec.kind == "emulator":
        record |= _emulated(agent, subject, settings, findings, progress)
    else:
        findings += [_FOREIGN_TIMES] if emulated else []
        if isinstance(agent, NativeAgent):
            measured, samples = _measured_natively(agent, subject, settings, record["mode"], progress)
            findings += _not_told(settings)
        else:
            stopwatch = Stopwatch(device)
            measured, samples = _measured(stopwatch, subject, settings, record["mode"], progress)
            measured["operators"] = _operators(stopwatch, subject, settings, findings, progress)
        record |= measured
    record["findings"] = [codec.to_json(f) for f in findings]
    return record, samples


def _chosen(subject: Subject, device: Device, runner: str, progress: Progress) -> tuple[Agent, DeviceFacts]:
    """Return who runs the program there; raise DeviceError for programs that tell statistics of their own only."""
    program = subject.program
    agent, facts = runners.choose(device, program.runtime, runner=runner, delegate=program.delegate, progress=progress)
    if isinstance(agent, ToolsAgent):
        raise DeviceError(
            f"{agent.tool} on {device.spec} tells no single times, which profile and compare need.",
            hint="Use --runner native, or `edgekit check --device`, which reports what the tool tells.",
        )
    return agent, facts


def _measured_natively(
    agent: NativeAgent, subject: Subject, settings: Settings, mode: Mode, progress: Progress
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    """Time the program without Python on the device: latency with its verdict, and memory."""
    refuse_controls(settings.controls)
    program, wanted = subject.program, PROFILES[settings.profile]
    progress(f"measuring latency on {agent.device.spec} ({settings.profile}, {wanted.seconds:g} s or more)", None)
    timing, told = agent.profile(program, subject.sample, wanted)
    with agent.sensible():
        load_ms, first_ms, spans = told["load_ms"], told["first_ms"], dict(told["spans"])
    setting = Setting(mode=mode, threads=program.threads, kernels=program.kernels, load_ms=load_ms, first_ms=first_ms)
    with agent.sensible():
        latency = summarize(timing, wanted, setting)
    record: dict[str, Any] = dict.fromkeys(("cold", "energy", "instructions", "operators"))
    record |= {
        "spans": spans,
        "latency": checking.flat_latency(latency),
        "windows": [asdict(w) for w in latency.windows],
        "trace": [],
        "memory": agent.memory(program, subject.sample),
        "controls": [],
    }
    return record, timing.samples_ns


def _not_told(settings: Settings) -> list[Finding]:
    text = "Timed by the native runner, which tells latency and memory. Cold start, energy, the state over time and "
    text += "the governor's control need Python, numpy and the runtime there."
    found = [Finding(rule="NATIVE_RUNNER", severity="info", message=text)]
    if settings.per_op:
        text = "The native runner does not tell the time per operator."
        found.append(Finding(rule="NO_OPERATOR_TIMES", severity="warning", message=text, fix="Use --runner python."))
    return found


def _measured(
    agent: Stopwatch, subject: Subject, settings: Settings, mode: Mode, progress: Progress
) -> tuple[dict[str, Any], NDArray[np.int64]]:
    program, sample, wanted = subject.program, subject.sample, PROFILES[settings.profile]
    progress(f"starting {COLD_STARTS} fresh processes", None)
    cold = agent.cold(program, sample, COLD_STARTS)
    progress(f"measuring latency on {agent.device.spec} ({settings.profile}, {wanted.seconds:g} s or more)", None)
    timing, told = agent.profile(program, sample, wanted, settings.controls)
    with agent.sensible():
        return _record(timing, told, cold, program, wanted, mode), timing.samples_ns


def _record(
    timing: Timing,
    told: Mapping[str, Any],
    cold: Sequence[Mapping[str, float]],
    program: DeviceProgram,
    wanted: Profile,
    mode: Mode,
) -> dict[str, Any]:
    readings = [codec.from_json(trace.Reading, r) for r in told["trace"]]
    setting = Setting(
        mode=mode,
        threads=program.threads,
        kernels=program.kernels,
        load_ms=told["load_ms"],
        first_ms=told["first_ms"],
    )
    latency = _judged(summarize(timing, wanted, setting), readings)
    energy = trace.energy(readings, told["power_source"], told["idle_w"], latency.mean_ms)
    return {
        "latency": checking.flat_latency(latency),
        "cold": {key: float(np.median([one[key] for one in cold])) for key in cold[0]} | {"starts": len(cold)},
        "spans": told["spans"],
        "windows": [asdict(w) for w in latency.windows],
        "trace": [asdict(r) for r in readings],
        "memory": told["memory"],
        "energy": asdict(energy) if energy else None,
        "controls": told["controls"],
        "instructions": None,
    }


def _judged(latency: Latency, readings: Sequence[trace.Reading]) -> Latency:
    found = (*latency.reasons, *trace.reasons(readings, strict=latency.profile.strict))
    return replace(latency, reasons=found, verdict=trace.verdict_of(found))


def _emulated(
    agent: Agent, subject: Subject, settings: Settings, findings: list[Finding], progress: Progress
) -> dict[str, Any]:
    """Count instructions and read the memory: an emulator's times are those of this host."""
    findings.append(
        Finding(
            rule="NO_LATENCY_EMULATED",
            severity="info",
            message="An emulated board has no latency: its times would be this host's.",
            fix="Profile on the board itself: --device ssh://pi@host.",
        )
    )
    if settings.per_op:
        text = "Time per operator is not measured on an emulated board."
        findings.append(Finding(rule="NO_OPERATOR_TIMES", severity="info", message=text))
    progress("reading the memory that it needs", None)
    memory = agent.memory(subject.program, subject.sample)
    empty: dict[str, Any] = dict.fromkeys(("latency", "cold", "spans", "energy", "operators"))
    counted = None
    try:
        counted = counted_instructions(subject, agent, progress)
    except EdgekitError as error:
        findings.append(Finding(rule="NOT_COUNTED", severity="info", message=error.message, fix=error.hint))
    return {**empty, "windows": [], "trace": [], "controls": [], "memory": memory, "instructions": counted}


def counted_instructions(subject: Subject, agent: Agent, progress: Progress) -> dict[str, Any]:
    """Return the instructions of one inference; raise DeviceError for what is no emulated board of this host."""
    from edge.devices import instructions

    board = agent.device.spec
    if board.kind != "emulator":
        raise DeviceError(f"Instructions cannot be counted on {board}.", hint="They are on an emulator:NAME device.")
    progress("counting instructions", None)
    program, sample = subject.program, subject.sample
    return asdict(instructions.count_instructions(program, sample, board.address, runner=agent.runner))


def _operators(
    agent: Stopwatch, subject: Subject, settings: Settings, findings: list[Finding], progress: Progress
) -> list[dict[str, Any]] | None:
    """Return the time per operator where that was asked for and can be had; else say why not in a finding."""
    if not settings.per_op:
        return None
    progress("measuring the time per operator", None)
    try:
        if subject.program.runtime == "litert" and subject.program.delegate is None:
            told = agent.operators(subject.program, subject.sample, OPERATOR_RUNS)
            with agent.sensible():
                found = shares(told)
                findings += _coarse(found)
            return found
        if subject.program.runtime == "executorch" and agent.device.spec.kind == "local":
            return shares(_executorch_operators(subject))
        what = subject.program.delegate or subject.program.runtime
        raise DeviceError(f"The time per operator of {what} on {agent.device.spec} cannot be read.")
    except EdgekitError as error:
        findings.append(Finding(rule="NO_OPERATOR_TIMES", severity="warning", message=error.message, fix=error.hint))
        return None


def _coarse(operators: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Return a finding where the profiler's clock, of whole microseconds, is too coarse for many operators."""
    short = sum(o["mean_us"] < LEAST_US for o in operators)
    if 2 * short <= len(operators):
        return []
    text = f"{short} of {len(operators)} operators take less than {LEAST_US:g} us: LiteRT's profiler counts whole ones."
    return [Finding(rule="OPERATORS_TOO_SHORT", severity="info", message=text)]


def shares(operators: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the operators with their share of the sum of all."""
    total = sum(o["mean_us"] for o in operators)
    return [dict(o, index=i, share=o["mean_us"] / total if total else 0.0) for i, o in enumerate(operators)]


def _executorch_operators(subject: Subject) -> list[dict[str, Any]]:
    import tempfile

    from edge import isolate

    with tempfile.TemporaryDirectory(prefix="edgekit-") as place:
        np.savez(Path(place) / "inputs.npz", **dict(subject.sample))  # type: ignore[arg-type]
        request = {
            "program": str(subject.program.path),
            "inputs": str(Path(place) / "inputs.npz"),
            "threads": subject.program.threads,
            "runs": OPERATOR_RUNS,
        }
        told = isolate.call("edge.stages.operators:executorch_operators", request, workdir=Path(place))
    found: list[dict[str, Any]] = told["operators"]
    return found


# Comparison


def compare_on_device(
    reference: Subject,
    candidate: Subject,
    device: Device,
    *,
    threshold: float = comparison.DEFAULT_THRESHOLD,
    controls: Mapping[str, Any] | None = None,
    runner: str = "auto",
    looks: Sequence[int] = LOOKS,
    progress: Progress = no_progress,
) -> tuple[dict[str, Any], NDArray[np.int64] | None]:
    """Compare two programs and return the record as JSON-compatible data, and the raw rows with the launch in front.

    Keys: those of edge.report.timing.ComparisonRecord from `device` on. On an emulated board the ratio is that of the
    instructions, which is exact. Raises DeviceError.
    """
    sides = (reference, candidate)
    agents, facts = _chosen_for_both(sides, device, runner, progress)
    if device.spec.kind == "emulator":
        counts = [counted_instructions(s, agent, progress) for s, agent in zip(sides, agents, strict=True)]
        return _by_instructions(device, counts, threshold) | {"runner": _names(agents)}, None
    found, rows, why = _launches(_one_for_both(agents), sides, threshold, controls or {}, looks, progress)
    record = {
        "runner": _names(agents),
        "device": device.spec.name or str(device.spec),
        "mode": "emulated" if facts.emulated else "measured",
        "unit": "ms",
        **codec.to_json(found),
        "left_out": why,
    }
    return record, rows


def _chosen_for_both(
    sides: Sequence[Subject], device: Device, runner: str, progress: Progress
) -> tuple[list[Agent], DeviceFacts]:
    """Return who runs each of two programs there, one and the same for one runtime, and what the device is."""
    first, facts = _chosen(sides[0], device, runner, progress)
    same = sides[1].program.runtime == sides[0].program.runtime
    return [first, first if same else _chosen(sides[1], device, runner, progress)[0]], facts


def _names(agents: Sequence[Agent]) -> str:
    return " and ".join(dict.fromkeys(agent.runner for agent in agents))


def _one_for_both(agents: Sequence[Agent]) -> Stopwatch | NativeAgent:
    """Return who runs both programs in one process; raise DeviceError where that cannot be."""
    first, second = agents
    if isinstance(first, NativeAgent) and first is second:
        return first
    if isinstance(first, NativeAgent) or isinstance(second, NativeAgent):
        raise DeviceError(
            f"The programs have two runtimes; a native runner on {first.device.spec} has one.",
            hint="Compare programs of one runtime, or install the runtimes there.",
        )
    return Stopwatch(first.device)


def _launches(
    agent: Stopwatch | NativeAgent,
    sides: tuple[Subject, Subject],
    threshold: float,
    controls: Mapping[str, Any],
    looks: Sequence[int],
    progress: Progress,
) -> tuple[Comparison, NDArray[np.int64], list[str]]:
    """Start processes until the interval decides or the last look is over."""
    launches: list[Launch] = []
    rows: list[NDArray[np.int64]] = []
    why: list[str] = []
    for look, until in enumerate(looks, 1):
        while len(launches) + len(why) < until:
            number = len(rows)
            progress(
                f"comparing on {agent.device.spec}, process {number + 1} of at most {looks[-1]}", number / looks[-1]
            )
            found, told = agent.blocks(
                [s.program for s in sides],
                [s.sample for s in sides],
                seed=number,
                groups=GROUPS,
                block_s=BLOCK_S,
                controls=dict(controls),
            )
            rows.append(np.insert(found, 0, number, axis=1))
            held = _throttled(told)
            why += [held] if held else []
            launches += [] if held else [comparison.launch_of(found)]
        decided = comparison.decide(launches, threshold, look=look, looks=looks, invalid=why)
        if decided.outcome in ("slower", "faster", "no slower"):
            break
    return decided, np.concatenate(rows), why


def _throttled(told: Mapping[str, Any]) -> str | None:
    before, after = (codec.from_json(Environment, told[key]) for key in ("before", "after"))
    if before.throttled_now or after.throttled_now or (before.throttled or 0) != (after.throttled or 0):
        return f"the board was throttled: get_throttled {before.throttled or 0:#x}, then {after.throttled or 0:#x}"
    return None


def _by_instructions(device: Device, counts: Sequence[Mapping[str, Any]], threshold: float) -> dict[str, Any]:
    ratio = counts[1]["total"] / counts[0]["total"]
    exact = {"ratio": ratio, "low": ratio, "high": ratio, "confidence": 1.0}
    slower, faster = ratio > 1 + threshold, ratio < 1 / (1 + threshold)
    return {
        "device": device.spec.name or str(device.spec),
        "mode": "emulated",
        "unit": "instructions",
        "ratio": exact,
        "control": None,
        "threshold": threshold,
        "outcome": "slower" if slower else "faster" if faster else "no slower",
        "reasons": [],
        "launches": 1,
        "groups": 0,
        "looks": 1,
        "reference_ms": None,
        "candidate_ms": None,
        "reference_instructions": counts[0]["total"],
        "candidate_instructions": counts[1]["total"],
        "left_out": [],
    }
