"""Which program runs a model on a device: the Python agent, or a native runner where there is no Python for it."""

from __future__ import annotations

from typing import Literal, get_args

from edge.devices.base import TOOLS, Device, DeviceFacts
from edge.devices.client import Agent, NoPythonError
from edge.devices.tools_agent import ToolsAgent
from edge.errors import ConfigError, DeviceError
from edge.isolate import Progress, no_progress

RunnerName = Literal["auto", "python", "native", "tools"]
RUNNERS: tuple[RunnerName, ...] = get_args(RunnerName)
# The modules of the agent that can run a runtime's programs.
_MODULES = {"litert": ("ai_edge_litert", "tflite_runtime", "tensorflow"), "executorch": ("executorch",)}


def choose(
    device: Device, runtime: str, *, runner: str = "auto", delegate: str | None = None, progress: Progress = no_progress
) -> tuple[Agent, DeviceFacts]:
    """Return who runs programs of `runtime` (`litert`, `executorch`) on a device, and what the device is.

    `auto` takes the Android programs that devices.toml names, else the Python agent where the device has Python and the
    runtime, else the native runner; `runner` in the device's entry there says otherwise. Raises ConfigError,
    DeviceError, MissingPackageError.
    """
    runner = device.spec.options.get("runner", "auto") if runner == "auto" else runner
    if runner not in RUNNERS:
        raise ConfigError(f"Runner {runner!r} is unknown; accepted: {', '.join(RUNNERS)}.")
    if runner == "tools" or (runner == "auto" and any(tool in device.spec.options for tool in TOOLS)):
        tools = ToolsAgent(device, runtime)
        return tools, tools.facts()
    if runner == "native":
        return _native(device, runtime, delegate, progress)
    agent = Agent(device)
    try:
        facts = agent.facts()
    except NoPythonError:
        if runner == "python" or delegate is not None:
            raise
        return _native(device, runtime, delegate, progress)
    if runner == "python" or delegate is not None or any(name in facts.runtimes for name in _MODULES[runtime]):
        return agent, facts
    return _native(device, runtime, delegate, progress)


def _native(device: Device, runtime: str, delegate: str | None, progress: Progress) -> tuple[Agent, DeviceFacts]:
    from edge.devices.native_agent import NativeAgent

    if delegate is not None:
        raise DeviceError(
            f"The native runner cannot use the delegate {delegate}; it runs programs on the CPU.",
            hint="Use --runner python.",
        )
    agent = NativeAgent(device, runtime, progress)
    return agent, agent.facts()
