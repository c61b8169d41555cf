"""A phone over adb: the real client, a double of the device on loopback, commands on emulated ARM."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge import profiling
from edge.devices import adb, attach, runners
from edge.devices.base import DeviceSpec
from edge.devices.client import Agent
from edge.devices.namespace import Board
from edge.devices.programs import describe
from edge.errors import DeviceError
from edge.targets.litert.session import open_program
from tests import board_setup
from tests.board_phone import GETPROP, Phone, adb_environment
from tests.small_models import classifier, labelled_data


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    """Return the arm64 system that the phone runs."""
    if not shutil.which("adb"):
        pytest.skip("adb is not installed")
    with board_setup.emulated(), Board("rpi5", disk="40m", extra_bin={"getprop": GETPROP}) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def server(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run a private adb server, so that no phone and no key of this machine is touched."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in adb_environment(home, port).items():
            patch.setenv(name, value)
        yield
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True, timeout=60)


@pytest.fixture(params=[True, False], ids=["android-14", "android-6"])
def phone(request: pytest.FixtureRequest, board: Board) -> Iterator[Phone]:
    """Return a connected phone; nothing of edgekit may be left on it."""
    with Phone(board, shell_v2=request.param) as made:
        subprocess.run(["adb", "connect", made.serial], check=True, capture_output=True, timeout=60)
        yield made
        subprocess.run(["adb", "disconnect", made.serial], check=False, capture_output=True, timeout=60)


def _left(board: Board) -> bytes:
    return board.run(["ls", "/data/local/tmp"]).stdout


def test_push_run_pull_and_exit_codes(phone: Phone, board: Board, tmp_path: Path) -> None:
    """Files arrive whole, arguments unchanged, codes also from a shell that hands on none."""
    path = tmp_path / "a b.bin"
    path.write_bytes(np.random.default_rng(1).bytes(700_000))
    with attach.opened(DeviceSpec(kind="adb", address=phone.serial)) as device:
        remote = device.push(path)
        device.pull(remote, tmp_path / "back")
        done = device.run(["sh", "-c", 'printf "[%s]" "$@"; exit 7', "x", "a b", "$HOME;"], stdin=b"")
        assert (done.code, done.stdout) == (7, b"[a b][$HOME;]")
        assert device.run(["cat"], stdin=b"text").stdout == b"text"
        with pytest.raises(DeviceError, match="still running after 1 s"):
            device.run(["sleep", "66"], timeout_s=1)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    assert _left(board) == b""


@pytest.mark.parametrize("phone", [True], ids=["android-14"], indirect=True)
def test_agent_runs_on_the_phone(phone: Phone, tmp_path: Path) -> None:
    """Where there is a Python the same agent computes there."""
    path = tmp_path / "net.tflite"
    path.write_bytes(classifier())
    session = open_program(path, kernels="xnnpack", threads=1)
    program = describe(path, runtime="litert", kernels="xnnpack", threads=1, signature=session.signature)
    samples = [{"x": row[None]} for row in labelled_data()["x"][:3]]
    with attach.opened(DeviceSpec(kind="adb", address=phone.serial)) as device:
        found = [o["y"] for o in Agent(device).run(program, samples)]
    assert np.allclose(found, [session.run(s)["y"] for s in samples], rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("phone", [True], ids=["android-14"], indirect=True)
def test_the_native_runner_serves_a_phone_without_python(phone: Phone, board: Board, tmp_path: Path) -> None:
    """Loader, C library and runtime are sent, the loader is made executable, and all of it is removed again."""
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("g++-aarch64-linux-gnu is not installed")
    path = tmp_path / "net.tflite"
    path.write_bytes(classifier())
    session = open_program(path, kernels="xnnpack", threads=1)
    program = describe(path, runtime="litert", kernels="xnnpack", threads=1, signature=session.signature)
    samples = [{"x": row[None]} for row in labelled_data()["x"][:3]]
    spec = DeviceSpec(kind="adb", address=phone.serial, options={"python": "no-python"})
    with attach.opened(spec) as device:
        agent, facts = runners.choose(device, "litert")
        found = [o["y"] for o in agent.run(program, samples)]
    assert (agent.runner, facts.cpu_part, facts.python) == ("native", "0xd0b", "")
    assert np.allclose(found, [session.run(s)["y"] for s in samples], rtol=0, atol=2e-6)
    assert _left(board) == b""


def test_a_profile_of_a_phone_without_python(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`profile --device adb:...` times there by the native runner, says so, and leaves nothing behind."""
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("g++-aarch64-linux-gnu is not installed")
    artifact, _ = board_setup.built_artifact(tmp_path)
    with Phone(board) as made:
        subprocess.run(["adb", "connect", made.serial], check=True, capture_output=True, timeout=60)
        entry = f'[phone]\ndevice = "adb:{made.serial}"\npython = "no-python"\n'
        (tmp_path / "devices.toml").write_text(entry, encoding="utf-8")
        monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.toml"))
        told = profiling.profile(artifact, profiling.Request(device="phone", profile="smoke", output=None))
        subprocess.run(["adb", "disconnect", made.serial], check=False, capture_output=True, timeout=60)
    assert (told.mode, told.runner, told.device) == ("emulated", "native", "phone")
    assert told.latency is not None
    assert told.latency["median_ms"] > 0
    assert {"EMULATED_TIMES", "NATIVE_RUNNER"} <= {f.rule for f in told.findings}
    assert _left(board) == b""


def test_what_a_lost_run_left_is_removed_a_day_later(phone: Phone, board: Board) -> None:
    """A folder of two days ago goes, one of another run of today stays."""
    made = "mkdir -p /data/local/tmp/edgekit.old/x /data/local/tmp/edgekit.new; touch -d '2 days ago' /data/local/tmp/"
    board.run(["sh", "-c", f"{made}edgekit.old"])
    try:
        with attach.opened(DeviceSpec(kind="adb", address=phone.serial)):
            assert b"edgekit.old" not in _left(board)
            assert b"edgekit.new" in _left(board)
    finally:
        board.run(["rm", "-rf", "/data/local/tmp/edgekit.new", "/data/local/tmp/edgekit.old"])


def test_facts_without_python_are_androids(phone: Phone) -> None:
    """Model, version and CPU part from getprop and /proc/cpuinfo."""
    spec = DeviceSpec(kind="adb", address=phone.serial, options={"python": "no-python"})
    with attach.opened(spec) as device:
        facts = device.facts()
    assert (facts.model, facts.machine, facts.system) == ("Phone Double", "arm64-v8a", "Android 14 (API 34)")
    assert facts.cpu_part == "0xd0b"


def test_a_full_phone_is_an_error(phone: Phone, tmp_path: Path) -> None:
    """The phone's own words reach the user."""
    path = tmp_path / "big"
    path.write_bytes(bytes(45_000_000))
    with (
        attach.opened(DeviceSpec(kind="adb", address=phone.serial)) as device,
        pytest.raises(DeviceError, match="No space left") as caught,
    ):
        device.push(path)
    assert caught.value.hint == "Free space on the phone."


def test_a_pulled_cable_is_an_error(phone: Phone) -> None:
    """The line goes while a command runs."""
    with (
        pytest.raises(DeviceError, match=r"connection to adb:\S+ was lost"),
        attach.opened(DeviceSpec(kind="adb", address=phone.serial)) as device,
    ):
        threading.Timer(0.5, phone.unplug).start()
        device.run(["sleep", "5"], timeout_s=20)


def test_list_shows_the_phone(phone: Phone) -> None:
    """Serial, state and model as adb tells them."""
    assert adb.Attached(serial=phone.serial, state="device", model="Phone_Double") in adb.attached()
