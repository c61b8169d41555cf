"""Tune activation ranges by what the network's outputs lose: each end of the worst tensors' intervals in turn.

Estimators that look at one tensor alone cannot know that a softmax does not care for logits far below the largest, or
that a layer is blind to another's outliers. Here an end of an interval is moved only where the outputs come closer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.calibration import noise
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.isolate import Progress, no_progress
from edge.targets.litert import flatbuffer, probe
from edge.targets.litert.simulate import Simulation

# An end is multiplied by these in turn, until two in a row bring nothing.
_FRACTIONS = (0.84, 0.7, 0.5, 0.35, 0.25, 0.125)
_PATIENCE = 2
_ROUNDS = 2
_TENSORS = 8
_RANKING = 8
# Runs of the program that tuning may take, for 16 operators and more; small networks get up to four times as many.
_RUNS, _OPERATORS, _MOST_TIMES = 3000, 16, 4
_LEAST, _MOST = 24, 256


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The ranges to use: the tuned ones, or those given where held-out samples do not say that tuning helps."""

    ranges: Ranges
    kept: bool
    before_db: float
    after_db: float
    changed: tuple[str, ...]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return what the report shows."""
        return {
            "kept": self.kept,
            "held_out_snr_db": [self.before_db, self.after_db],
            "tensors": list(self.changed),
            "runs": self.runs,
        }


def tune(
    program: bytes, ranges: Ranges, recipe: Recipe, samples: Iterable[Any], progress: Progress = no_progress
) -> Tuned | None:
    """Return ranges with which the simulated integer program follows the float one better; None without samples.

    Coordinate descent over both ends of the 8 tensors that hurt most when quantized alone, two rounds; all the rest of
    the model is quantized as well. Every fourth sample is held out to judge by.
    """
    operators = len(flatbuffer.graph(flatbuffer.load(program)).ops)
    budget = _RUNS * min(_MOST_TIMES, max(1, _OPERATORS // max(1, operators)))
    count = min(_MOST, max(_LEAST, budget // (_TENSORS * 2 * _ROUNDS * 4)))
    inputs = probe.spread_inputs(samples, count * 4 // 3)
    if len(inputs) < 4:
        return None
    used = [v for i, v in enumerate(inputs) if i % 4]
    search = _Search(program, ranges, recipe, used)
    names = search.worst(_TENSORS)
    for number in range(_ROUNDS):
        for position, name in enumerate(names):
            search.improve(name)
            progress("tuning ranges", (number * len(names) + position + 1) / (_ROUNDS * len(names)))
    return _judged(program, ranges, recipe, inputs[::4], search)


def _judged(
    program: bytes, ranges: Ranges, recipe: Recipe, held: Sequence[Mapping[str, Any]], search: _Search
) -> Tuned:
    references = probe.outputs(program, held)
    tuned = replace(ranges, limits=search.limits)
    before, after = (
        noise.snr_db(probe.outputs(_whole(program, r, recipe).program(), held), references) for r in (ranges, tuned)
    )
    return Tuned(
        ranges=tuned if after > before else ranges,
        kept=after > before,
        before_db=before,
        after_db=after,
        changed=tuple(name for name in ranges if tuned[name] != ranges[name]),
        runs=search.runs + 3 * len(held),
    )


def _whole(program: bytes, ranges: Ranges, recipe: Recipe) -> Simulation:
    operators = range(len(flatbuffer.graph(flatbuffer.load(program)).ops))
    return Simulation(program, ranges, recipe, weights=operators, activations=list(ranges))


class _Search:
    """The state of the descent: the limits so far, and the signal-to-noise ratio that they give."""

    def __init__(self, program: bytes, ranges: Ranges, recipe: Recipe, inputs: Sequence[Mapping[str, Any]]) -> None:
        self.limits = dict(ranges.limits)
        self.runs = 0
        self._program, self._ranges, self._recipe, self._inputs = program, ranges, recipe, inputs
        self._references = probe.outputs(program, inputs)
        self._simulation = _whole(program, ranges, recipe)
        self._best = self._score(self._simulation, len(inputs))

    def _score(self, simulation: Simulation, count: int) -> float:
        self.runs += count
        return noise.snr_db(probe.outputs(simulation.program(), self._inputs[:count]), self._references[:count])

    def worst(self, count: int) -> list[str]:
        """Return the tensors that lose most when each is quantized alone, worst first."""
        alone = {}
        for name in self._ranges:
            one = Simulation(self._program, self._ranges, self._recipe, weights=(), activations=(name,))
            alone[name] = self._score(one, min(_RANKING, len(self._inputs)))
        return sorted(alone, key=alone.__getitem__)[:count]

    def improve(self, name: str) -> None:
        """Move both ends of one tensor's interval towards 0 where that brings the outputs closer."""
        for end in (0, 1):
            start, failures = self.limits[name], 0
            for fraction in _FRACTIONS if start[end] else ():
                trial = (start[0] * fraction, start[1]) if end == 0 else (start[0], start[1] * fraction)
                if trial[0] > trial[1] or failures == _PATIENCE:
                    break
                self._simulation.set_range(name, trial)
                score = self._score(self._simulation, len(self._inputs))
                failures = 0 if score > self._best else failures + 1
                if score > self._best:
                    self._best, self.limits[name] = score, trial
            self._simulation.set_range(name, self.limits[name])
