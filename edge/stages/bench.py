"""The bench of searching and diagnosing: builds candidates and measures them on samples that do not evaluate."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.calibration import noise
from edge.calibration.affine import from_program, to_program
from edge.calibration.data import Dataset
from edge.calibration.recipe import REFINEMENTS, Override, Recipe
from edge.calibration.search import (
    DEFAULT_BUDGET,
    SELECTION_SAMPLES,
    Candidate,
    Group,
    Outcome,
    Policy,
    best,
    split_selection,
)
from edge.calibration.selection import Selection
from edge.errors import QuantizationError
from edge.measure import metrics
from edge.measure.metric import Metric
from edge.signature import Signature
from edge.targets import registry
from edge.targets.base import Model, Program, Session, Target

if TYPE_CHECKING:
    from edge.calibration.sensitivity import LayerRecord
    from edge.isolate import Progress
    from edge.targets.litert.sensitivity import Sensitivity

_MOST_CACHED_BYTES = 256 * 2**20
_LEAST_SAMPLES = 32
# Small models can afford more samples, and with them closer bounds.
_SMALL_BYTES, _SMALL_TIMES = 2**18, 4
_CHOOSING: Any = object()
_FRONT = " (front end float)"


def keep_float(tensor: str) -> Override:
    """Return the override that keeps the operator float that writes a tensor."""
    return Override(tensor=f"^{re.escape(tensor)}$", scheme="float32")


class Bench:
    """Builds candidates and measures them against the float carrier on the selection samples."""

    def __init__(self, request: Mapping[str, Any], progress: Progress) -> None:
        self.progress = progress
        self.signature = codec.from_json(Signature, request["signature"])
        self.target = codec.from_json(Target, request["target"])
        self.base = codec.from_json(Recipe, request["recipe"])
        self.refinements = REFINEMENTS.get(request["runtime"], frozenset())
        # What every candidate changes of the target's options; see `relax`.
        self.options: dict[str, Any] = {}
        self._request = request
        self._workdir = Path(request["workdir"])
        if request["runtime"] == "edgetpu":
            # The Edge TPU's program computes the same bits as LiteRT's, which is built without its compiler.
            per_tensor = tuple(self.target.options.get("per_tensor", ()))
            self.base = replace(self.base, per_tensor_operators=per_tensor)
            if self.target.options.get("dense_as_convolutions"):
                from edge.targets.edgetpu import dense

                self._workdir.mkdir(parents=True, exist_ok=True)
                carrier = dense.rewritten(Path(request["carrier"]), self.signature, self._workdir)
                self._request = request = {**request, "carrier": str(carrier)}
        # What costs no search, whatever it finds that every candidate should keep float (see `keep_front_end`).
        self.plain = self.base
        self._runtime = registry.runtime("litert" if request["runtime"] == "edgetpu" else request["runtime"])
        calibration = codec.from_json(Selection, request["calibration"])
        evaluation = codec.from_json(Selection, request["evaluation"]) if request.get("evaluation") else None
        self.calibration, self.evaluation = calibration, evaluation
        self.split = split_selection(
            calibration, evaluation, self.signature, wanted=_affordable(self.signature, Path(request["carrier"]))
        )
        self.fit = self.split.fit.open(self.signature)
        self._samples = _Samples(self.split.select.open(self.signature))
        self.outcomes: list[Outcome] = []
        self._programs: dict[str, Outcome] = {}
        self._paths: dict[str, Path] = {}
        self.measured_sensitivity: Sensitivity | None = None
        self._references: list[dict[str, Any]] = []
        self.floats = self._run_carrier()
        floor = metrics.compare(self.floats, self.floats)
        budget = DEFAULT_BUDGET if request.get("max_drop") is None else float(request["max_drop"])
        self.policy = Policy(max_drop=budget, provable=floor.high is not None and floor.high <= budget)

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.floats.name

    @property
    def samples(self) -> int:
        """How many samples choose."""
        return len(self.floats)

    @property
    def leader(self) -> Outcome:
        """The best candidate so far that is integer throughout; raises QuantizationError where none could be built."""
        if not self.usable:
            raise QuantizationError(self.outcomes[0].failure or "Nothing could be built.")
        return best(self.usable)

    @property
    def usable(self) -> list[Outcome]:
        """What could be built and is integer throughout, or as far as the target's options have it."""
        return [o for o in self.outcomes if o.failure is None and o.candidate.group != "mixed"]

    def candidate(self, recipe: Recipe, group: Group, label: str = "", **options: Any) -> Candidate:
        """Return a candidate of this search, by default named as its recipe."""
        changed = {**self.options, **options}
        return Candidate(recipe=recipe, group=group, label=f"{label or recipe.name}{self._note}", options=changed)

    @property
    def runtime_recipes(self) -> tuple[str, ...]:
        """What both the target and the runtime run."""
        return tuple(name for name in self.target.recipes if name in self._runtime.recipes)

    @property
    def _note(self) -> str:
        if self.options:
            return " (what has no integer form on the CPU)"
        return _FRONT if self.base is not self.plain else ""

    def relax(self) -> bool:
        """Let operators without an integer form stay float from now on; tell whether they were not allowed to."""
        if not self.target.options.get("full_integer") or self.options:
            return False
        self.options = {"full_integer": False}
        return True

    def front_end(self) -> Candidate | None:
        """Return the base recipe with the network's signal front end in float, None where that does not apply.

        An Edge TPU starts at the first operator, and what is float there leaves it nothing to run.
        """
        from edge.targets.litert import frontend

        if self._request["runtime"] != "litert" or self.target.options.get("full_integer"):
            return None
        program, ranges = self.prepared(self.base)
        if frontend.find(program, ranges) is None:
            return None
        kept = (*self.base.overrides, Override(operator=frontend.NAME))
        recipe = replace(self.base, overrides=kept)
        return Candidate(recipe=recipe, group="front end", label=f"{recipe.name}{_FRONT}")

    def keep_front_end(self, recipe: Recipe) -> None:
        """Let all further candidates start from a recipe of `front_end`."""
        self.base = recipe

    def settled(self) -> bool:
        """Tell whether going on to dearer candidates cannot be justified: too few samples, but the estimate keeps."""
        return not self.policy.provable and self.policy.plausible(self.leader)

    def measure(self, candidate: Candidate) -> Outcome:
        """Build and measure a candidate, or take what is known of it; a failure to build is an outcome too."""
        self.progress(f"trying {candidate.label}", None)
        known = self._known(candidate)
        outcome = known if known is not None else self._measured(candidate)
        self.outcomes.append(outcome)
        return outcome

    def sensitivity(self) -> Sensitivity:
        """Return the ranking of layers for the leader's recipe, measured once."""
        if self.measured_sensitivity is None:
            self.measured_sensitivity = self._sensitivity(self.leader.candidate.recipe)
        return self.measured_sensitivity

    def _sensitivity(self, recipe: Recipe) -> Sensitivity:
        from edge.targets.litert import sensitivity

        if self._request["runtime"] == "executorch":
            from edge.targets.executorch import sensitivity as exported

            options = self.target.options.get("executorch", {})
            path = Path(self._request["carrier"])
            layers, runs = exported.rank(path, self.signature, recipe, options, self.fit, self.progress)
            return sensitivity.Sensitivity(layers=layers, samples=exported.SAMPLES, runs=runs)
        program, ranges = self.prepared(recipe)
        return sensitivity.measure(program, ranges, recipe, self.fit, self.progress)

    def prepared(self, recipe: Recipe) -> tuple[bytes, Any]:
        """Return the float program as it is quantized, and its ranges."""
        from edge.targets.litert import flatbuffer, prepare, quantize

        model = flatbuffer.load(Path(self._request["carrier"]))
        prepare.canonical(model, self.signature)
        ready = quantize.calibrated(model, recipe, self.fit, progress=self.progress)
        return ready.program, ready.ranges

    def path_of(self, candidate: Candidate) -> Path | None:
        """Return the program of a candidate that was built here, None for another."""
        return self._paths.get(candidate.label)

    def program_of(self, label: str) -> Path:
        """Return the program of a measured candidate; raise QuantizationError where it could not be built."""
        if label not in self._paths:
            raise QuantizationError(self.outcomes[0].failure or "Nothing could be built.")
        return self._paths[label]

    def _graph(self) -> Any:
        from edge.targets.litert import flatbuffer, learned, prepare

        model = flatbuffer.load(Path(self._request["carrier"]))
        prepare.canonical(model, self.signature)
        learned.take(model)
        prepare.quantizable(model, static=True)
        return flatbuffer.graph(model)

    def operator_outputs(self) -> list[str]:
        """Return the first output of each operator of the float program, in execution order."""
        graph = self._graph()
        return [graph.tensors[op.outputs[0]].name for op in graph.ops if op.outputs]

    def left_float(self) -> list[str]:
        """Return the outputs of the operators that stay float in the leader's program, in execution order."""
        from edge.targets.litert import coverage, flatbuffer

        path = self._paths.get(self.leader.candidate.label)
        return [name for _, name in coverage.of(flatbuffer.load(path)).left_float] if path else []

    def island(self, layers: tuple[LayerRecord, ...]) -> tuple[tuple[Override, ...], Any]:
        """Return the overrides that keep layers float, and the dtype of the outputs where it has to change.

        Where a tensor is at fault, the operators that write and that read it are kept: else it would be quantized on
        the way from one to the other.
        """
        if self._request["runtime"] == "executorch":
            kept = [name for layer in layers for name in _around(layer)]
            return tuple(Override(tensor=re.escape(name)) for name in dict.fromkeys(kept)), None
        graph = self._graph()
        readers = graph.consumers()
        index = {t.name: t.index for t in graph.tensors}
        names, at_end = [], False
        for layer in layers:
            names += [layer.output] if layer.index >= 0 else []
            if layer.part == "activations":
                tensor = index[layer.output]
                at_end = at_end or tensor in graph.outputs
                names += [graph.tensors[graph.ops[r].outputs[0]].name for r in readers.get(tensor, ())]
        return tuple(keep_float(name) for name in dict.fromkeys(names)), "float32" if at_end else None

    def make_metric(self, label: Any = _CHOOSING) -> Metric:
        """Return a fresh metric: the one asked for, else the one that fits a label, by default that of the bench."""
        if name := self._request.get("metric"):
            return metrics.metric_named(name)
        return metrics.default_metric(self.signature, self._samples.first_label if label is _CHOOSING else label)

    def open_carrier(self) -> Session:
        """Return the float carrier, ready to run."""
        return self._runtime.open_carrier(Path(self._request["carrier"]))

    def open(self, path: Path, recipe: Recipe) -> Session:
        """Return a program ready to run, on the kernels that stand for the target's."""
        kernels = self._request["kernels"]
        # The plain kernels of accelerators' hosts take ten times as long and differ by single steps; int16 activations
        # run on the builtin kernels in any case, which the build has tried out.
        if kernels == "reference" or recipe.scheme == "int8x16":
            kernels = "builtin"
        return self._runtime.open(path, kernels=kernels, threads=1)

    def build(self, candidate: Candidate, samples: Dataset, name: str) -> tuple[Program, int]:
        """Return a candidate's program, calibrated on samples, and how often a program ran for it.

        Raises QuantizationError.
        """
        folder = self._workdir / name
        folder.mkdir(parents=True, exist_ok=True)
        target = replace(self.target, options={**self.target.options, **self._lean, **candidate.options})
        model = Model(carrier=self._runtime.carrier, path=Path(self._request["carrier"]), signature=self.signature)
        program = self._runtime.build(model, candidate.recipe, target, samples, folder, self.progress)
        return program, _build_runs(program.details, samples)

    def _run_carrier(self) -> Metric:
        session = self.open_carrier()
        metric = self.make_metric()
        for inputs, label in self._samples:
            outputs = run_real(session, inputs)
            self._references.append(outputs)
            metric.update(outputs, outputs if label is None else label)
        return metric

    def _measured(self, candidate: Candidate) -> Outcome:
        try:
            program, runs = self.build(candidate, self.fit, f"candidate-{len(self.outcomes)}")
        except QuantizationError as error:
            return Outcome(candidate=candidate, failure=error.message)
        self._paths[candidate.label] = program.path
        digest = hashlib.sha256(program.path.read_bytes()).hexdigest()
        if digest in self._programs:
            return replace(self._programs[digest], candidate=candidate, runs=runs)
        outcome = self._evaluated(candidate, program.path, program.details, runs)
        self._programs[digest] = outcome
        self._remember(candidate, outcome)
        return outcome

    @property
    def _lean(self) -> dict[str, Any]:
        """Leave out of candidates what only findings about the chosen program need: timing against a float one."""
        if self._request["runtime"] != "executorch":
            return {}
        return {"executorch": {**self.target.options.get("executorch", {}), "compare_float": False}}

    def _evaluated(self, candidate: Candidate, path: Path, details: Mapping[str, Any], runs: int) -> Outcome:
        session = self.open(path, candidate.recipe)
        metric, lost, times = self.make_metric(), noise.Noise(), []
        for position, (inputs, label) in enumerate(self._samples):
            started = time.perf_counter()
            outputs = run_real(session, inputs)
            times.append(time.perf_counter() - started)
            lost.add(outputs, self._references[position])
            metric.update(outputs, self._references[position] if label is None else label)
        difference = metrics.compare(self.floats, metric)
        how, latency_ms = self._predicted(path)
        return Outcome(
            candidate=candidate,
            drop=difference.drop,
            drop_low=difference.low,
            drop_high=difference.high,
            snr_db=lost.snr_db,
            size_bytes=path.stat().st_size,
            operators_float=int(details.get("operators_left_float", 0)) + int(details.get("operators_kept_float", 0)),
            host_ms=float(np.median(times)) * 1e3,
            latency_ms=latency_ms,
            latency_how=how,
            runs=runs + len(times),
        )

    def _predicted(self, path: Path) -> tuple[str | None, float | None]:
        """Return over which link, or with how many threads, and the predicted time in ms, where there is one."""
        found = registry.runtime(self._request["runtime"]).inspect(path, self.target, self.target.options)
        predictions = found.details.get("latency_ms") or {}
        link = self.target.hardware.get("transfer")
        how = link if link in predictions else next(iter(predictions), None)
        return how, float(predictions[how]["value"]) if how else None

    def _key(self, candidate: Candidate) -> Path | None:
        if not self._request.get("cache"):
            return None
        parts = [
            hashlib.sha256(Path(self._request["carrier"]).read_bytes()).hexdigest(),
            *(codec.to_json(v) for v in (self.signature, candidate.recipe, self.target, self.split)),
            dict(candidate.options),
            {k: self._request.get(k) for k in ("runtime", "metric", "kernels")},
            self.fit.digest(),
        ]
        return Path(self._request["cache"]) / f"{hashlib.sha256(codec.dumps(parts).encode()).hexdigest()}.json"

    def _known(self, candidate: Candidate) -> Outcome | None:
        path = self._key(candidate)
        if path is None or not path.is_file():
            return None
        return codec.from_json(Outcome, json.loads(path.read_text(encoding="utf-8")))

    def _remember(self, candidate: Candidate, outcome: Outcome) -> None:
        if path := self._key(candidate):
            path.parent.mkdir(parents=True, exist_ok=True)
            codec.write_atomically(path, codec.dumps(codec.to_json(outcome)))


def _around(layer: LayerRecord) -> Iterator[str]:
    """Yield a layer and those that have to be float with it: what stands between two is else quantized by the other."""
    yield layer.output
    if layer.unbalanced_with:
        yield layer.unbalanced_with
    elif layer.part == "activations" and layer.reads:
        yield layer.reads


class _Samples:
    """Inputs and labels of a data set, kept in memory while they are few, else read again each time."""

    def __init__(self, data: Dataset) -> None:
        self._data = data
        first = data.first()
        self.first_label = first.label
        size = sum(np.asarray(v).nbytes for v in first.inputs.values())
        self._kept: list[Any] | None = [] if size * (data.count or 10**6) <= _MOST_CACHED_BYTES else None

    def __iter__(self) -> Iterator[tuple[Mapping[str, Any], Any]]:
        if self._kept:
            yield from self._kept
            return
        for sample in self._data:
            entry = (dict(sample.inputs), sample.label)
            if self._kept is not None:
                self._kept.append(entry)
            yield entry


def run_real(session: Session, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the real-valued outputs of a program for a sample's inputs."""
    fed = {t.name: to_program(t, np.asarray(inputs[t.name])) for t in session.signature.inputs}
    found = session.run(fed)
    return {t.name: from_program(t, found[t.name]) for t in session.signature.outputs}


def _build_runs(details: Mapping[str, Any], fit: Dataset) -> int:
    """Return how often a program ran while a candidate was built."""
    count = int(details.get("calibration_samples") or fit.count or 0)
    extra = [details.get(k) or {} for k in ("tuned_ranges", "bias_correction", "adaptive_rounding")]
    return count * int(details.get("calibration_passes", 1)) + sum(int(e.get("runs", 0)) for e in extra)


def _affordable(signature: Signature, carrier: Path) -> int:
    """Return how many samples may choose so that the float outputs of all of them stay below 256 MB."""
    small = carrier.stat().st_size < _SMALL_BYTES
    size = sum(4 * int(np.prod([max(d, 1) for d in t.shape])) for t in signature.outputs)
    return max(
        _LEAST_SAMPLES, min(SELECTION_SAMPLES * (_SMALL_TIMES if small else 1), _MOST_CACHED_BYTES // max(1, size))
    )
