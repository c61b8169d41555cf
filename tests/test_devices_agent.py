"""The agent on this host: its protocol, its diagnoses, and that it needs nothing of edgekit."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.devices import attach
from edge.devices.base import Completed, Device, parse
from edge.devices.client import AGENT, Agent
from edge.devices.fake import FakeDevice
from edge.devices.programs import describe
from edge.errors import DeviceError
from edge.measure.latency_record import Profile, WarmUp
from edge.signature import Signature, TensorSpec
from edge.targets.litert.session import open_program
from tests.small_models import classifier, labelled_data

SHORT = Profile(
    name="test", runs=20, seconds=0.0, max_seconds=5.0, strict=False, warm_up=WarmUp(runs=5, seconds=0, cap_s=1)
)


@pytest.fixture
def local() -> Iterator[Device]:
    """Return this host as a device."""
    with attach.opened(parse("local")) as device:
        yield device


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the file of a small classifier."""
    path = tmp_path / "net.tflite"
    path.write_bytes(classifier())
    return path


def _program(path: Path, kernels: str = "xnnpack") -> Any:
    signature = open_program(path, kernels="reference", threads=1).signature
    return describe(path, runtime="litert", kernels=kernels, threads=1, signature=signature)


def _talk(*lines: str, code: str | None = None) -> list[dict[str, Any]]:
    """Run the agent, or an agent whose end is `code`, on lines."""
    command = [sys.executable, "-I", str(AGENT)]
    if code is not None:
        source = AGENT.read_text(encoding="utf-8").replace('if __name__ == "__main__":\n    main()', code)
        command = [sys.executable, "-I", "-c", source]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_agent_is_one_file_of_python_3_7() -> None:
    """Its grammar is that of Python 3.7, and it imports nothing of edgekit and nothing heavy at its start."""
    tree = ast.parse(AGENT.read_text(encoding="utf-8"), feature_version=(3, 7))
    imported = {n.names[0].name.partition(".")[0] for n in tree.body if isinstance(n, ast.Import)}
    imported |= {str(n.module).partition(".")[0] for n in tree.body if isinstance(n, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def test_every_line_gets_its_answer() -> None:
    """Answers carry the number of their request; what is no request is refused, other versions too."""
    answers = _talk(
        '{"edgekit": 1, "id": 5, "op": "hello"}',
        "junk",
        '{"edgekit": 2, "id": 6, "op": "hello"}',
        '{"edgekit": 1, "id": 7, "op": "x"}',
    )
    assert [(a["id"], a["ok"]) for a in answers] == [(5, True), (None, False), (6, False), (7, False)]
    assert "this agent speaks 1" in answers[2]["error"]["message"]
    assert "'x' is unknown; accepted: hello, run, measure" in answers[3]["error"]["message"]


def test_hello_tells_the_machine() -> None:
    """Machine, Python and runtime are those of this host."""
    result = _talk('{"edgekit": 1, "id": 1, "op": "hello"}')[0]["result"]
    assert (result["machine"], result["emulated"]) == (os.uname().machine, False)
    assert set(result["runtimes"]) >= {"ai_edge_litert"}
    assert result["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("crash", "kind", "words"),
    [
        ("import ctypes; ctypes.string_at(0)", "crash", "ended by SIGSEGV"),
        ("os.abort()", "crash", "ended by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "memory", "ended by SIGKILL"),
        ("os._exit(3)", "crash", "code 3"),
        ("time.sleep(60)", "timeout", "still running after 0.5 s"),
        ("raise OSError(28, 'No space left on device')", "disk", "No space left"),
    ],
)
def test_the_death_of_a_runtime_is_an_answer(crash: str, kind: str, words: str) -> None:
    """A crash, a kill, an exit, a hang and a full disk each have their kind, within a moment; the agent lives on."""
    code = f"def crash(request):\n    {crash}\nOPERATIONS['crash'] = crash\nmain()"
    begin = time.monotonic()
    answers = _talk(
        '{"edgekit": 1, "id": 1, "op": "crash", "timeout_s": 0.5}', '{"edgekit": 1, "id": 2, "op": "hello"}', code=code
    )
    assert time.monotonic() - begin < 30
    assert answers[0]["error"]["kind"] == kind
    assert words in answers[0]["error"]["message"]
    assert answers[1]["ok"]


def test_last_words_of_a_crash_are_kept() -> None:
    """What the runtime wrote before it died comes with the diagnosis, and never disturbs the protocol."""
    crash = "os.write(1, b'Check failed: x > 0\\n'); os.abort()"
    code = f"def crash(request):\n    {crash}\nOPERATIONS['crash'] = crash\nmain()"
    (answer,) = _talk('{"edgekit": 1, "id": 1, "op": "crash"}', code=code)
    assert "Check failed: x > 0" in answer["error"]["tail"]


@pytest.mark.parametrize("kernels", ["reference", "builtin", "xnnpack"])
def test_outputs_equal_those_of_the_session(local: Device, model: Path, kernels: str) -> None:
    """All kernel sets compute through the agent what they compute here, bit for bit, over several chunks."""
    program = _program(model, kernels)
    samples = [{"x": row[None]} for row in labelled_data()["x"][:300]]
    session = open_program(model, kernels=kernels, threads=1)
    found = list(Agent(local).run(program, samples))
    assert len(found) == 300
    for sample, output in zip(samples[::37], found[::37], strict=True):
        assert np.array_equal(output["y"], session.run(sample)["y"])


def test_measurement_brings_raw_times_and_the_environment(local: Device, model: Path) -> None:
    """The timing has one duration a run, in order, and the machine's state before and after."""
    timing, load_ms, first_ms = Agent(local).measure(_program(model), {"x": labelled_data()["x"][:1]}, SHORT)
    assert timing.runs == timing.samples_ns.size == timing.starts_ns.size == 20
    assert (np.diff(timing.starts_ns) >= timing.samples_ns[:-1]).all()
    assert min(load_ms, first_ms, timing.samples_ns.min()) > 0
    assert timing.before.machine == timing.after.machine == os.uname().machine


def test_memory_grows_by_the_program(local: Device, model: Path) -> None:
    """Peak sizes follow each other."""
    told = Agent(local).memory(_program(model), {"x": labelled_data()["x"][:1]})
    assert 1000 < told["before_kib"] <= told["loaded_kib"] <= told["peak_kib"]


def test_a_damaged_program_is_a_diagnosis(local: Device, tmp_path: Path, model: Path) -> None:
    """What the runtime says of it reaches the user."""
    program = _program(model)
    model.write_bytes(b"no flatbuffer" * 10)
    with pytest.raises(DeviceError, match="local: the runtime cannot load the program"):
        list(Agent(local).run(program, [{"x": labelled_data()["x"][:1]}]))


def test_nothing_is_left_of_a_device(model: Path) -> None:
    """The working folder goes with the device, also after an error."""
    with pytest.raises(KeyboardInterrupt), attach.opened(parse("local")) as device:
        device.push(model)
        folder = Path(device.workdir)
        raise KeyboardInterrupt
    assert not folder.exists()


def test_a_command_that_hangs_is_ended(local: Device) -> None:
    """A time limit ends the command and all it started."""
    with pytest.raises(DeviceError, match=r"still running after 0\.5 s"):
        local.run(["sh", "-c", "sleep 60 & sleep 60"], timeout_s=0.5)


def _fake(**failures: Any) -> FakeDevice:
    return FakeDevice(lambda values: [values[0] * 2], failures=failures)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"kind": "crash", "message": "ended by SIGSEGV", "tail": "a\nlast line"}, "ended by SIGSEGV.*last line"),
        ({"kind": "no-runtime", "message": "no runtime"}, "no runtime"),
        (Completed(code=137, stdout=b"", stderr=b""), "agent on ssh://fake was ended by SIGKILL"),
        (Completed(code=127, stdout=b"", stderr=b"python3: not found"), "Python could not be started"),
        (Completed(code=0, stdout=b"Welcome!\n", stderr=b""), r"gave no answer \(exit code 0\)"),
    ],
)
def test_failures_of_the_agent_are_errors_with_a_reason(answer: Any, message: str) -> None:
    """Each way to fail has its message."""
    with _fake(hello=answer) as device, pytest.raises(DeviceError, match=message):
        Agent(device).facts()


def test_fake_device_computes(tmp_path: Path) -> None:
    """The fake runs a function in place of a program, through the same files."""
    path = tmp_path / "x.pte"
    path.write_bytes(b"program")
    spec = TensorSpec(name="a/b; c", shape=(1, 2))
    signature = Signature(inputs=(spec,), outputs=(TensorSpec(name="out", shape=(1, 2)),))
    program = describe(path, runtime="executorch", kernels="xnnpack", threads=1, signature=signature)
    with _fake() as device:
        found = list(Agent(device).run(program, [{"a/b; c": np.ones((1, 2), np.float32)}] * 3))
    assert [f["out"].tolist() for f in found] == [[[2.0, 2.0]]] * 3
