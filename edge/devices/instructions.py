"""Instructions of one inference on an emulated board: the same number in every run, so that any change is a change.

They are counted by a plug-in of qemu-user between marks that the agent makes. It is no latency: caches, memory and the
pipeline are not modelled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.devices.base import DeviceSpec
from edge.devices.boards import BOARDS
from edge.devices.client import Agent
from edge.devices.emulator import EmulatorDevice
from edge.devices.native_agent import NativeAgent
from edge.devices.places import cache_folder
from edge.devices.programs import DeviceProgram
from edge.errors import DeviceError, MissingPackageError, ToolError

Array = NDArray[np.generic]
RUNS = 3
_SOURCE = Path(__file__).with_name("icount.c")


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Instructions of one inference with one thread; classes overlap: a dot product is a SIMD instruction too.

    `repeatable` tells whether all `runs` gave the same numbers.
    """

    board: str
    cpu: str
    total: int
    load_store: int
    simd: int
    dot_product: int
    branch: int
    runs: int
    repeatable: bool


def emulator() -> str:
    """Return a qemu-aarch64 that takes plug-ins; raise MissingPackageError."""
    found = shutil.which("qemu-aarch64")
    if found:
        told = subprocess.run([found, "-help"], capture_output=True, text=True, check=False, timeout=30)
        if "-plugin" in told.stdout:
            return found
    raise MissingPackageError(
        "Counting instructions needs a qemu-aarch64 with plug-ins, which is not installed.",
        hint="`apt-get install qemu-user` (the dynamic one of Debian 12; static builds have no plug-ins).",
    )


def plugin() -> Path:
    """Return the compiled plug-in, built once per source into the cache; raise MissingPackageError, ToolError."""
    content = _SOURCE.read_bytes()
    made = cache_folder() / "emulator" / "plugins" / f"icount-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if made.exists():
        return made
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise MissingPackageError("Counting instructions needs a C compiler.", hint="`apt-get install gcc libc6-dev`.")
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as place:
        output = Path(place) / made.name
        command = [compiler, "-O2", "-fPIC", "-shared", "-o", str(output), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, errors="replace")
        if done.returncode != 0:
            raise ToolError(f"The plug-in that counts instructions cannot be compiled: {done.stderr.strip()[-400:]}")
        output.rename(made)
    return made


def count_instructions(
    program: DeviceProgram, sample: Mapping[str, Array], board: str, runs: int = RUNS, runner: str = "python"
) -> Instructions:
    """Return the instructions of one inference of `sample` on an emulated board; `runner` is `python` or `native`.

    Raises MissingPackageError, ToolError, DeviceError.
    """
    from dataclasses import replace

    if board not in BOARDS:
        raise DeviceError(
            f"Instructions are not counted on emulator:{board}.", hint=f"Check on one of {', '.join(sorted(BOARDS))}."
        )
    with tempfile.TemporaryDirectory(prefix="edgekit-count-") as place:
        lines = Path(place) / "counts.jsonl"
        qemu = [emulator(), "-plugin", f"file={plugin()},out={lines}"]
        with EmulatorDevice(DeviceSpec(kind="emulator", address=board), qemu) as device:
            # More threads would share the counters and make the numbers differ from run to run.
            agent = NativeAgent(device, program.runtime) if runner == "native" else Agent(device)
            agent.count(replace(program, threads=1), sample, runs + 1)
        counted = [json.loads(line) for line in lines.read_text(encoding="ascii").splitlines()]
    if len(counted) < runs:
        raise DeviceError(f"The emulator counted {len(counted)} of {runs} runs.", hint="Is another plug-in in use?")
    # The first inference after the agent's own preparations takes a few hundred instructions more.
    counted = counted[-runs:]
    return Instructions(
        board=board,
        cpu=BOARDS[board].cpu,
        runs=runs,
        repeatable=all(one == counted[0] for one in counted),
        **counted[-1],
    )
