"""A board over ssh: real ssh, a real sshd, an emulated board behind it, and everything that goes wrong on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.devices import attach
from edge.devices.base import DeviceSpec
from edge.devices.check import measure_on_device
from edge.devices.client import Agent
from edge.devices.namespace import Board
from edge.devices.programs import DeviceProgram, describe
from edge.devices.sshd import Server
from edge.errors import DeviceError
from edge.measure.latency_record import PROFILES, Profile, WarmUp
from edge.targets.litert.session import open_program
from tests import board_setup
from tests.small_models import classifier, labelled_data

SHORT = Profile(
    name="t", runs=10, seconds=0.0, max_seconds=5.0, strict=False, warm_up=WarmUp(runs=3, seconds=0, cap_s=1)
)


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    """Return a Pi 4 whose disk has 60 MB."""
    with board_setup.board("rpi4", disk="60m") as made:
        yield made


@pytest.fixture
def server(board: Board) -> Iterator[Server]:
    """Return a fresh sshd before the board; after the test nothing of edgekit may be left on the board."""
    with board_setup.served(board) as made:
        yield made
    _wait_until_clean(board)


def _left(board: Board) -> str:
    """Return what there is of edgekit on the board: files, processes."""
    script = "ls -d /tmp/edgekit.* 2>/dev/null; ps -eo args | grep -v grep | grep -E '/tmp/edgekit|timeout'"
    return board.run(["sh", "-c", script]).stdout.decode()


def _wait_until_clean(board: Board) -> None:
    deadline = time.monotonic() + 120
    while (left := _left(board)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == ""


@pytest.fixture
def program(tmp_path: Path) -> DeviceProgram:
    """Return a small classifier whose file has a hostile name."""
    path = tmp_path / "a'b; touch $HOME;.tflite"
    path.write_bytes(classifier())
    signature = open_program(path, kernels="reference", threads=1).signature
    return describe(path, runtime="litert", kernels="xnnpack", threads=1, signature=signature)


def _samples(count: int) -> list[dict[str, Any]]:
    return [{"x": row[None]} for row in labelled_data()["x"][:count]]


def test_program_runs_and_the_board_is_left_as_it_was(server: Server, program: DeviceProgram) -> None:
    """Push, run and pull with a key of one's own; results are those of this host but for rounding."""
    with attach.opened(board_setup.spec_of(server)) as device:
        assert device.facts().model == "Raspberry Pi 4 Model B Rev 1.4"
        found = [o["y"] for o in Agent(device).run(program, _samples(5))]
    host = open_program(program.path, kernels="xnnpack", threads=1)
    assert np.allclose(found, [host.run(s)["y"] for s in _samples(5)], rtol=0, atol=2e-6)


def test_an_emulated_board_says_so_behind_ssh(server: Server) -> None:
    """The board's own system tells it, so that no time of it is taken for a measured one."""
    with attach.opened(board_setup.spec_of(server)) as device:
        assert device.mode == "emulated"
        assert device.facts().emulated


def test_a_jump_host_of_the_users_configuration_is_used(server: Server, tmp_path: Path) -> None:
    """The board is reached by a name that only the configuration knows, over a ProxyJump through another real sshd."""
    with board_setup.jump_host() as gate:
        known = gate.known_hosts.read_text(encoding="utf-8") + server.known_hosts.read_text(encoding="utf-8")
        (tmp_path / "known").write_text(known, encoding="utf-8")
        config = tmp_path / "ssh_config"
        config.write_text(
            f"Host gate\n  Port {gate.port}\n  IdentityFile {gate.identity}\n"
            f"Host pi-behind\n  Port {server.port}\n  ProxyJump gate\n  IdentityFile {server.identity}\n"
            f"Host *\n  HostName 127.0.0.1\n  User {server.user}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {tmp_path / 'known'}\n  GlobalKnownHostsFile /dev/null\n",
            encoding="utf-8",
        )
        spec = DeviceSpec(kind="ssh", address="pi-behind", options={"ssh_config": str(config)})
        with attach.opened(spec) as device:
            assert device.facts().model == "Raspberry Pi 4 Model B Rev 1.4"
        assert "Accepted publickey" in (gate.place / "sshd.log").read_text(encoding="utf-8")
        gate.drop_connections()
        assert "no ssh server is listening" in _refused(spec).message


def test_a_file_travels_once(server: Server, program: DeviceProgram) -> None:
    """A second push of the same content sends nothing; the bytes arrive whole."""
    with attach.opened(board_setup.spec_of(server)) as device:
        first = device.push(program.path)
        copy = program.path.with_name("copy.tflite")
        shutil.copyfile(program.path, copy)
        assert device.push(copy) == first
        back = program.path.with_name("back")
        device.pull(first, back)
    assert back.read_bytes() == program.path.read_bytes()


def test_arguments_and_exit_codes_pass_unchanged(server: Server) -> None:
    """No shell on the way reads an argument; code, stdout and stderr come back apart."""
    hostile = ["a b", "$HOME", "'\"`;|&", "*", "\\", "", "-n"]
    with attach.opened(board_setup.spec_of(server)) as device:
        done = device.run(["sh", "-c", 'printf "[%s]" "$@"; echo oops >&2; exit 7', "x", *hostile])
        assert (done.code, done.stderr) == (7, b"oops\n")
        assert done.stdout.decode() == "".join(f"[{word}]" for word in hostile)
        assert device.run(["cat"], stdin=b"\x00\xff\n").stdout == b"\x00\xff\n"


def test_a_command_that_hangs_is_ended_on_the_board(server: Server, board: Board) -> None:
    """The board's own `timeout` ends it, so that it does not live on there."""
    with attach.opened(board_setup.spec_of(server)) as device:
        with pytest.raises(DeviceError, match="still running after 1 s"):
            device.run(["sleep", "77"], timeout_s=1)
        assert b"sleep 77" not in board.run(["ps", "ax"]).stdout


def _refused(spec: DeviceSpec) -> DeviceError:
    with pytest.raises(DeviceError) as caught, attach.opened(spec):
        pass
    return caught.value


def _with_config(server: Server, tmp_path: Path, **changes: str) -> DeviceSpec:
    lines = [line.split(" ", 1) for line in server.config.read_text(encoding="utf-8").splitlines()]
    config = tmp_path / "ssh_config"
    config.write_text("".join(f"{k} {changes.get(k, v)}\n" for k, v in lines), encoding="utf-8")
    return replace(board_setup.spec_of(server), options={"ssh_config": str(config)})


def test_a_wrong_key_is_refused(server: Server, tmp_path: Path) -> None:
    """The message says that the login was refused, the hint how to set up a key."""
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    error = _refused(_with_config(server, tmp_path, IdentityFile=str(key)))
    assert "refused the login. ssh says:" in error.message
    assert "Permission denied (publickey)" in error.message
    assert f"ssh-copy-id -p {server.port} {server.user}@127.0.0.1" in (error.hint or "")


def test_an_unknown_host_is_refused_with_the_command_to_add_it(server: Server, tmp_path: Path) -> None:
    """Nothing is added silently."""
    known = tmp_path / "known_hosts"
    error = _refused(_with_config(server, tmp_path, UserKnownHostsFile=str(known)))
    assert "has an unknown host key" in error.message
    assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> ~/.ssh/known_hosts" in (error.hint or "")
    assert not known.exists()


def test_a_changed_host_key_is_told_apart(server: Server, tmp_path: Path) -> None:
    """Another key than the known one is no unknown host."""
    known = tmp_path / "known_hosts"
    other = (server.place / "key.pub").read_text(encoding="utf-8").split()[:2]
    known.write_text(f"[127.0.0.1]:{server.port} {' '.join(other)}\n", encoding="utf-8")
    error = _refused(_with_config(server, tmp_path, UserKnownHostsFile=str(known)))
    assert "has another host key than the one that is known" in error.message
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in (error.hint or "")


@pytest.mark.parametrize(
    ("host", "message"), [("127.0.0.1", "no ssh server is listening"), ("no-such-host.invalid", "cannot be resolved")]
)
def test_a_host_that_is_not_there(host: str, message: str, board: Board) -> None:
    """Port closed and name unknown are told apart, though ssh ends with 255 for both."""
    assert message in _refused(DeviceSpec(kind="ssh", address=host, port=9)).message


def test_a_full_disk_is_an_error_and_leaves_room(server: Server, board: Board, tmp_path: Path) -> None:
    """A file that does not fit is refused, its part is removed, and smaller ones still go."""
    big = tmp_path / "big.bin"
    big.write_bytes(os.urandom(70_000_000))
    with attach.opened(board_setup.spec_of(server)) as device:
        with pytest.raises(DeviceError, match=r"disk of ssh://\S+ is full: .*No space left"):
            device.push(big)
        assert ".part" not in board.run(["sh", "-c", "ls /tmp/edgekit.*"]).stdout.decode()
        assert device.facts().free_disk_bytes


def test_a_full_disk_while_the_agent_writes_is_an_error(server: Server, board: Board, program: DeviceProgram) -> None:
    """The agent's own diagnosis reaches the user with what to do."""
    with attach.opened(board_setup.spec_of(server)) as device:
        agent = Agent(device)
        list(agent.run(program, _samples(1)))
        board.run(["sh", "-c", "head -c 70000000 /dev/zero >/tmp/filler; truncate -s -15000 /tmp/filler"])
        try:
            with pytest.raises(DeviceError, match="No space left") as caught:
                list(agent.run(program, _samples(250)))
        finally:
            board.run(["rm", "/tmp/filler"])
    assert "Free space" in (caught.value.hint or "")


def test_a_line_that_drops_is_an_error_and_the_board_cleans_up(
    server: Server, board: Board, program: DeviceProgram
) -> None:
    """The connection is cut while the board computes: a clear error at once, and nothing left there."""
    with (
        pytest.raises(DeviceError, match=r"The connection to ssh://\S+ was lost"),
        attach.opened(board_setup.spec_of(server)) as device,
    ):
        device.push(program.path)
        threading.Timer(1.0, server.drop_connections).start()
        begin = time.monotonic()
        try:
            device.run(["sleep", "99"], timeout_s=120)
        finally:
            assert time.monotonic() - begin < 20
    _wait_until_clean(board)
    assert b"sleep 99" not in board.run(["ps", "ax"]).stdout


def test_kill_of_the_agent_is_an_error(server: Server, board: Board, program: DeviceProgram) -> None:
    """SIGKILL for the agent in the middle of its work is named, and its child ends too."""
    wait = "p=$(pgrep -of 'static [^ ]*python3 -B /tmp/edgekit')"
    kill = f"for i in $(seq 100); do {wait} && sleep 1 && kill -9 $p && break; sleep .1; done"
    with attach.opened(board_setup.spec_of(server)) as device:
        device.push(program.path)
        killer = subprocess.Popen([*board.enter, "sh", "-c", kill])
        with pytest.raises(DeviceError, match=r"agent on ssh://\S+ was ended by SIGKILL"):
            Agent(device).measure(program, _samples(1)[0], replace(SHORT, seconds=60.0, max_seconds=60.0))
        assert killer.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_edgekit_leaves_nothing_on_the_board(number: signal.Signals, server: Server, board: Board) -> None:
    """Ctrl-C, an end by a signal, and even a kill of edgekit itself: the board's folder and processes go."""
    code = (
        "import sys\nfrom edge.devices import attach\nfrom edge.devices.base import parse\n"
        "spec = parse('b', {'b': {'device': sys.argv[1], 'ssh_config': sys.argv[2]}})\n"
        "with attach.opened(spec) as device:\n    sys.stdout.write('up\\n'); sys.stdout.flush()\n"
        "    device.run(['sleep', '88'], timeout_s=300)\n"
    )
    command = [sys.executable, "-c", code, server.address, str(server.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        time.sleep(0.7)
        assert "edgekit." in _left(board)
        process.send_signal(number)
        process.wait(30)
    _wait_until_clean(board)
    assert b"sleep 88" not in board.run(["ps", "ax"]).stdout


def test_throttling_on_the_board_makes_a_measurement_invalid(
    server: Server, board: Board, program: DeviceProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vcgencmd, cpufreq and the thermal zone tell there is in the record, and the verdict follows."""
    monkeypatch.setitem(PROFILES, "test", SHORT)
    board.set("throttled", "0x50005")
    board.set("sys/class/thermal/thermal_zone0/temp", "81000")
    try:
        with attach.opened(board_setup.spec_of(server)) as device:
            record = measure_on_device(Agent(device), program, _samples(1)[0], "test")
    finally:
        board.set("throttled", "0x0")
        board.set("sys/class/thermal/thermal_zone0/temp", "48199")
    assert record["verdict"] == "invalid"
    assert record["mode"] == "emulated"
    assert any("0x50005" in reason for reason in record["reasons"])
    before = record["environment"]["before"]
    assert before["temperatures_c"] == {"thermal_zone0:cpu-thermal": 81.0}
    assert before["frequencies"][0]["governor"] == "ondemand"
    assert before["cpu_model"] == "Raspberry Pi 4 Model B Rev 1.4"
