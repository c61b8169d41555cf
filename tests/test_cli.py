"""The command line: light start, help with examples, exit codes, one message for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "build",
    "check",
    "compare",
    "profile",
    "inspect",
    "diagnose",
    "report",
    "history",
    "reproduce",
    "compile",
    "export",
    "sweep",
    "targets",
    "sources",
    "devices",
    "doctor",
    "init",
    "demo",
    "emulator",
    "cache",
)
HEAVY = ("numpy", "tensorflow", "torch", "keras", "pydantic", "rich", "PIL", "ai_edge_litert", "executorch")


def edgekit(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edge.cli import main; main()", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, timeout=120, check=False
    )


def test_help_imports_nothing_heavy() -> None:
    """`edgekit --help` loads no framework, no numpy, no pydantic and no rich."""
    code = (
        "import sys; sys.argv = ['edgekit', '--help']\nfrom edge.cli.outcome import run\nrun(['--help'], debug=False)\n"
    )
    code += f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """`edgekit COMMAND --help` works and shows an example."""
    done = edgekit(command, "--help")
    assert done.returncode == 0
    assert f"edgekit {command}" in done.stdout.split("Example", 1)[1]


def test_the_root_help_names_every_command() -> None:
    """`edgekit --help` lists all commands and the exit codes."""
    done = edgekit("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in done.stdout
    assert "Exit codes" in done.stdout


def test_version() -> None:
    """`edgekit --version` prints the version."""
    assert edgekit("--version").stdout.startswith("edgekit 0.")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "none.keras", "--target", "rpi4", "--calibration", "x.npz"], 2, "No such file"),
        (["build", "none.keras", "--target", "corral"], 2, "Target 'corral' is unknown"),
        (["build", "none.keras", "--target", "rpi4", "--recipe", "int3"], 2, "recipe 'int3' is unknown"),
        (["build", "none.keras", "--target", "coral", "--recipe", "float32"], 2, "does not run float32"),
        (
            ["build", "none.keras", "--target", "android", "--runtime", "executorch", "--recipe", "weight-only"],
            2,
            "executorch makes no weight-only for target android; accepted: int8",
        ),
        (["build", "none.keras", "--target", "rpi4"], 2, "needs representative samples"),
        (["build", "none.keras", "--target", "rpi4", "--runtime", "edgetpu"], 2, "does not serve target rpi4"),
        (["build", "none.keras", "--target", "rpi4", "--shape", "x=one"], 2, "--shape"),
        (["build", "none.keras", "--target", "rpi4", "--preprocess", "scale=no"], 2, "scale"),
        (["build"], 2, "no model is given"),
        (["build", "n.py:f", "-t", "ios", "--runtime", "coreml", "--recipe", "auto"], 2, "coreml has no form of auto"),
        (["check", "nowhere"], 4, "is no artifact"),
        (["inspect", "none.tflite"], 2, "No such file"),
        (["frobnicate"], 2, "No such command"),
        (["build", "--frobnicate"], 2, "No such option"),
        (["init", "none.keras"], 2, "No such file"),
        (["demo", "--framework", "caffe"], 2, "'caffe'"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    """Wrong usage gives one message that quotes what was given, the right exit code, and no traceback."""
    done = edgekit(*arguments, cwd=tmp_path)
    assert message in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """--debug anywhere on the command line shows the traceback."""
    done = edgekit("check", "nowhere", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert done.returncode == 4


def test_an_error_is_json_where_json_is_asked(tmp_path: Path) -> None:
    """With --json an error is one JSON object on stdout."""
    done = edgekit("check", "nowhere", "--json", cwd=tmp_path)
    error = json.loads(done.stdout)
    assert (error["error"], error["exit_code"]) == ("ArtifactError", 4)


def test_a_closed_pipe_is_no_error() -> None:
    """`edgekit targets | head` ends quietly."""
    script = "from edge.cli import main; main(['targets'])"
    done = subprocess.run(
        f'{sys.executable} -c "{script}" | true', shell=True, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


def test_targets_as_json() -> None:
    """`edgekit targets --json` is a list of targets."""
    found = {t["name"]: t for t in json.loads(edgekit("targets", "--json").stdout)}
    assert found["coral"]["runtimes"][0] == "edgetpu"
    assert found["rpi4"]["hardware"]["cpu"] == "cortex-a72"


def test_doctor_as_json() -> None:
    """`edgekit doctor --json` lists each check with its state."""
    done = edgekit("doctor", "--json")
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    assert checks["python"]["state"] == "ok"
    assert checks["edgetpu_compiler"]["fix"]


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\0\0\0\0TFL3" + bytes(64), b"PK\x03\x04 not a zip", b"\x89HDF\r\n\x1a\n"]
)
def test_an_unreadable_model_is_exit_4(tmp_path: Path, data: bytes) -> None:
    """A file that is no model is one message with exit code 4, whatever its bytes."""
    (tmp_path / "model.tflite").write_bytes(data)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 4), np.float32))
    done = edgekit("build", "model.tflite", "--target", "rpi4", "--calibration", "data.npz", "-q", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "model.tflite"]
