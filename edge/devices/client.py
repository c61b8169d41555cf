"""The host's side of the agent: pushes it, asks it, and turns its answers into values and errors."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import codec
from edge.devices.base import Completed, Device, DeviceFacts
from edge.devices.programs import DeviceProgram
from edge.errors import DeviceError, blaming
from edge.measure.environment import Environment
from edge.measure.latency import Timing
from edge.measure.latency_record import Profile

Array = NDArray[np.generic]
AGENT = Path(__file__).with_name("agent.py")
PROTOCOL = 1
CHUNK_BYTES = 32 * 2**20
CHUNK_SAMPLES = 256
RUN_TIMEOUT_S = 1800.0
_START_S = 60.0  # the interpreter's own start, slow on small boards

_HINTS = {
    "crash": "Try --kernels reference, or another version of the runtime on the device; the program may be damaged.",
    "memory": "Close other programs on the device, or use a smaller model.",
    "timeout": "The program is too slow for this device, or the device hangs.",
    "disk": "Free space on the device, or set `workdir` in devices.toml to a place with room.",
    "no-runtime": "Install one there: `pip install ai-edge-litert numpy`, and give that Python in devices.toml.",
    "load": "The device's runtime may be older than the one of the build: compare their versions.",
}


class NoPythonError(DeviceError):
    """The device has no Python that could be started."""


class Agent:
    """Asks the agent on one device; a fresh agent process per question, so that nothing is lost when one dies."""

    runner = "python"
    gives_outputs: bool = True

    def __init__(self, device: Device) -> None:
        self.device = device
        self._numbers = itertools.count(1)

    def ask(self, op: str, *, timeout_s: float = 600.0, **fields: Any) -> dict[str, Any]:
        """Return the result of one request; raise DeviceError with the agent's diagnosis."""
        number = next(self._numbers)
        request = {"edgekit": PROTOCOL, "id": number, "op": op, "timeout_s": timeout_s, **fields}
        line = (json.dumps(request) + "\n").encode()
        done = self.device.run(self._command(), timeout_s=timeout_s + _START_S, stdin=line)
        answer = _answer(done, number)
        if answer is None:
            raise self._silence(done)
        with self.sensible():
            if not answer.get("ok"):
                raise self.refusal(answer.get("error") or {})
            result: dict[str, Any] = answer["result"]
            result.keys()
            return result

    def sensible(self) -> contextlib.AbstractContextManager[None]:
        """Make what strange answers lead to a DeviceError: the device's words and files are content from outside."""
        return blaming(
            DeviceError,
            f"{self.device.spec} gave an answer that edgekit does not understand",
            hint="Is the device the one you mean, and does nothing else use its working folder?",
        )

    def _command(self) -> list[str]:
        return [self.device.python, "-B", self.device.push(AGENT)]

    def _silence(self, done: Completed) -> DeviceError:
        words = done.error_text
        if done.code > 128:
            return DeviceError(
                f"The agent on {self.device.spec} was ended by {signal_name(done.code)}.",
                hint="The device may have run out of memory (see its kernel log), or someone ended the process.",
            )
        if done.code == 127 or "not found" in words or "No such file" in words:
            return NoPythonError(
                f"Python could not be started on {self.device.spec} as {self.device.python!r}: {words}",
                hint="Install Python 3 there, or give its path as `python` in devices.toml.",
            )
        return DeviceError(f"The agent on {self.device.spec} gave no answer (exit code {done.code}): {words}")

    def refusal(self, error: Mapping[str, Any]) -> DeviceError:
        """Return the error for an agent's diagnosis: its kind, message and perhaps the last words of the runtime."""
        kind, message = str(error.get("kind")), str(error.get("message"))
        last = str(error.get("tail") or "").strip().splitlines()
        said = f" Its last words: {last[-1][:200]}" if last else ""
        return DeviceError(f"{self.device.spec}: {message}.{said}".replace("..", "."), hint=_HINTS.get(kind))

    def facts(self) -> DeviceFacts:
        """Return what the device is."""
        with self.sensible():
            return codec.from_json(DeviceFacts, self.ask("hello", timeout_s=60.0))

    def run(self, program: DeviceProgram, samples: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """Yield the outputs by name of each sample (program dtypes, batch included), pushed and run in chunks."""
        remote = self.device.push(program.path)
        for chunk in _chunks(samples):
            yield from self._run_chunk(program, remote, chunk)

    def _run_chunk(
        self, program: DeviceProgram, remote: str, chunk: Sequence[Mapping[str, Array]]
    ) -> Iterator[dict[str, Array]]:
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            fed, found = Path(place) / "inputs.npz", Path(place) / "outputs.npz"
            write_samples(fed, program, chunk)
            sent = self.device.push(fed)
            wanted = f"{self.device.workdir}/outputs-{next(self._numbers)}.npz"
            fields = {"program": program.request(remote), "inputs": sent, "outputs": wanted, "remove": [sent]}
            self.ask("run", timeout_s=RUN_TIMEOUT_S, **fields)
            self.device.forget(sent)
            self.device.pull(wanted, found)
            self.device.forget(wanted)
            with self.sensible(), np.load(found, allow_pickle=False) as data:
                arrays = [data[str(i)] for i in range(len(program.signature.outputs))]
        names = [t.name for t in program.signature.outputs]
        with self.sensible():
            rows = [{n: array[i] for n, array in zip(names, arrays, strict=True)} for i in range(len(chunk))]
        yield from rows

    def measure(
        self, program: DeviceProgram, sample: Mapping[str, Array], profile: Profile
    ) -> tuple[Timing, float, float]:
        """Time the program there; return the raw timing, the load time and the first run in ms."""
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            fields = self._one_sample(program, sample, Path(place))
            wanted = f"{self.device.workdir}/samples-{next(self._numbers)}.npz"
            limit = profile.max_seconds + profile.cooldown_s + profile.warm_up.cap_s + 300.0
            told = self.ask("measure", timeout_s=limit, profile=asdict(profile), samples=wanted, **fields)
            local = Path(place) / "samples.npz"
            self.device.pull(wanted, local)
            self.device.forget(wanted)
            with self.sensible(), np.load(local, allow_pickle=False) as data:
                durations, starts = data["durations"], data["starts"]
        return self._measured(told, durations, starts)

    def _measured(
        self, told: Mapping[str, Any], durations: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> tuple[Timing, float, float]:
        with self.sensible():
            return timing_of(told, durations, starts), float(told["load_ms"]), float(told["first_ms"])

    def memory(self, program: DeviceProgram, sample: Mapping[str, Array]) -> dict[str, int]:
        """Return the peak resident size in KiB: before loading, after loading, after one run."""
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            return self.ask("memory", **self._one_sample(program, sample, Path(place)))

    def count(self, program: DeviceProgram, sample: Mapping[str, Array], runs: int) -> None:
        """Run `runs` times between marks, in the agent's own process, for a plug-in of the emulator."""
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            fields = self._one_sample(program, sample, Path(place))
            self.ask("count", timeout_s=RUN_TIMEOUT_S, runs=runs, inline=True, **fields)

    def _one_sample(self, program: DeviceProgram, sample: Mapping[str, Array], place: Path) -> dict[str, Any]:
        write_samples(place / "inputs.npz", program, [sample])
        return {
            "program": program.request(self.device.push(program.path)),
            "inputs": self.device.push(place / "inputs.npz"),
        }


def signal_name(code: int) -> str:
    """Return the name of the signal in an exit code above 128."""
    number = code - 128
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def timing_of(told: Mapping[str, Any], durations: NDArray[np.int64], starts: NDArray[np.int64]) -> Timing:
    """Return the raw timing that a device told, with the samples of its file in ns."""
    keys = ("runs", "duration_s", "warm_up_runs", "warm_up_stable", "clock", "timer_overhead_ns")
    return Timing(
        samples_ns=durations,
        starts_ns=starts,
        before=codec.from_json(Environment, told["before"]),
        after=codec.from_json(Environment, told["after"]),
        **{k: told[k] for k in keys},
    )


def _answer(done: Completed, number: int) -> dict[str, Any] | None:
    """Return the answer among what the device printed: login scripts may print too."""
    for line in done.stdout.decode(errors="replace").splitlines():
        if line.startswith('{"edgekit"'):
            try:
                found: dict[str, Any] = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if found.get("id") == number and found.get("edgekit") == PROTOCOL:
                return found
    return None


def _chunks(samples: Iterable[Mapping[str, Array]]) -> Iterator[list[Mapping[str, Array]]]:
    """Yield lists of samples of equal shapes, limited in bytes and number."""
    chunk: list[Mapping[str, Array]] = []
    size, shapes = 0, None
    for sample in samples:
        own = sum(np.asarray(v).nbytes for v in sample.values())
        now = {name: np.asarray(v).shape for name, v in sample.items()}
        if chunk and (size + own > CHUNK_BYTES or len(chunk) >= CHUNK_SAMPLES or now != shapes):
            yield chunk
            chunk, size = [], 0
        chunk.append(sample)
        size, shapes = size + own, now
    if chunk:
        yield chunk


def write_samples(path: Path, program: DeviceProgram, samples: Sequence[Mapping[str, Array]]) -> None:
    """Write the inputs by position, samples first."""
    names = [t.name for t in program.signature.inputs]
    arrays: dict[str, Any] = {str(i): np.stack([s[name] for s in samples]) for i, name in enumerate(names)}
    np.savez(path, **arrays)
