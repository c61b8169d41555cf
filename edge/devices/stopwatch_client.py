"""The host's side of the stopwatch: the agent with the operations of latency."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import codec
from edge.devices.client import AGENT, Agent, write_samples
from edge.devices.programs import DeviceProgram
from edge.measure.environment import Environment
from edge.measure.latency import Timing
from edge.measure.latency_record import Profile, WarmUp

Array = NDArray[np.generic]
Sample = Mapping[str, Array]
STOPWATCH = Path(__file__).with_name("stopwatch.py")
_ROOM_S = 300.0  # for loading, a slow board, and what else is done around the runs


class Stopwatch(Agent):
    """Asks the agent on one device for what belongs to latency. All methods raise DeviceError."""

    def _command(self) -> list[str]:
        return [self.device.python, "-B", self.device.push(STOPWATCH), self.device.push(AGENT)]

    def profile(
        self, program: DeviceProgram, sample: Sample, profile: Profile, controls: Mapping[str, Any]
    ) -> tuple[Timing, dict[str, Any]]:
        """Time the program; return the raw timing and all else that was told."""
        limit = profile.max_seconds + profile.cooldown_s + profile.warm_up.cap_s + _ROOM_S
        with self._prepared([program], [sample]) as (programs, inputs):
            told, arrays = self._sampled(
                "profile",
                limit,
                program=programs[0],
                inputs=inputs[0],
                profile=asdict(profile),
                controls=dict(controls),
            )
        names = ("runs", "duration_s", "warm_up_runs", "warm_up_stable", "clock", "timer_overhead_ns")
        with self.sensible():
            timing = Timing(
                samples_ns=arrays["durations"],
                starts_ns=arrays["starts"],
                before=codec.from_json(Environment, told["before"]),
                after=codec.from_json(Environment, told["after"]),
                **{name: told[name] for name in names},
            )
        return timing, told

    def cold(self, program: DeviceProgram, sample: Sample, starts: int) -> list[dict[str, float]]:
        """Return the phases of `starts` fresh processes in ms: start, import, load, first, total."""
        with self._prepared([program], [sample]) as (programs, inputs):
            told = self.ask("cold", program=programs[0], inputs=inputs[0], starts=starts)
        with self.sensible():
            found: list[dict[str, float]] = told["starts"]
        return found

    def blocks(
        self, programs: Sequence[DeviceProgram], samples: Sequence[Sample], **fields: Any
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Run two programs in alternating blocks; return the rows (group, place, side, ns) and what was told."""
        warm_up = asdict(WarmUp(seconds=0.05, cap_s=5.0))
        with self._prepared(programs, samples) as (prepared, inputs):
            told, arrays = self._sampled(
                "blocks", _ROOM_S * 4, programs=prepared, inputs=inputs, warm_up=warm_up, **fields
            )
        with self.sensible():
            return arrays["rows"], told

    def operators(self, program: DeviceProgram, sample: Sample, runs: int) -> list[dict[str, Any]]:
        """Return the operators as LiteRT ran them, with their mean time in microseconds."""
        warm_up = asdict(WarmUp(seconds=0.2, cap_s=5.0))
        with self._prepared([program], [sample]) as (programs, inputs):
            told = self.ask("operators", program=programs[0], inputs=inputs[0], warm_up=warm_up, runs=runs)
        with self.sensible():
            found: list[dict[str, Any]] = told["operators"]
        return found

    @contextmanager
    def _prepared(
        self, programs: Sequence[DeviceProgram], samples: Sequence[Sample]
    ) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
        """Push programs and inputs; yield how a request names them."""
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            sent = []
            for index, (program, sample) in enumerate(zip(programs, samples, strict=True)):
                path = Path(place) / f"inputs-{index}.npz"
                write_samples(path, program, [sample])
                sent.append(self.device.push(path))
            yield [p.request(self.device.push(p.path)) for p in programs], sent

    def _sampled(self, op: str, timeout_s: float, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Ask for an operation that writes arrays to a file; return its result and the arrays."""
        wanted = f"{self.device.workdir}/samples-{next(self._numbers)}.npz"
        told = self.ask(op, timeout_s=timeout_s, samples=wanted, **fields)
        with tempfile.TemporaryDirectory(prefix="edgekit-chunk-") as place:
            local = Path(place) / "samples.npz"
            self.device.pull(wanted, local)
            self.device.forget(wanted)
            with self.sensible(), np.load(local, allow_pickle=False) as data:
                return told, {name: data[name] for name in data.files}
