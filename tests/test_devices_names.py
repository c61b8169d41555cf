"""Names of devices, devices.toml, locks, and what adb lists."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.devices import adb, attach
from edge.devices.base import DeviceSpec, hashed_name, parse
from edge.devices.lock import holder, locked
from edge.errors import ConfigError, DeviceError, EdgekitError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("local", DeviceSpec(kind="local")),
        ("emulator:rpi4", DeviceSpec(kind="emulator", address="rpi4")),
        ("ssh://pi@raspberrypi.local", DeviceSpec(kind="ssh", address="raspberrypi.local", user="pi")),
        ("ssh://bench:2222", DeviceSpec(kind="ssh", address="bench", port=2222)),
        ("ssh://pi@[fe80::1]:22", DeviceSpec(kind="ssh", address="fe80::1", user="pi", port=22)),
        ("adb:R5CT20ABCDE", DeviceSpec(kind="adb", address="R5CT20ABCDE")),
        ("adb:192.168.1.5:5555", DeviceSpec(kind="adb", address="192.168.1.5:5555")),
        ("adb", DeviceSpec(kind="adb")),
    ],
)
def test_one_syntax_names_every_kind(text: str, wanted: DeviceSpec) -> None:
    """Each kind of device has its form."""
    assert parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pi",
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://pi@-h",
        "ssh://a b",
        "ssh://h:0",
        "ssh://h:70000",
        "adb:-x",
        "adb:a b",
    ],
)
def test_what_is_no_device_is_refused(text: str) -> None:
    """Nothing that ssh or adb could read as an option or as two words passes."""
    with pytest.raises(ConfigError, match=r"accepted|no serial"):
        parse(text)


def test_an_unknown_board_is_refused_with_the_known_ones() -> None:
    """The message lists the boards."""
    with pytest.raises(ConfigError, match=r"'rpi9' is unknown; accepted: rpi-zero2, rpi3, rpi4, rpi5"):
        parse("emulator:rpi9")


@given(st.text(min_size=1, max_size=40))
def test_no_name_becomes_an_option(text: str) -> None:
    """Whatever follows ssh:// or adb: is refused, or holds neither a leading dash nor a blank."""
    for prefix in ("ssh://", "adb:"):
        try:
            spec = parse(prefix + text)
        except EdgekitError:
            continue
        assert not spec.address.startswith("-")
        assert not (spec.user or "").startswith("-")
        assert not any(c.isspace() for c in f"{spec.user}{spec.address}")


def _write(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "devices.toml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("EDGEKIT_DEVICES", str(path))


def test_names_come_from_devices_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name stands for an address with its options, and a pattern for several."""
    text = (
        '[rpi-a]\ndevice = "ssh://pi@a"\npython = "/opt/python"\n[rpi-b]\ndevice = "ssh://b"\n'
        '[cam]\ndevice = "local"\ntags = ["lab", "x86"]\n'
    )
    _write(tmp_path, text, monkeypatch)
    (one,) = attach.resolve("rpi-a")
    assert (one.name, str(one), one.options) == ("rpi-a", "ssh://pi@a", {"python": "/opt/python"})
    assert [s.name for s in attach.resolve("all-of:rpi*")] == ["rpi-a", "rpi-b"]
    assert [s.name for s in attach.resolve("all-of:lab")] == ["cam"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ndevices = 'x'\n", r"\[a\]: devices: no such key"),
        ("[a]\ndevice = 'a'\n", "an address is needed"),
        ("[a]\ndevice = 'local'\npython = 3\n", "python: must be a text"),
        ("[a]\ndevice = 'local'\ntags = 'lab'\n", "tags: must be a list of texts"),
        ("a = 1\n", "a must be a table"),
        ("[a\n", "is no TOML"),
    ],
)
def test_a_wrong_devices_toml_is_explained(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mistake has its message."""
    _write(tmp_path, text, monkeypatch)
    with pytest.raises(ConfigError, match=message):
        attach.resolve("a")


def test_a_pattern_without_a_match_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names what is there."""
    _write(tmp_path, "[cam]\ndevice = 'local'\n", monkeypatch)
    with pytest.raises(ConfigError, match=r"matches 'rpi\*'; there: cam"):
        attach.resolve("all-of:rpi*")


_HOLDER = (
    "import sys\nfrom edge.devices.base import parse\nfrom edge.devices.lock import locked\n"
    "with locked(parse(sys.argv[1])):\n    sys.stdout.write('held\\n'); sys.stdout.flush(); sys.stdin.read()\n"
)


@contextlib.contextmanager
def _held(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.setenv("EDGEKIT_CACHE", str(cache))
    command = [sys.executable, "-c", _HOLDER, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("name", ["ssh://pi@bench", "emulator:rpi4", "adb:R5CT20ABCDE", "local"])
def test_two_runs_on_one_device_do_not_overlap(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process is refused with who holds the lock, and gets it when that one is killed."""
    spec = parse(name)
    with _held(name, tmp_path, monkeypatch) as other:
        message = rf"in use by another run of edgekit \(process {other.pid} since [\d:]+: edgekit {name}\)"
        with pytest.raises(DeviceError, match=message), locked(spec, wait_s=0):
            pass
        assert f"process {other.pid} " in (holder(spec) or "")
        other.kill()
        other.wait()
        with locked(spec, wait_s=0):
            assert "process" in (holder(spec) or "")
    assert holder(spec) is None


def test_a_waiting_run_says_for_whom_and_gets_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder is told once; the lock comes as soon as the holder ends, and other devices are free meanwhile."""
    said: list[str] = []
    with _held("ssh://bench", tmp_path, monkeypatch) as other:
        with locked(parse("ssh://bench:2222"), wait_s=0):
            pass
        threading.Timer(0.5, other.kill).start()
        with locked(parse("ssh://pi@BENCH:22"), wait_s=20, progress=lambda text, share: said.append(text)):
            pass
    assert len(said) == 1
    assert f"waiting for ssh://pi@BENCH:22, which is in use by process {other.pid} since" in said[0]


def test_how_long_to_wait_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGEKIT_LOCK_WAIT=0 refuses at once; what is no number of seconds is a configuration error."""
    monkeypatch.setenv("EDGEKIT_LOCK_WAIT", "0")
    with _held("local", tmp_path, monkeypatch), pytest.raises(DeviceError, match="is in use"), locked(parse("local")):
        pass
    monkeypatch.setenv("EDGEKIT_LOCK_WAIT", "soon")
    with pytest.raises(ConfigError, match="EDGEKIT_LOCK_WAIT is 'soon'; accepted: seconds"), locked(parse("local")):
        pass


def test_files_are_named_by_their_content(tmp_path: Path) -> None:
    """No foreign text gets into a path on a device."""
    path = tmp_path / "my model; rm -rf ~.tflite"
    path.write_bytes(b"x")
    assert hashed_name(path) == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881.tflite"
    odd = tmp_path / "a.b c"
    odd.write_bytes(b"x")
    assert hashed_name(odd).isalnum()


_LISTED = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
R5CT20ABCDE            device usb:1-4 product:o1s model:SM_G991B device:o1s transport_id:3
emulator-5554          offline transport_id:1
0123456789ABCDEF       unauthorized usb:1-2 transport_id:2
????????????           no permissions (missing udev rules? user is in the plugdev group); see [http://x] usb:1-1
"""


def test_adb_list_is_parsed_with_all_states() -> None:
    """Serial, state and model of each line; the words of the daemon are no devices."""
    found = {d.serial: (d.state, d.model) for d in adb.parse_devices(_LISTED)}
    assert found == {
        "R5CT20ABCDE": ("device", "SM_G991B"),
        "emulator-5554": ("offline", None),
        "0123456789ABCDEF": ("unauthorized", None),
        "????????????": ("no permissions", None),
    }


@pytest.mark.parametrize(
    ("serial", "message"),
    [
        ("", "4 Android devices are attached"),
        ("nope", "No device 'nope' is attached"),
        ("emulator-5554", "is offline"),
        ("0123456789ABCDEF", "does not trust this host"),
        ("????????????", "cannot be opened by this user"),
    ],
)
def test_a_device_that_is_not_ready_is_refused_with_its_state(serial: str, message: str) -> None:
    """Each state has its message; several devices need a serial."""
    with pytest.raises(DeviceError, match=message):
        adb.choose(serial, adb.parse_devices(_LISTED))


def test_no_android_device_says_how_to_attach_one() -> None:
    """The hint names USB debugging."""
    with pytest.raises(DeviceError) as caught:
        adb.choose("", ())
    assert "USB debugging" in (caught.value.hint or "")
