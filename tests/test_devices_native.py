"""Runners without Python: compiled here, sent with all their libraries, equal to the agent to the last bit."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import codec
from edge.devices import attach, native, runners
from edge.devices.base import Completed, Device, DeviceFacts, parse
from edge.devices.client import Agent
from edge.devices.fake import FakeDevice
from edge.devices.instructions import count_instructions
from edge.devices.native_agent import NativeAgent, _answer, _outputs
from edge.devices.programs import DeviceProgram, describe
from edge.errors import DeviceError, EdgekitError, MissingPackageError
from edge.measure.latency_record import Profile, WarmUp
from edge.signature import TensorSpec
from edge.targets.litert.session import open_program
from tests import board_setup
from tests.small_models import classifier, labelled_data

SHORT = Profile(
    name="test", runs=20, seconds=0.0, max_seconds=5.0, strict=False, warm_up=WarmUp(runs=5, seconds=0, cap_s=1)
)


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    """Share bundles among the tests, in the cache of the emulated boards."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler is installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(board_setup.PLACE))
        yield


@pytest.fixture
def local() -> Iterator[Device]:
    """Return this host as a device."""
    with attach.opened(parse("local")) as device:
        yield device


def _program(folder: Path, content: bytes, kernels: str = "xnnpack") -> DeviceProgram:
    path = folder / "net.tflite"
    path.write_bytes(content)
    signature = open_program(path, kernels="reference", threads=1).signature
    return describe(path, runtime="litert", kernels=kernels, threads=1, signature=signature)


def _samples(count: int) -> list[dict[str, Any]]:
    return [{"x": row[None]} for row in labelled_data()["x"][:count]]


def _lists(outputs: Any) -> list[dict[str, Any]]:
    return [{name: value.tolist() for name, value in one.items()} for one in outputs]


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin"])
def test_the_runner_is_equal_to_the_agent(local: Device, tmp_path: Path, kernels: str) -> None:
    """LiteRT through its C API gives what it gives through Python, with each kernel set that it has."""
    program = _program(tmp_path, classifier(), kernels)
    found = list(NativeAgent(local, "litert").run(program, _samples(7)))
    assert _lists(found) == _lists(Agent(local).run(program, _samples(7)))


def test_reference_kernels_are_refused(local: Device, tmp_path: Path) -> None:
    """LiteRT 2.3 answers a wish for reference kernels with its other ones: the runner does not hide that."""
    with pytest.raises(DeviceError, match="reference is not among those"):
        NativeAgent(local, "litert").memory(_program(tmp_path, classifier(), "reference"), _samples(1)[0])


def test_facts_latency_and_memory_of_the_runner(local: Device, tmp_path: Path) -> None:
    """The runner tells the machine as the agent does, times like it, and needs less memory than a Python."""
    program, agent = _program(tmp_path, classifier()), NativeAgent(local, "litert")
    facts, told = agent.facts(), Agent(local).facts()
    for name in ("machine", "kernel", "memory_bytes", "page_bytes", "system", "emulated"):
        assert getattr(facts, name) == getattr(told, name), name
    timing, load_ms, first_ms = agent.measure(program, _samples(1)[0], SHORT)
    assert (timing.runs, len(timing.samples_ns), timing.clock) == (20, 20, "CLOCK_MONOTONIC_RAW")
    assert (np.diff(timing.starts_ns) >= timing.samples_ns[:-1]).all()
    assert min(load_ms, first_ms) > 0
    assert timing.before.kernel == told.kernel
    memory = agent.memory(program, _samples(1)[0])
    assert 0 < memory["before_kib"] <= memory["loaded_kib"] <= memory["peak_kib"]
    assert memory["peak_kib"] < Agent(local).memory(program, _samples(1)[0])["peak_kib"]


def test_a_broken_program_is_a_diagnosis(local: Device, tmp_path: Path) -> None:
    """A file that is no program is refused by the runtime, with its own last words."""
    program = _program(tmp_path, classifier())
    program.path.write_bytes(program.path.read_bytes()[:200])
    with pytest.raises(DeviceError, match="cannot load the program"):
        list(NativeAgent(local, "litert").run(program, _samples(1)))


def test_samples_of_another_size_are_refused(local: Device, tmp_path: Path) -> None:
    """A file of inputs that is too short or too long for its shape is an error, never a silent shift."""
    program, agent = _program(tmp_path, classifier()), NativeAgent(local, "litert")
    fields = agent._fields(program, _samples(2), tmp_path)
    for samples, message in ((3, "the file has fewer"), (1, "larger than the program's inputs")):
        with pytest.raises(DeviceError, match=message):
            agent.ask("run", outputs="o.bin", samples=samples, **fields)


def test_a_crash_of_the_runtime_is_a_diagnosis(local: Device, tmp_path: Path) -> None:
    """A runner that a signal ends is told by the signal's name; SIGKILL is told as lack of memory."""

    class Crashing(NativeAgent):
        signal = 11

        def _command(self) -> list[str]:
            return ["sh", "-c", f"echo dying >&2; kill -{self.signal} $$"]

    agent = Crashing(local, "litert")
    program = _program(tmp_path, classifier())
    with pytest.raises(DeviceError, match=r"ended by SIGSEGV on the device\. Its last words: dying") as caught:
        agent.memory(program, _samples(1)[0])
    assert "damaged" in str(caught.value.hint)
    agent.signal = 9
    with pytest.raises(DeviceError, match="ended by SIGKILL on the device") as caught:
        agent.memory(program, _samples(1)[0])
    assert "Close other programs" in str(caught.value.hint)


def test_the_runner_serves_where_there_is_no_python(tmp_path: Path) -> None:
    """Without a Python the native runner is taken by itself; with `--runner python` the reason is told."""
    program = _program(tmp_path, classifier())
    spec = parse("bare", {"bare": {"device": "local", "python": "/nowhere/python3"}})
    with attach.opened(spec) as device:
        agent, facts = runners.choose(device, "litert")
        assert (agent.runner, facts.python, list(facts.runtimes)) == ("native", "", ["ai_edge_litert"])
        host = open_program(program.path, kernels="xnnpack", threads=1)
        assert _lists(agent.run(program, _samples(2))) == _lists(host.run(s) for s in _samples(2))
        with pytest.raises(DeviceError, match="Python could not be started"):
            runners.choose(device, "litert", runner="python")
        with pytest.raises(DeviceError, match="delegate libedgetpu"):
            runners.choose(device, "litert", runner="native", delegate="libedgetpu.so.1")


def test_a_program_with_state_is_refused(local: Device, tmp_path: Path) -> None:
    """LiteRT's C API does not load variables: said before anything is sent."""
    from dataclasses import replace

    program = replace(_program(tmp_path, classifier()), stateful=True)
    with pytest.raises(DeviceError, match="does not load programs that keep state"):
        NativeAgent(local, "litert").memory(program, _samples(1)[0])


def test_machines_without_runtimes_are_refused() -> None:
    """A 32-bit board is told that there are no libraries, and what to do."""
    with pytest.raises(DeviceError, match="no native runner for armv7l") as caught:
        native.machine_of("armv7l")
    assert "tflite-runtime" in str(caught.value.hint)
    assert native.machine_of("arm64").name == "aarch64"


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that brings the compiler is in the hint."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingPackageError, match="aarch64-linux-gnu-g\\+\\+ is not installed") as caught:
        native.bundle("litert", "aarch64")
    assert "g++-aarch64-linux-gnu" in str(caught.value.hint)


def test_a_device_that_forbids_programs_is_named() -> None:
    """A working folder from which nothing may run is told, with the way out."""

    class Forbidding(FakeDevice):
        def run(self, command: Any, *, timeout_s: float = 0, stdin: bytes = b"") -> Completed:
            if command[0] == "uname":
                return Completed(code=0, stdout=platform.machine().encode() + b"\n", stderr=b"")
            if command[0] == "chmod":
                return Completed(code=0, stdout=b"", stderr=b"")
            return Completed(code=126, stdout=b"", stderr=b"Permission denied")

    with Forbidding(lambda v: v) as device, pytest.raises(DeviceError, match="Permission denied") as caught:
        NativeAgent(device, "litert").facts()
    assert "noexec" in str(caught.value.hint)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_raw_outputs_are_split_as_they_were_joined(data: st.DataObject) -> None:
    """Any outputs that are written sample after sample come back; a byte more or less is refused."""
    shapes = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=3))
    dtypes = data.draw(
        st.lists(st.sampled_from(["int8", "float32", "int64"]), min_size=len(shapes), max_size=len(shapes))
    )
    samples = data.draw(st.integers(1, 3))
    specs = [
        TensorSpec(name=f"o{i}", shape=tuple(s), dtype=d, layout="other", quantization=None)
        for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))
    ]
    random = np.random.default_rng(5)
    made = [[random.integers(-9, 9, s).astype(d) for s, d in zip(shapes, dtypes, strict=True)] for _ in range(samples)]
    content = b"".join(np.asarray(v).tobytes() for one in made for v in one)
    found = list(_outputs(specs, shapes, content, samples))
    assert _lists(found) == [{f"o{i}": np.asarray(v).tolist() for i, v in enumerate(one)} for one in made]
    with pytest.raises(DeviceError, match="bytes for"):
        list(_outputs(specs, shapes, content + b"x", samples))


@pytest.fixture(scope="module")
def arm() -> Iterator[None]:
    """Skip where boards cannot be emulated or nothing compiles for them."""
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("g++-aarch64-linux-gnu is not installed")
    with board_setup.emulated():
        try:
            native.bundle("litert", "aarch64")
        except EdgekitError as error:
            pytest.skip(error.message)
        yield


def test_the_runner_on_a_board_is_equal_to_the_agent_there(arm: None, tmp_path: Path) -> None:
    """The same ARM kernels through C as through Python: a uint8 network on an A53, where they differ from the host."""
    program = _program(tmp_path, board_setup.unsigned_network())
    random = np.random.default_rng(3)
    samples = [{"x": random.integers(0, 256, (1, 12, 12, 8)).astype(np.uint8)} for _ in range(3)]
    with attach.opened(parse("emulator:rpi3")) as device:
        agent, facts = runners.choose(device, "litert", runner="native")
        found = _lists(agent.run(program, samples))
        assert found == _lists(Agent(device).run(program, samples))
    assert (facts.cpu_part, facts.emulated, facts.model) == ("0xd03", True, "Raspberry Pi 3 Model B Plus Rev 1.3")
    host = open_program(program.path, kernels="xnnpack", threads=1)
    assert found != _lists(host.run(s) for s in samples)


@pytest.mark.slow
def test_the_runner_over_ssh_to_a_board_without_python(arm: None, tmp_path: Path) -> None:
    """A board behind a real sshd, no Python there: the runner is sent through the one connection, and is gone after."""
    program = _program(tmp_path, classifier())
    with board_setup.board() as made, board_setup.served(made) as server:
        with attach.opened(board_setup.spec_of(server, python="no-python")) as device:
            agent, facts = runners.choose(device, "litert")
            found = [o["y"] for o in agent.run(program, _samples(2))]
        assert made.run(["find", "/tmp", "-name", "edgekit.*"]).stdout == b""
    assert (agent.runner, facts.cpu_part, facts.emulated) == ("native", "0xd08", True)
    host = open_program(program.path, kernels="xnnpack", threads=1)
    assert np.allclose(found, [host.run(s)["y"] for s in _samples(2)], rtol=0, atol=2e-6)


def test_instructions_of_the_runner_are_repeatable(arm: None, tmp_path: Path) -> None:
    """Two counts of the same program by the runner are equal to the last digit, in two processes."""
    program = _program(tmp_path, classifier())
    try:
        counted = [count_instructions(program, _samples(1)[0], "rpi4", runner="native") for _ in range(2)]
    except MissingPackageError as error:
        pytest.skip(error.message)
    assert counted[0] == counted[1]
    assert counted[0].repeatable
    assert counted[0].total > counted[0].simd > 0


def test_the_bundle_needs_nothing_of_the_system(arm: None) -> None:
    """Loader and C library are in the bundle: it answers with an empty root, as below /data/local/tmp of a phone."""
    made = native.bundle("litert", "aarch64")
    command = ["qemu-aarch64-static", "-L", "/nowhere", "-cpu", "cortex-a72", str(made.loader)]
    command += ["--preload", ":".join(map(str, made.libraries)), str(made.program), "hello"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert b'{"edgekit-native": 1, "ok": true' in done.stdout
    assert made.size_bytes < 20e6


def test_facts_of_a_runner_are_device_facts() -> None:
    """Every key that the runner tells is a field of DeviceFacts."""
    made = native.bundle("litert", platform.machine())
    command = [str(made.loader), "--preload", ":".join(map(str, made.libraries)), str(made.program), "hello"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    from json import loads

    (line,) = [text for text in done.stdout.decode().splitlines() if text]
    assert codec.from_json(DeviceFacts, loads(line)["result"]).cpus == os.cpu_count()


def test_an_answer_without_end_is_none() -> None:
    """What a runner says is short; megabytes that begin as an answer are not read."""
    head, rest = b'{"edgekit-native": 1, "x": "', b'"}'
    short = Completed(code=0, stdout=head + rest, stderr=b"")
    assert _answer(short) == {"edgekit-native": 1, "x": ""}
    assert _answer(Completed(code=0, stdout=head + b"a" * (9 << 20) + rest, stderr=b"")) is None
