"""The emulated boards of the tests: one arm64 system for all test runs, made once, or the reason why it cannot be."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge import pipeline, project
from edge.devices import sysroot
from edge.devices.base import DeviceSpec, parse
from edge.devices.namespace import Board
from edge.devices.sshd import Server
from edge.errors import EdgekitError
from edge.signature import Quantization
from tests.small_models import classifier, labelled_data
from tests.tflite_builder import GraphBuilder, i32

# Read once: tests point EDGEKIT_CACHE at folders of their own, and the system shall not be made in each of them.
PLACE = Path(os.environ.get("EDGEKIT_CACHE") or Path(tempfile.gettempdir()) / f"edgekit-tests-{os.getuid()}")


@contextlib.contextmanager
def emulated() -> Iterator[Path]:
    """Yield the cache with an arm64 system in it while EDGEKIT_CACHE points there; skip where there can be none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(PLACE))
        if reason := _missing():
            pytest.skip(reason)
        yield PLACE


@functools.cache
def _missing() -> str | None:
    """Return why boards cannot be emulated here; sets the system up where it is not yet."""
    if not shutil.which("qemu-aarch64-static"):
        return "qemu-user-static is not installed"
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several workers one makes it
        if sysroot.installed() is not None:
            return None
        try:
            sysroot.setup(sysroot.plan(litert=sysroot.host_litert()))
        except EdgekitError as error:
            return f"the arm64 system cannot be set up: {error.message}"
    return None


@contextlib.contextmanager
def board(name: str = "rpi4", *, disk: str = "512m") -> Iterator[Board]:
    """Yield a board that is up; skip where users may not make namespaces."""
    with emulated():
        try:
            made = Board(name, disk=disk)
        except EdgekitError as error:
            pytest.skip(error.message)
        with made:
            yield made


@contextlib.contextmanager
def served(made: Board) -> Iterator[Server]:
    """Yield an sshd before a board; skip where there is none."""
    try:
        server = Server(made)
    except EdgekitError as error:
        pytest.skip(error.message)
    with server:
        yield server


@contextlib.contextmanager
def jump_host() -> Iterator[Server]:
    """Yield an sshd that forwards connections and gives nobody a shell: a jump host."""
    nobody: Any = SimpleNamespace(enter=["/bin/false"])
    with Server(nobody) as made:
        made.drop_connections()
        config = made.place / "sshd_config"
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("AllowTcpForwarding no", "AllowTcpForwarding yes"), encoding="utf-8")
        made.start()
        yield made


def spec_of(server: Server, **options: str) -> DeviceSpec:
    """Return the board behind an sshd as a device, with the key and the known host that were made for it."""
    table = {"device": server.address, "ssh_config": str(server.config), **options}
    return parse("board", {"board": table})


def built_artifact(folder: Path, target: str = "rpi4") -> tuple[Path, Path]:
    """Return an artifact of a small trained classifier and its labelled data."""
    (folder / "net.tflite").write_bytes(classifier())
    np.savez(folder / "data.npz", **labelled_data())
    made = pipeline.build(
        project.resolve(
            {
                "source": str(folder / "net.tflite"),
                "targets": [target],
                "calibration": str(folder / "data.npz"),
                "output": str(folder / "out"),
                "latency": "none",
            }
        )
    )
    return made[0].path, folder / "data.npz"


def unsigned_network() -> bytes:
    """Return three 3x3 convolutions over uint8, as TensorFlow 1 quantized networks: x uint8[1, 12, 12, 8] -> y."""
    random = np.random.default_rng(11)
    builder = GraphBuilder()
    size, channels = 12, 8
    x = builder.input("x", (1, size, size, channels), "uint8", Quantization(scale=(0.0213,), zero_point=(128,)))
    scale_in = 0.0213
    for number in range(3):
        weights = random.integers(0, 256, (16, 3, 3, channels)).astype(np.uint8)
        w = builder.const(f"w{number}", weights, Quantization(scale=(0.00937,), zero_point=(127,)))
        bias_scale = Quantization(scale=(scale_in * 0.00937,), zero_point=(0,))
        b = builder.const(f"b{number}", i32(random.integers(-2000, 2000, 16)), bias_scale)
        size, channels, scale_in = size - 2, 16, 0.1731
        x = builder.op(
            "CONV_2D",
            [x, w, b],
            (1, size, size, channels),
            name=f"conv{number}",
            dtype="uint8",
            quantization=Quantization(scale=(scale_in,), zero_point=(121,)),
        )
    builder.output(x, "y")
    return builder.build()
