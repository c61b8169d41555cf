"""A device without hardware, for tests of what stands on devices: it answers the agent's requests from functions."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import codec
from edge.devices.base import (
    DEFAULT_TIMEOUT_S,
    Closing,
    Completed,
    DeviceFacts,
    DeviceMode,
    DeviceSpec,
    hashed_name,
)
from edge.errors import DeviceError

Array = NDArray[np.generic]
QUIET = {"cpus": 4, "affinity": [0, 1, 2, 3], "busy_s": 1.0, "steal_s": 0.0, "own_s": 1.0}


class FakeDevice(Closing):
    """A device that computes with `compute` (inputs by position, without the sample dimension -> outputs).

    `durations_ns` are the times that a measurement finds, `environments` the states before and after; `failures` maps
    an operation of the agent to the error of its answer, or to a Completed in place of the whole answer.
    """

    def __init__(
        self,
        compute: Callable[[list[Array]], list[Array]],
        *,
        facts: DeviceFacts | None = None,
        mode: DeviceMode = "measured",
        durations_ns: Sequence[int] = (2_000_000,) * 64,
        environments: tuple[Mapping[str, Any], Mapping[str, Any]] = (QUIET, QUIET),
        failures: Mapping[str, Mapping[str, Any] | Completed] | None = None,
    ) -> None:
        self.spec = DeviceSpec(kind="ssh", address="fake")
        self.mode: DeviceMode = mode
        self.python = "python3"
        self.workdir = tempfile.mkdtemp(prefix="edgekit-fake-")
        self.asked: list[str] = []
        self.commands: list[tuple[tuple[str, ...], float]] = []
        self._compute = compute
        self._facts = facts or DeviceFacts(model="Fake board", machine="aarch64", runtimes={"ai_edge_litert": "2.3.0"})
        self._durations = np.array(durations_ns, np.int64)
        self._environments = environments
        self._failures = failures or {}

    def push(self, path: Path) -> str:
        """Copy a file under its hash."""
        target = Path(self.workdir) / hashed_name(path)
        shutil.copyfile(path, target)
        return str(target)

    def forget(self, remote: str) -> None:
        """Remove a file."""
        Path(remote).unlink(missing_ok=True)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file back."""
        if not Path(remote).is_file():
            raise DeviceError(f"{self.spec} has no file {remote}.")
        shutil.copyfile(remote, local)

    def facts(self) -> DeviceFacts:
        """Return the facts that were given."""
        return self._facts

    def run(self, command: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S, stdin: bytes = b"") -> Completed:
        """Answer as the agent does; `commands` keeps what was run, with its time limit."""
        self.commands.append((tuple(command), timeout_s))
        request = json.loads(stdin)
        op = str(request["op"])
        self.asked.append(op)
        failure = self._failures.get(op)
        if isinstance(failure, Completed):
            return failure
        answer = {"ok": False, "error": failure} if failure else {"ok": True, "result": self._do(op, request)}
        line = json.dumps({"edgekit": request["edgekit"], "id": request["id"], **answer})
        return Completed(code=0, stdout=line.encode() + b"\n", stderr=b"")

    def _do(self, op: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if op == "hello":
            told: dict[str, Any] = codec.to_json(self._facts)
            return told
        if op == "run":
            return self._run(request)
        if op == "measure":
            return self._measure(request)
        if op == "memory":
            return {"before_kib": 30_000, "loaded_kib": 34_000, "peak_kib": 35_000}
        return {"runs": request.get("runs")}

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with np.load(request["inputs"], allow_pickle=False) as data:
            arrays = [data[str(i)] for i in range(len(data.files))]
        found = [self._compute([a[index] for a in arrays]) for index in range(len(arrays[0]))]
        stacked: dict[str, Any] = {str(i): np.stack([one[i] for one in found]) for i in range(len(found[0]))}
        np.savez(request["outputs"], **stacked)
        return {"samples": len(found), "load_ms": 1.0, "peak_rss_kib": 35_000}

    def _measure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        starts = np.cumsum(self._durations) - self._durations
        np.savez(request["samples"], durations=self._durations, starts=starts)
        return {
            "load_ms": 12.5,
            "first_ms": 3.0,
            "warm_up_runs": 10,
            "warm_up_stable": True,
            "timer_overhead_ns": 60,
            "clock": "fake",
            "runs": int(self._durations.size),
            "duration_s": float(self._durations.sum()) / 1e9,
            "before": dict(self._environments[0]),
            "after": dict(self._environments[1]),
        }

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.workdir, ignore_errors=True)
