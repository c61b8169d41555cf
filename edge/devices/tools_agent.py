"""Runs a program by the runtimes' own Android programs, which the user has built or fetched and put on the phone.

devices.toml names them: `benchmark_model`, `run_model` or `executor_runner` with a path on the phone, and perhaps the
SHA-256 of each as `benchmark_model_sha256` and so on. benchmark_model and executor_runner give outputs back, with one
process for each sample; run_model tells times only.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.devices import tool_output
from edge.devices.base import Completed, Device, DeviceFacts
from edge.devices.client import Agent, signal_name
from edge.devices.programs import DeviceProgram
from edge.errors import DeviceError
from edge.measure.latency import Timing
from edge.measure.latency_record import Profile

Array = NDArray[np.generic]
_TIMEOUT_S = 900.0
_FOR = {"litert": ("benchmark_model", "run_model"), "executorch": ("executor_runner",)}


class ToolsAgent(Agent):
    """One Android program on one phone. Raises DeviceError where none is named, or is another than was declared."""

    runner = "tools"

    def __init__(self, device: Device, runtime: str) -> None:
        super().__init__(device)
        options = device.spec.options
        named = next((name for name in _FOR[runtime] if name in options), None)
        if named is None:
            raise DeviceError(
                f"No program that runs {runtime} models is named for {device.spec}.",
                hint=f"Put {' or '.join(_FOR[runtime])} on the phone and its path into devices.toml.",
            )
        self.tool, self.path = named, options[named]
        self.gives_outputs = named != "run_model"
        self.sha256 = self._verified(options.get(f"{named}_sha256"))

    def _verified(self, declared: str | None) -> str:
        done = self.device.run(["sha256sum", self.path], timeout_s=120.0)
        found = re.match(r"\\?([0-9a-f]{64})\b", done.stdout.decode(errors="replace"))
        if done.code != 0 or found is None:
            raise DeviceError(
                f"{self.device.spec} has no readable {self.tool} at {self.path}: {done.error_text or 'no answer'}",
                hint="Push it there: adb push, then adb shell chmod +x.",
            )
        if declared and declared.lower() != found[1]:
            raise DeviceError(
                f"{self.path} on {self.device.spec} has the SHA-256 {found[1]}; devices.toml declares {declared}.",
                hint="Put the declared program there, or correct devices.toml.",
            )
        return found[1]

    def facts(self) -> DeviceFacts:
        """Return what the device tells of itself."""
        return self.device.facts()

    def _run_tool(self, *words: str) -> str:
        done = self.device.run([self.path, *words], timeout_s=_TIMEOUT_S)
        text = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
        if done.code != 0:
            raise self._failed(done, text)
        return text

    def _failed(self, done: Completed, text: str) -> DeviceError:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if done.code > 128:
            kind, said = "crash", f"{self.tool} was ended by {signal_name(done.code)} on the device"
        elif done.code == 126:
            kind, said = "load", f"{self.path} may not be run (adb shell chmod +x {self.path})"
        else:
            kind, said = "run", f"{self.tool} failed with exit code {done.code}"
        return self.refusal({"kind": kind, "message": said, "tail": lines[-1] if lines else ""})

    def run(self, program: DeviceProgram, samples: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """Yield the outputs by name of each sample, a process of the tool for each."""
        if not self.gives_outputs:
            raise DeviceError(f"{self.tool} gives no outputs back.", hint="Name benchmark_model in devices.toml.")
        remote = self.device.push(program.path)
        for sample in samples:
            with tempfile.TemporaryDirectory(prefix="edgekit-tool-") as place:
                yield self._run_one(program, remote, sample, Path(place))

    def _run_one(
        self, program: DeviceProgram, remote: str, sample: Mapping[str, Array], place: Path
    ) -> dict[str, Array]:
        sent = []
        for index, spec in enumerate(program.signature.inputs):
            path = place / f"{index}.bin"
            path.write_bytes(np.ascontiguousarray(sample[spec.name], dtype=spec.dtype).tobytes())
            sent.append(self.device.push(path))
        wanted = f"{self.device.workdir}/tool-{next(self._numbers)}"
        if self.tool == "executor_runner":
            self._run_tool(f"--model_path={remote}", f"--inputs={','.join(sent)}", f"--output_file={wanted}")
            found = [f"{wanted}-{i}.bin" for i in range(len(program.signature.outputs))]
        else:
            self._run_tool(*_benchmark_inputs(program, remote, sample, sent), f"--output_filepath={wanted}")
            found = [wanted]
        for remote_input in dict.fromkeys(sent):
            self.device.forget(remote_input)
        content = b"".join(self._pulled(output, place / "out.bin") for output in found)
        return _split(program, content)

    def _pulled(self, remote: str, local: Path) -> bytes:
        self.device.pull(remote, local)
        self.device.forget(remote)
        return local.read_bytes()

    def statistics(self, program: DeviceProgram, profile: Profile) -> dict[str, Any]:
        """Return what the tool tells of its own runs with inputs of its own; keys of ToolTiming, and who told it."""
        remote = self.device.push(program.path)
        timing = tool_output.PARSERS[self.tool](self._run_tool(*self._timed_words(program, remote, profile)))
        if timing is None:
            raise DeviceError(
                f"{self.tool} on {self.device.spec} told no times.",
                hint="Is it of another version, or built without its log (executor_runner: EXECUTORCH_ENABLE_LOGGING)?",
            )
        return {"tool": self.tool, "sha256": self.sha256, **asdict(timing)}

    def _timed_words(self, program: DeviceProgram, remote: str, profile: Profile) -> list[str]:
        if self.tool == "executor_runner":
            return [
                f"--model_path={remote}",
                f"--num_executions={profile.runs}",
                f"--cpu_threads={program.threads}",
            ]
        if self.tool == "run_model":
            return [f"--graph={remote}", f"--iterations={profile.runs}"]
        return [
            *_benchmark_words(program, remote),
            f"--num_runs={profile.runs}",
            f"--min_secs={profile.seconds:g}",
            f"--max_secs={profile.max_seconds:g}",
            f"--warmup_runs={profile.warm_up.runs}",
            "--report_peak_memory_footprint=true",
        ]

    def measure(
        self, program: DeviceProgram, sample: Mapping[str, Array], profile: Profile
    ) -> tuple[Timing, float, float]:
        """Raise DeviceError: the tools tell statistics, no single times that a verdict could be drawn from."""
        del program, sample, profile
        raise DeviceError(f"{self.tool} tells no single times.", hint="`edgekit check` reports what it tells.")

    def memory(self, program: DeviceProgram, sample: Mapping[str, Array]) -> dict[str, int]:
        """Return nothing: what benchmark_model tells of memory is among its statistics."""
        del program, sample
        return {}


def _benchmark_words(program: DeviceProgram, remote: str) -> list[str]:
    # XNNPACK is what the default resolver applies; `builtin` needs it switched off.
    if program.kernels == "reference":
        raise DeviceError("benchmark_model has no reference kernels.", hint="Use --kernels xnnpack or builtin.")
    xnnpack = "true" if program.kernels == "xnnpack" else "false"
    return [f"--graph={remote}", f"--num_threads={program.threads}", f"--use_xnnpack={xnnpack}"]


def _benchmark_inputs(program: DeviceProgram, remote: str, sample: Mapping[str, Array], sent: list[str]) -> list[str]:
    """Return the words for one run with given inputs; benchmark_model names them by tensor, in the graph's order."""
    names = _tensor_names(program)
    if wrong := [name for name in names if re.search(r"[,:\s]", name)]:
        raise DeviceError(
            f"benchmark_model cannot be given the input {wrong[0]!r}: its flags have no quotes for ',' and ':'.",
            hint="Use --runner native, or rename the model's inputs.",
        )
    shapes = [",".join(map(str, np.asarray(sample[t.name]).shape)) for t in program.signature.inputs]
    return [
        *_benchmark_words(program, remote),
        "--num_runs=1",
        "--min_secs=0",
        "--warmup_runs=0",
        "--warmup_min_secs=0",
        f"--input_layer={','.join(names)}",
        f"--input_layer_shape={':'.join(shapes)}",
        f"--input_layer_value_files={','.join(f'{n}:{p}' for n, p in zip(names, sent, strict=True))}",
    ]


def _tensor_names(program: DeviceProgram) -> list[str]:
    from edge.targets.litert import contract, flatbuffer

    model = flatbuffer.load(program.path.read_bytes())
    graph = flatbuffer.graph(model, contract.contract_of(model).subgraph)
    return [graph.tensors[index].name for index in program.input_indices]


def _output_order(program: DeviceProgram) -> list[int]:
    """Return the positions of the signature's outputs in the order of the file: the graph's for benchmark_model."""
    if program.runtime != "litert":
        return list(range(len(program.signature.outputs)))
    from edge.targets.litert import flatbuffer

    graph = flatbuffer.load(program.path.read_bytes()).subgraphs[0]
    order = [int(tensor) for tensor in graph.outputs]
    return sorted(range(len(program.output_indices)), key=lambda i: order.index(program.output_indices[i]))


def _split(program: DeviceProgram, content: bytes) -> dict[str, Array]:
    """Return the outputs by name; raise DeviceError where the bytes are not those of the signature's shapes."""
    found: dict[str, Array] = {}
    offset = 0
    for position in _output_order(program):
        spec = program.signature.outputs[position]
        shape = [max(1, d) for d in spec.shape]
        count = int(np.prod(shape, dtype=np.int64))
        size = count * np.dtype(spec.dtype).itemsize
        if offset + size > len(content):
            break
        found[spec.name] = np.frombuffer(content, spec.dtype, count, offset).reshape(shape).copy()
        offset += size
    if offset != len(content) or len(found) != len(program.signature.outputs):
        raise DeviceError(f"The tool gave {len(content)} bytes of outputs, which are not those of the program.")
    return {t.name: found[t.name] for t in program.signature.outputs}
