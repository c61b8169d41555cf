"""Emulated boards: real ARM kernels, the board's own identity, and instruction counts that repeat."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.devices import attach, boards, instructions, sysroot
from edge.devices.base import DeviceFacts, parse
from edge.devices.client import Agent
from edge.devices.programs import DeviceProgram, describe
from edge.errors import DeviceError, EdgekitError
from edge.targets.litert.session import open_program
from tests import board_setup
from tests.small_models import classifier, labelled_data


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[Path]:
    """Return the cache with the arm64 system."""
    with board_setup.emulated() as place:
        yield place


def _program(path: Path) -> DeviceProgram:
    signature = open_program(path, kernels="reference", threads=1).signature
    return describe(path, runtime="litert", kernels="xnnpack", threads=1, signature=signature)


def _outputs(device: str, program: DeviceProgram, samples: list[dict[str, Any]]) -> Any:
    with attach.opened(parse(device)) as opened:
        return np.stack([o["y"] for o in Agent(opened).run(program, samples)])


@pytest.mark.parametrize("name", sorted(boards.BOARDS))
def test_a_board_says_what_it_is(name: str) -> None:
    """Model, machine and the CPU part that decides the kernels are those of the board, and it says it is emulated."""
    with attach.opened(parse(f"emulator:{name}")) as device:
        facts: DeviceFacts = device.facts()
    board = boards.BOARDS[name]
    assert (facts.model, facts.machine, facts.cpu_part) == (board.model, "aarch64", board.part)
    assert (facts.emulated, device.mode) == (True, "emulated")
    assert ("asimddp" in facts.cpu_features) == (name == "rpi5")


def test_float_results_agree_with_the_host(tmp_path: Path) -> None:
    """A float program on ARM differs from this host by rounding alone."""
    path = tmp_path / "net.tflite"
    path.write_bytes(classifier())
    samples = [{"x": row[None]} for row in labelled_data()["x"][:50]]
    host = open_program(path, kernels="xnnpack", threads=1)
    wanted = np.stack([host.run(s)["y"] for s in samples])
    found = _outputs("emulator:rpi4", _program(path), samples)
    assert np.abs(found - wanted).max() < 2e-6
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


def test_uint8_convolutions_differ_on_a_cortex_a53(tmp_path: Path) -> None:
    """XNNPACK rounds them otherwise on the Pi 3: many elements differ there, next to none on the Pi 4."""
    path = tmp_path / "unsigned.tflite"
    path.write_bytes(board_setup.unsigned_network())
    random = np.random.default_rng(2)
    samples = [{"x": random.integers(0, 256, (1, 12, 12, 8)).astype(np.uint8)} for _ in range(8)]
    host = open_program(path, kernels="xnnpack", threads=1)
    wanted = np.stack([host.run(s)["y"] for s in samples]).astype(int)
    program = _program(path)
    apart = {name: (_outputs(f"emulator:{name}", program, samples) != wanted).mean() for name in ("rpi3", "rpi4")}
    assert program.unsigned_convolution
    assert apart["rpi3"] > 0.05
    assert apart["rpi4"] < apart["rpi3"] / 20


def test_instruction_counts_repeat_to_the_last_digit(tmp_path: Path) -> None:
    """Two processes count the same instructions, the Pi 5 fewer than the Pi 4 for int8 (its dot products)."""
    try:
        instructions.emulator()
        instructions.plugin()
    except EdgekitError as error:
        pytest.skip(error.message)
    artifact, _ = board_setup.built_artifact(tmp_path)
    program = _program(artifact / "model.tflite")
    sample = {"x": np.full((1, 16), 3, np.int8)}
    first, again = (instructions.count_instructions(program, sample, "rpi4") for _ in range(2))
    assert first == again
    assert first.repeatable
    assert 1000 < first.total < 1_000_000
    assert first.dot_product == 0
    assert instructions.count_instructions(program, sample, "rpi5").dot_product > 0


def test_without_its_system_a_board_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint is the command."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    with pytest.raises(DeviceError) as caught, attach.opened(parse("emulator:rpi4")):
        pass
    assert caught.value.hint == "Run `edgekit emulator setup rpi4` once."


def test_overlay_is_the_boards(cache: Path) -> None:
    """The root of a board holds its own /proc/cpuinfo and links to the shared system for the rest."""
    root = sysroot.board_root("rpi3")
    assert "CPU part\t: 0xd03" in (root / "proc/cpuinfo").read_text(encoding="utf-8")
    assert (root / "usr").is_symlink()
    assert (root / "usr").resolve() == (cache / "emulator/arm64/usr").resolve()


def _edgekit(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import typer; from edge.cli import emulator; app = typer.Typer(); emulator.register(app); app()"
    command = [sys.executable, "-c", program, "emulator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_list_shows_the_boards_and_their_system() -> None:
    """Four boards, ready, and the whole machines, with place and size of their system."""
    done = _edgekit("list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == [f"emulator:{name}" for name in boards.BOARDS]
    assert all(line.endswith("ready") for line in lines[:4])
    assert all(line.startswith("emulator:virt") for line in lines[4:-1])
    assert any("MB, Python 3." in line for line in lines[4:])
