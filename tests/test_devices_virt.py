"""A whole emulated machine: its file system, its memory, and that nothing of it is left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.devices import attach, native, runners, virt
from edge.devices.base import DeviceSpec, parse
from edge.devices.instructions import count_instructions
from edge.devices.namespace import Board
from edge.devices.programs import describe
from edge.errors import ConfigError, DeviceError, EdgekitError, MissingPackageError, ToolError
from edge.targets.litert.session import open_program
from tests import board_setup
from tests.small_models import classifier, labelled_data


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    """Set the kernel up once; skip where there is no qemu-system, no mirror or no cross compiler."""
    for tool in ("qemu-system-aarch64", "aarch64-linux-gnu-g++", "apt-get"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    with board_setup.emulated():
        try:
            native.bundle("litert", "aarch64")
            if virt.installed() is None:
                virt.setup(virt.plan())
        except EdgekitError as error:
            pytest.skip(error.message)
        yield


@pytest.mark.slow
def test_a_program_on_a_whole_machine(machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It equals the host for int8, its memory is the guest's own, the limit holds, and nothing is left."""
    model = tmp_path / "net.tflite"
    model.write_bytes(classifier())
    session = open_program(model, kernels="xnnpack", threads=1)
    program = describe(model, runtime="litert", kernels="xnnpack", threads=1, signature=session.signature)
    samples = [{"x": row[None]} for row in labelled_data()["x"][:3]]
    small = replace(virt.MACHINES["virt"], memory_mb=192)
    monkeypatch.setitem(virt.MACHINES, "virt", small)
    with attach.opened(parse("emulator:virt")) as device:
        agent, facts = runners.choose(device, "litert")
        found = [o["y"] for o in agent.run(program, samples)]
        memory = agent.memory(program, samples[0])
        # busybox keeps the line that it looks for the end of: all memory, until the kernel ends it.
        assert device.run(["tail", "/dev/zero"], timeout_s=300).code == 137
        assert device.run(["sh", "-c", "cat; echo words >&2; exit 3"], stdin=b"fed").stdout == b"fed"
        shared = device._place  # type: ignore[attr-defined]
    assert not shared.exists()
    assert (agent.runner, facts.cpu_part, facts.emulated) == ("native", "0xd03", True)
    assert facts.memory_bytes is not None
    assert 100e6 < facts.memory_bytes <= 192 * 2**20
    assert 0 < memory["before_kib"] < memory["peak_kib"] < 20_000
    for output, sample in zip(found, samples, strict=True):
        assert np.allclose(output, session.run(sample)["y"], atol=1e-6)


def test_a_machine_that_is_not_set_up_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernel the command that fetches it is named; without qemu-system the package."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    spec = DeviceSpec(kind="emulator", address="virt")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(MissingPackageError, match="qemu-system-aarch64 is not installed") as caught:
        virt.VirtDevice(spec)
    assert "qemu-system-arm" in str(caught.value.hint)
    (tmp_path / "bin/qemu-system-aarch64").write_text("#!/bin/sh\n", encoding="ascii")
    (tmp_path / "bin/qemu-system-aarch64").chmod(0o755)
    with pytest.raises(DeviceError, match="not set up") as told:
        virt.VirtDevice(spec)
    assert "edgekit emulator setup virt" in str(told.value.hint)


def test_what_a_whole_machine_does_not_do(tmp_path: Path) -> None:
    """It is not served over ssh and its instructions are not counted; unknown names list the machines."""
    with pytest.raises(DeviceError, match="cannot be served"):
        Board("virt")
    model = tmp_path / "net.tflite"
    model.write_bytes(classifier())
    signature = open_program(model, kernels="reference", threads=1).signature
    program = describe(model, runtime="litert", kernels="xnnpack", threads=1, signature=signature)
    with pytest.raises(DeviceError, match="not counted on emulator:virt"):
        count_instructions(program, {"x": labelled_data()["x"][:1]}, "virt")
    with pytest.raises(ConfigError, match="virt, virt-rpi3, virt-rpi4, virt-rpi5"):
        parse("emulator:virtual")


def test_the_file_system_is_one_that_others_read(tmp_path: Path) -> None:
    """The archive has the names, modes and contents, by the format's own rules and by cpio where there is one."""
    files = {"init": b"#!/bin/sh\n", "a/b/c.ko": bytes(range(7))}
    content, found, offset = virt.archive(files, ("proc",)), {}, 0
    while True:
        head = content[offset : offset + 110]
        mode, size, length = (int(head[6 + 8 * i : 14 + 8 * i], 16) for i in (1, 6, 11))
        name = content[offset + 110 : offset + 110 + length - 1].decode()
        begin = offset + (110 + length + 3) // 4 * 4
        offset = begin + (size + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
        found[name] = (mode, content[begin : begin + size])
    assert {n: c for n, (m, c) in found.items() if m == 0o100755} == files
    assert sorted(n for n, (m, _) in found.items() if m == 0o040755) == ["a", "a/b", "proc"]
    assert len(content) % 512 == 0
    if cpio := shutil.which("cpio"):
        listed = subprocess.run([cpio, "-t"], input=content, capture_output=True, check=True, cwd=tmp_path)
        assert listed.stdout.decode().split() == list(found)


def test_a_mirror_without_a_kernel_is_refused() -> None:
    """Of a closure only kernel and busybox are taken; without them the mirror is of no use."""
    line = "'http://d/{0}' {0} {1} SHA256:00\n"
    names = ("linux-image-6.1.0-56-arm64_6.1.1_arm64.deb", "linux-image-arm64_6.1.1_arm64.deb", "kmod_30_arm64.deb")
    text = "".join(line.format(name, 7) for name in (*names, "busybox-static_1%3a1.35_arm64.deb"))
    chosen = virt._chosen(text)
    assert [p.file.split("_")[0] for p in chosen] == ["linux-image-6.1.0-56-arm64", "busybox-static"]
    with pytest.raises(ToolError, match="no kernel"):
        virt._chosen("")
