"""The last rung of a diagnosis: the int8 program on a device, over the samples of the whole ladder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.calibration import affine
from edge.devices import attach, check, runners
from edge.devices.base import Device
from edge.devices.client import Agent
from edge.devices.programs import DeviceProgram, describe
from edge.errors import DeviceError
from edge.stages import diagnosing

if TYPE_CHECKING:
    from edge.calibration.data import Dataset
    from edge.isolate import Progress
    from edge.signature import Signature


def diagnose_stage(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Diagnose as `edge.stages.diagnosing:diagnose` with one rung more: a stage for edge.isolate.

    Keys of the request beside that one's: `device` (a name for attach.resolve that stands for one device), and
    `compiled` (the program for the Edge TPU, or None). Raises DeviceError, ConfigError.
    """
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(attach.opened(attach.resolve(request["device"])[0], progress))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-outputs-")))

        def rung(path: Path, signature: Signature, samples: Dataset) -> tuple[str, check.ReplaySession]:
            program = describe(
                Path(request["compiled"] or path),
                runtime=request["runtime"],
                kernels=request["device_kernels"],
                threads=1,
                signature=signature,
            )
            return _ran(device, program, samples, place, progress)

        return diagnosing.diagnose(request, progress, device=rung)


def _ran(
    device: Device, program: DeviceProgram, samples: Dataset, place: Path, progress: Progress
) -> tuple[str, check.ReplaySession]:
    """Return the rung's name and its outputs, in the order of the samples."""
    agent, facts = runners.choose(device, program.runtime, delegate=program.delegate, progress=progress)
    if not agent.gives_outputs:
        raise DeviceError(
            f"{device.spec} gives no outputs: run_model only times programs.",
            hint="Name benchmark_model or executor_runner in devices.toml, or leave out --device.",
        )
    mode = "emulated" if facts.emulated or device.mode == "emulated" else "measured"
    progress(f"running the samples on {device.spec}", None)
    checksums: list[int] = []
    outputs = check.store(_run(agent, program, samples, checksums), place, progress)
    name = f"int8, on {device.spec.name or device.spec} ({mode})"
    return name, check.ReplaySession(program.signature, check.stored(outputs), checksums)


def _run(
    agent: Agent, program: DeviceProgram, samples: Dataset, checksums: list[int]
) -> Iterator[dict[str, NDArray[np.generic]]]:
    def fed() -> Iterator[dict[str, NDArray[np.generic]]]:
        for sample in samples:
            inputs = {t.name: affine.to_program(t, sample.inputs[t.name]) for t in program.signature.inputs}
            checksums.append(check.checksum(inputs))
            yield inputs

    return agent.run(program, fed())
