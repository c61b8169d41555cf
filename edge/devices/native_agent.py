"""Asks a native runner instead of the agent, where a device has no Python: same questions, same answers."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import codec
from edge.devices import native
from edge.devices.base import Completed, Device, DeviceFacts
from edge.devices.client import RUN_TIMEOUT_S, Agent, signal_name, timing_of
from edge.devices.programs import DeviceProgram
from edge.errors import DeviceError
from edge.isolate import Progress, no_progress
from edge.measure.latency import Timing
from edge.measure.latency_record import Profile, WarmUp
from edge.signature import TensorSpec

Array = NDArray[np.generic]
_START_S = 60.0
_MOST_ANSWER = 8 << 20  # characters; what a runner measured comes in files


class NativeAgent(Agent):
    """One runner on one device, compiled and sent with all its libraries. Raises DeviceError, MissingPackageError."""

    runner = "native"

    def __init__(self, device: Device, runtime: str, progress: Progress = no_progress) -> None:
        super().__init__(device)
        self._bundle = native.bundle(runtime, _machine(device), progress)
        self._sent_runner: list[str] | None = None
        self._progress = progress

    def _command(self) -> list[str]:
        """Send the bundle, once; return the command in front of an operation, relative to the working folder."""
        if self._sent_runner is None:
            made = self._bundle
            self._progress(f"sending the native runner ({made.size_bytes / 1e6:.0f} MB)", None)
            loader, program = self._push(made.loader), self._push(made.program)
            libraries = ":".join(self._push(path) for path in made.libraries)
            allowed = self.device.run(["chmod", "700", loader])
            if allowed.code != 0:
                raise DeviceError(
                    f"{self.device.spec} does not let the runner be started: {allowed.error_text}",
                    hint="Is its working folder mounted noexec? Set `workdir` in devices.toml to another one.",
                )
            self._sent_runner = [loader, "--preload", libraries, program]
        return self._sent_runner

    def _push(self, path: Path) -> str:
        return f"./{Path(self.device.push(path)).name}"

    def ask(self, op: str, *, timeout_s: float = 600.0, **fields: Any) -> dict[str, Any]:
        """Return the result of one operation; raise DeviceError with the runner's diagnosis, or that of its death."""
        words = [f"{key}={value}" for key, value in fields.items()]
        done = self.device.run([*self._command(), op, *words], timeout_s=timeout_s + _START_S)
        answer = _answer(done)
        if answer is None:
            raise self._died(done)
        with self.sensible():
            if not answer["ok"]:
                raise self.refusal({**answer["error"], "tail": done.error_text})
            result: dict[str, Any] = answer["result"]
            result.keys()
            return result

    def _died(self, done: Completed) -> DeviceError:
        words = done.error_text
        if done.code > 128:
            name = signal_name(done.code)
            kind = "memory" if name == "SIGKILL" else "crash"
            text = f"the runtime was ended by {name} on the device"
            return self.refusal({"kind": kind, "message": text, "tail": words})
        return DeviceError(
            f"The native runner on {self.device.spec} could not be started (exit code {done.code}): {words}",
            hint="Its working folder may be mounted noexec: set `workdir` in devices.toml to another one.",
        )

    def facts(self) -> DeviceFacts:
        """Return what the device is; its runtime is the one that was sent, and it has no Python that is used."""
        package = native.RUNTIMES[_runtime_of(self._bundle)].package
        told = {**self.ask("hello", timeout_s=60.0), "runtimes": {package: self._bundle.version}}
        with self.sensible():
            return codec.from_json(DeviceFacts, told)

    def _run_chunk(
        self, program: DeviceProgram, remote: str, chunk: Sequence[Mapping[str, Array]]
    ) -> Iterator[dict[str, Array]]:
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            fields = {**self._fields(program, chunk, Path(place)), "path": f"./{Path(remote).name}"}
            wanted = f"outputs-{next(self._numbers)}.bin"
            told = self.ask("run", timeout_s=RUN_TIMEOUT_S, outputs=wanted, samples=len(chunk), **fields)
            self._forget(fields["inputs"])
            content = self._pull(wanted, Path(place))
        with self.sensible():
            rows = list(_outputs(program.signature.outputs, told["shapes"], content, len(chunk)))
        yield from rows

    def _fields(self, program: DeviceProgram, chunk: Sequence[Mapping[str, Array]], place: Path) -> dict[str, Any]:
        """Return the fields that name a program and its samples."""
        if program.stateful and program.runtime == "litert":
            raise DeviceError(
                "LiteRT's C API does not load programs that keep state, and the native runner uses it.",
                hint="Use --runner python, with Python, numpy and ai-edge-litert on the device.",
            )
        fed = place / "inputs.bin"
        inputs = program.signature.inputs
        with fed.open("wb") as stream:
            for sample in chunk:
                for spec in inputs:
                    stream.write(np.ascontiguousarray(sample[spec.name], dtype=spec.dtype).tobytes())
        shapes = ";".join("x".join(map(str, np.asarray(chunk[0][t.name]).shape)) for t in inputs)
        return {
            "path": self._push(program.path),
            "kernels": program.kernels,
            "threads": program.threads,
            "input_tensors": ",".join(map(str, program.input_indices)),
            "output_tensors": ",".join(map(str, program.output_indices)),
            "shapes": shapes if inputs else "-",
            "inputs": self._push(fed),
        }

    def _forget(self, name: str) -> None:
        self.device.forget(f"{self.device.workdir}/{Path(name).name}")

    def _pull(self, name: str, place: Path) -> bytes:
        remote = f"{self.device.workdir}/{name}"
        local = place / name
        self.device.pull(remote, local)
        self.device.forget(remote)
        return local.read_bytes()

    def measure(
        self, program: DeviceProgram, sample: Mapping[str, Array], profile: Profile
    ) -> tuple[Timing, float, float]:
        """Time the program there; return the raw timing, the load time and the first run in ms."""
        timing, told = self.profile(program, sample, profile)
        with self.sensible():
            return timing, float(told["load_ms"]), float(told["first_ms"])

    def profile(
        self, program: DeviceProgram, sample: Mapping[str, Array], profile: Profile
    ) -> tuple[Timing, dict[str, Any]]:
        """Time the program there; return the raw timing and all else that was told: `load_ms`, `first_ms`, `spans`."""
        rule = profile.warm_up
        limit = profile.max_seconds + profile.cooldown_s + rule.cap_s + 300.0
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            wanted = f"samples-{next(self._numbers)}.bin"
            told = self.ask(
                "measure",
                timeout_s=limit,
                samples=wanted,
                runs=profile.runs,
                seconds=profile.seconds,
                max_seconds=profile.max_seconds,
                cooldown_s=profile.cooldown_s,
                **_warm_up(rule),
                **self._fields(program, [sample], Path(place)),
            )
            content = self._pull(wanted, Path(place))
        with self.sensible():
            durations, starts = np.split(np.frombuffer(content, "<i8").astype(np.int64), 2)
            return timing_of(told, durations, starts), told

    def blocks(
        self,
        programs: Sequence[DeviceProgram],
        samples: Sequence[Mapping[str, Array]],
        *,
        seed: int,
        groups: int,
        block_s: float,
        controls: Mapping[str, Any],
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Run two programs in alternating blocks, as Stopwatch.blocks does; the runner sets no controls."""
        refuse_controls(controls)
        chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        fields: dict[str, Any] = {"loads": chance.randrange(2), "block_s": block_s}
        fields["firsts"] = ",".join(str(chance.randrange(2)) for _ in range(groups))
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            for side, (program, sample) in enumerate(zip(programs, samples, strict=True)):
                own = Path(place) / str(side)
                own.mkdir()
                fields |= {f"{side}.{key}": value for key, value in self._fields(program, [sample], own).items()}
            wanted = f"samples-{next(self._numbers)}.bin"
            fields |= _warm_up(WarmUp(seconds=0.05, cap_s=5.0))
            told = self.ask("blocks", timeout_s=RUN_TIMEOUT_S, samples=wanted, **fields)
            content = self._pull(wanted, Path(place))
        with self.sensible():
            return np.frombuffer(content, "<i8").astype(np.int64).reshape(-1, 5), told

    def memory(self, program: DeviceProgram, sample: Mapping[str, Array]) -> dict[str, int]:
        """Return the peak resident size in KiB: before loading, after loading, after one run."""
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            return self.ask("memory", **self._fields(program, [sample], Path(place)))

    def count(self, program: DeviceProgram, sample: Mapping[str, Array], runs: int) -> None:
        """Run `runs` times between marks, for a plug-in of the emulator."""
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            self.ask("count", timeout_s=RUN_TIMEOUT_S, runs=runs, **self._fields(program, [sample], Path(place)))


def refuse_controls(controls: Mapping[str, Any]) -> None:
    """Raise DeviceError for processors to run on, which the runner cannot be told."""
    if controls.get("cpus"):
        raise DeviceError(
            "The native runner runs on all processors of the device; it takes no --cpus.",
            hint="Leave --cpus away, or use --runner python with Python, numpy and the runtime there.",
        )


def _warm_up(rule: WarmUp) -> dict[str, Any]:
    return {f"warm_{key}": value for key, value in asdict(rule).items()}


def _machine(device: Device) -> str:
    done = device.run(["uname", "-m"], timeout_s=60.0)
    name = done.stdout.decode(errors="replace").strip()
    if done.code != 0 or not name:
        raise DeviceError(f"{device.spec} does not tell its processor: {done.error_text or 'no answer'}")
    return name.splitlines()[-1]


def _runtime_of(made: native.Bundle) -> str:
    return next(name for name, one in native.RUNTIMES.items() if one.distribution == made.distribution)


def _answer(done: Completed) -> dict[str, Any] | None:
    """Return the answer among what the device printed: runtimes print too."""
    for line in done.stdout.decode(errors="replace").splitlines():
        if line.startswith('{"edgekit-native"') and len(line) <= _MOST_ANSWER:
            try:
                found: dict[str, Any] = json.loads(line)
            except (ValueError, RecursionError):
                continue
            return found
    return None


def _outputs(
    specs: Sequence[TensorSpec], shapes: Sequence[Sequence[int]], content: bytes, samples: int
) -> Iterator[dict[str, Array]]:
    """Yield each sample's outputs by name from raw bytes; raise DeviceError where they are too few or too many."""
    ends = [(t.name, np.dtype(t.dtype), tuple(shape)) for t, shape in zip(specs, shapes, strict=False)]
    sizes = [dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for _, dtype, shape in ends]
    if len(specs) != len(shapes) or samples * sum(sizes) != len(content):
        raise DeviceError(
            f"The runner gave {len(shapes)} outputs and {len(content)} bytes for {samples} samples; the program has "
            f"{len(specs)} outputs of {sum(sizes)} bytes."
        )
    offset = 0
    for _ in range(samples):
        one: dict[str, Array] = {}
        for (name, dtype, shape), size in zip(ends, sizes, strict=True):
            one[name] = np.frombuffer(content, dtype, size // dtype.itemsize, offset).reshape(shape).copy()
            offset += size
        yield one
