"""How long an artifact takes on a device, in detail, and whether one is slower than another."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact, codec
from edge.artifact import Artifact, translating_os_errors
from edge.devices import attach, profiling
from edge.devices.base import Device, DeviceSpec
from edge.devices.profiling import Settings, Subject
from edge.errors import ConfigError, DeviceError, blaming
from edge.isolate import Progress, no_progress
from edge.measure.comparison import DEFAULT_THRESHOLD, LOOKS
from edge.measure.latency_record import PROFILES
from edge.pipeline import timed_kernels
from edge.report import machine, timing
from edge.targets import registry

RESULTS = Path("edgekit-profiles")
_MOST_THREADS = 256


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure and where. `device` is one of edge.devices, or `coral` for an accelerator at this host.

    `runner` is who runs it there: auto, python or native. `controls`: set the performance governor while measuring,
    where that is permitted; `cpus` to run on, or all.
    `output` is the folder for the record and the raw samples, None to keep nothing.
    """

    device: str = "local"
    profile: str = "quick"
    per_op: bool = False
    threads: int = 1
    kernels: str | None = None
    runner: str = "auto"
    controls: bool = True
    cpus: tuple[int, ...] = ()
    output: Path | None = RESULTS
    threshold: float = DEFAULT_THRESHOLD
    looks: tuple[int, ...] = field(default_factory=lambda: LOOKS)

    def __post_init__(self) -> None:
        problems = []
        if self.profile not in PROFILES:
            problems.append(f"profile {self.profile!r} is unknown; accepted: {', '.join(PROFILES)}")
        if not 1 <= self.threads <= _MOST_THREADS:
            problems.append(f"threads are {self.threads}; accepted: 1 to {_MOST_THREADS}")
        if not 0 < self.threshold < 1:
            problems.append(f"the threshold is {self.threshold:g}; accepted: a share between 0 and 100 %")
        if problems:
            raise ConfigError(f"{'; '.join(problems)}.")


def profile(path: Path, request: Request, progress: Progress = no_progress) -> timing.ProfileRecord:
    """Measure an artifact; the artifact itself is not changed. Raises ArtifactError, ConfigError, DeviceError."""
    settings, compiled = _settings(path, request), _is_coral(request.device)
    chosen = profiling.subject(path, settings, compiled=compiled)
    with _interruptible(), _opened(request.device, progress) as device:
        told, samples = profiling.profile_on_device(chosen, device, settings, progress)
    place = _place(request, path, told["device"])
    kept = f"{place}.npz" if place and samples is not None else None
    record = recorded(chosen, told, name=str(path), stands_in=_stands_in(chosen, request.device), samples_file=kept)
    _store(place, record, samples)
    return record


def recorded(
    subject: Subject, told: Mapping[str, Any], *, name: str, stands_in: bool, samples_file: str | None
) -> timing.ProfileRecord:
    """Return the record of what a device told of a subject that is called `name`. Raises DeviceError, ArtifactError.

    `stands_in`: it was run here in place of its target's device.
    """
    arena = _arena_bytes(subject.artifact)
    with blaming(DeviceError, f"{told['device']} gave an answer that edgekit does not understand"):
        return codec.from_json(
            timing.ProfileRecord,
            {
                **told,
                "memory": {**told["memory"], "arena_bytes": arena},
                "mode": "emulated" if stands_in else told["mode"],
                "artifact": name,
                "name": subject.artifact.manifest.name,
                "target": subject.artifact.manifest.target,
                "runtime": subject.program.runtime,
                "program_sha256": artifact.sha256(subject.program.path),
                "measured_at": _now(),
                "samples_file": samples_file,
            },
        )


def compare(
    reference: Path, candidate: Path, request: Request, progress: Progress = no_progress
) -> timing.ComparisonRecord:
    """Compare the latency of two artifacts on one device. Raises ArtifactError, ConfigError, DeviceError."""
    compiled = _is_coral(request.device)
    settings = [_settings(path, request) for path in (reference, candidate)]
    sides = [
        profiling.subject(path, s, compiled=compiled) for path, s in zip((reference, candidate), settings, strict=True)
    ]
    with _interruptible(), _opened(request.device, progress) as device:
        told, rows = profiling.compare_on_device(
            sides[0],
            sides[1],
            device,
            threshold=request.threshold,
            controls=settings[0].controls,
            runner=request.runner,
            looks=request.looks,
            progress=progress,
        )
    mode = "emulated" if any(_stands_in(s, request.device) for s in sides) else told["mode"]
    place = _place(request, Path(f"{reference.name}-{candidate.name}"), told["device"])
    record = codec.from_json(
        timing.ComparisonRecord,
        {
            **told,
            "mode": mode,
            "reference": str(reference),
            "candidate": str(candidate),
            "threads": request.threads,
            "kernels": [s.kernels for s in settings],
            "measured_at": _now(),
            "samples_file": f"{place}.npz" if place and rows is not None else None,
        },
    )
    _store(place, record, rows)
    return record


def _settings(path: Path, request: Request) -> Settings:
    runtime = artifact.read(path).manifest.runtime
    kernels = request.kernels or timed_kernels(runtime)
    known = registry.runtime(runtime).kernel_sets
    if kernels not in known:
        raise ConfigError(f"The kernels {kernels!r} are unknown to {runtime}; accepted: {', '.join(known)}.")
    return Settings(
        profile=request.profile,
        threads=request.threads,
        kernels=kernels,
        per_op=request.per_op,
        controls={"governor": request.controls, "cpus": list(request.cpus)},
        runner=request.runner,
    )


def _is_coral(device: str) -> bool:
    return device.partition(":")[0] == "coral"


def _stands_in(subject: Subject, device: str) -> bool:
    """Tell whether a program is run here in place of its target's device: real kernels, another machine."""
    try:
        family = registry.target(subject.artifact.manifest.target).family
    except ConfigError:
        return False
    return device == "local" and family != "linux"


@contextlib.contextmanager
def _opened(name: str, progress: Progress) -> Iterator[Device]:
    if _is_coral(name):
        with attach.opened(DeviceSpec(kind="local"), progress) as device:
            yield device
        return
    specs = attach.resolve(name)
    if len(specs) != 1:
        raise ConfigError(f"{name} stands for {len(specs)} devices; a measurement takes one.", hint="Give its name.")
    with attach.opened(specs[0], progress) as device:
        yield device


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let a TERM or HUP unwind as Ctrl-C does, so that devices are closed and controls restored."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    try:
        before = [signal.signal(n, stop) for n in numbers]
    except ValueError:  # not in the main thread: whoever started it handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@artifact.interprets
def _arena_bytes(opened: Artifact) -> int | None:
    """Return the planned memory of intermediate tensors, as the build found it; no measurement."""
    found = opened.manifest.metrics.memory.get("arena_bytes")
    return int(found) if found is not None else None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _place(request: Request, path: Path, device: str) -> Path | None:
    """Return the path, without its suffix, of the record: names and the time."""
    if request.output is None:
        return None
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{path.resolve().name}-{device}").strip("-.")
    return request.output / f"{words}-{time.strftime('%Y%m%d-%H%M%S')}"


def _store(place: Path | None, record: object, samples: NDArray[Any] | None) -> None:
    if place is None:
        return
    with translating_os_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        if samples is not None:
            np.savez(f"{place}.npz", samples_ns=samples)
        codec.write_atomically(Path(f"{place}.json"), machine.dumps(codec.to_json(record)))
