"""Diagnose: the parity ladder from float to the device's kernels, the layers to blame, and fixes with their effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.artifact import what_ran
from edge.calibration import noise
from edge.calibration.data import Dataset
from edge.calibration.search import Candidate, Outcome
from edge.calibration.selection import Selection
from edge.errors import UsageError
from edge.findings import Finding
from edge.measure import metrics
from edge.measure.metric import Metric
from edge.measure.store import OutputReader
from edge.signature import Signature
from edge.stages.bench import Bench, run_real
from edge.stages.checking import ran
from edge.targets import registry
from edge.targets.base import Session
from edge.targets.litert import heads, memory

if TYPE_CHECKING:
    from edge.isolate import Progress

# A rung also loses where its signal-to-noise ratio falls by this much to below 20 dB: 10 % of the signal's size.
_LOUD_DB, _FALL_DB = 20.0, 6.0
_LAYERS = 20
_FIXED_LAYERS = (1, 2, 8)
_RUNTIMES = ("litert", "edgetpu", "executorch")
_PLAIN: dict[str, Any] = {"kernels": "xnnpack", "threads": 1}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of the ladder. `drop` against the float carrier with its 95 % interval; `loses` where it is to blame."""

    name: str
    metric: float
    drop: float
    drop_low: float | None
    drop_high: float | None
    snr_db: float
    outputs_db: Mapping[str, float]
    loses: bool


# What runs an int8 program with its signature on a device over samples, and returns the rung's name and a session.
OnDevice = Callable[[Path, Signature, Dataset], tuple[str, Session]]


def diagnose(request: dict[str, Any], progress: Progress, *, device: OnDevice | None = None) -> dict[str, Any]:
    """Return where an int8 program loses accuracy: the ladder, the culprit, layers worst first, and measured fixes.

    Request: as for `edge.stages.searching:search`, and reference (a folder with the float source's outputs on the
    evaluation samples, or None), program (a built int8 file to be the last rungs; None: one is built), device_kernels.
    The ladder runs on the evaluation samples where there are any, else on held-out calibration samples; layers and
    fixes on calibration samples only. `device` adds the program on a device as the last rung.
    """
    if request["runtime"] not in _RUNTIMES:
        raise UsageError(f"Programs of {request['runtime']} cannot be diagnosed; accepted: {', '.join(_RUNTIMES)}.")
    bench = Bench({**request, "cache": None}, progress)
    with memory.remembering():
        base = bench.measure(Candidate(recipe=bench.base, group="estimators", label=bench.base.name))
        exported = request["runtime"] == "executorch"
        program, ranges = (b"", None) if exported else bench.prepared(bench.base)
        ladder = _Ladder(bench, request, program, ranges).rungs(progress, device)
        culprit = _culprit(ladder)
        sensitivity = bench.sensitivity()
        fixes = [_effect(base, outcome) for outcome in _fixes(bench)]
    clashes = () if ranges is None else heads.find_clashes(program, ranges)
    return {
        "metric": bench.metric,
        "samples": bench.samples,
        "ladder": [codec.to_json(r) for r in ladder],
        "culprit": culprit,
        "layers": [{**codec.to_json(r), "snr_db": r.snr_db, "part": r.part} for r in sensitivity.layers[:_LAYERS]],
        "fixes": fixes,
        "cost": {
            "layer_samples": sensitivity.samples,
            "layer_runs": sensitivity.runs,
            "forward_passes": round(sensitivity.runs / bench.samples, 2),
        },
        "findings": [codec.to_json(f) for f in (*_findings(ladder, culprit, bench, fixes), *clashes)],
    }


class _Ladder:
    """Runs the rungs over one set of samples, each program over all of them, keeping two numbers per sample."""

    def __init__(self, bench: Bench, request: Mapping[str, Any], program: bytes, ranges: Any) -> None:
        self._bench, self._request = bench, request
        self._program, self._ranges = program, ranges
        self._workdir = Path(request["workdir"])
        self._runtime = registry.runtime("executorch" if request["runtime"] == "executorch" else "litert")
        chosen = request.get("evaluation") or codec.to_json(bench.split.select)
        self._data = codec.from_json(Selection, chosen).open(bench.signature)
        self._reference = OutputReader(Path(request["reference"])) if request.get("reference") else None

    def rungs(self, progress: Progress, device: OnDevice | None) -> list[Rung]:
        """Return all rungs in order; each is compared with the float carrier."""
        carrier = self._runtime.open_carrier(Path(self._request["carrier"]))
        expected = self._evaluate(carrier, None)
        made = []
        if self._reference is not None:
            made.append(self._rung("float source", self._stored(), expected))
        made.append(self._rung("float carrier", expected, expected))
        for name, session in self._exported(progress) if self._runtime.name == "executorch" else self._programs():
            progress(f"running {name}", None)
            made.append(self._rung(name, self._evaluate(session, carrier), expected, made[-1]))
        if device is not None:
            name, session = device(self._final(), self._runtime.open(self._final(), **_PLAIN).signature, self._data)
            made.append(self._rung(name, self._evaluate(session, carrier), expected, made[-1]))
        return made

    def _final(self) -> Path:
        """Return the int8 program of the last rungs: the one given, else the one that was built here."""
        given = self._request.get("program")
        return Path(given) if given else self._bench.program_of(self._bench.base.name)

    def _exported(self, progress: Progress) -> Iterator[tuple[str, Session]]:
        from edge.targets.executorch import ladder

        bench = self._bench
        options = bench.target.options.get("executorch", {})
        carrier = Path(self._request["carrier"])
        yield from ladder.rungs(carrier, bench.signature, bench.base, options, bench.fit, progress)
        kernels = self._request.get("device_kernels") or "xnnpack"
        session = self._runtime.open(self._final(), kernels=kernels, threads=1)
        yield f"{bench.base.scheme}, {what_ran(ran(session, kernels))}", session

    def _programs(self) -> Iterator[tuple[str, Session]]:
        from edge.targets.litert import flatbuffer
        from edge.targets.litert.simulate import Simulation

        runtime = registry.runtime("litert")
        operators = range(len(flatbuffer.graph(flatbuffer.load(self._program)).ops))
        tensors = list(self._ranges)
        for name, weights, activations in (
            ("weights only", operators, ()),
            ("activations only", (), tensors),
        ):
            one = Simulation(
                self._program, self._ranges, self._bench.base, weights=tuple(weights), activations=tuple(activations)
            )
            path = self._workdir / f"{name.replace(' ', '-')}.tflite"
            path.write_bytes(one.program())
            yield name, runtime.open(path, kernels="builtin", threads=1)
        final = self._final()
        yield "int8, reference kernels", runtime.open(final, kernels="reference", threads=1)
        device = self._request.get("device_kernels") or "xnnpack"
        if device != "reference":
            yield f"int8, {device} kernels", runtime.open(final, kernels=device, threads=1)

    def _evaluate(self, session: Session, carrier: Session | None) -> tuple[Metric, noise.Noise]:
        metric, lost = self._bench.make_metric(), noise.Noise()
        for sample in self._data:
            outputs = run_real(session, sample.inputs)
            wanted = outputs if carrier is None else run_real(carrier, sample.inputs)
            lost.add(outputs, wanted)
            metric.update(outputs, wanted if sample.label is None else sample.label)
        return metric, lost

    def _stored(self) -> tuple[Metric, noise.Noise]:
        assert self._reference is not None
        metric, lost = self._bench.make_metric(), noise.Noise()
        carrier = self._runtime.open_carrier(Path(self._request["carrier"]))
        for index, sample in enumerate(self._data):
            outputs = self._reference.sample(index)
            wanted = run_real(carrier, sample.inputs)
            lost.add(outputs, wanted)
            metric.update(outputs, wanted if sample.label is None else sample.label)
        return metric, lost

    @staticmethod
    def _rung(
        name: str,
        found: tuple[Metric, noise.Noise],
        expected: tuple[Metric, noise.Noise],
        before: Rung | None = None,
    ) -> Rung:
        difference = metrics.compare(expected[0], found[0])
        db = found[1].snr_db
        worse = before is not None and (difference.low is not None and difference.low > 0)
        loud = before is not None and db < _LOUD_DB and db < before.snr_db - _FALL_DB
        return Rung(
            name=name,
            metric=difference.candidate,
            drop=difference.drop,
            drop_low=difference.low,
            drop_high=difference.high,
            snr_db=db,
            outputs_db={name: round(value, 2) for name, value in found[1].outputs_db.items()},
            loses=worse or loud,
        )


def _culprit(ladder: list[Rung]) -> str | None:
    """Return what the first rung that loses names: `weights`, `activations`, `both`, `kernels`, or None."""
    losing = {r.name: r for r in ladder if r.loses}
    weights, activations = "weights only" in losing, "activations only" in losing
    if weights and activations:
        return "both"
    if weights or activations:
        return "weights" if weights else "activations"
    integer = [r for r in ladder if r.name.startswith("int8")]
    if integer and integer[0].loses:
        return "both"
    return "kernels" if any(r.loses for r in integer[1:]) else None


def _fixes(bench: Bench) -> Iterator[Outcome]:
    """Measure each technique alone, and the worst layers in float."""
    base = bench.base
    for name, change in (
        ("tune the ranges", {"tune_ranges": True}),
        ("estimate ranges by least squared error", {"estimator": "mse"}),
        ("estimate ranges by entropy", {"estimator": "entropy"}),
        ("weights by least squared error", {"weights": "mse"}),
        ("correct biases", {"bias_correction": True}),
        ("equalize channels", {"equalize": True}),
    ):
        if not replace(base, **change).refinements <= bench.refinements:
            continue
        yield bench.measure(Candidate(recipe=replace(base, **change), group="tuned", label=name))
    if front := bench.front_end():
        yield bench.measure(replace(front, label="keep the signal front end float (--keep-float front-end)"))
    layers = bench.sensitivity().layers
    for count in (c for c in _FIXED_LAYERS if c < len(layers)):
        kept, output_io = bench.island(layers[:count])
        recipe = replace(base, overrides=(*base.overrides, *kept), output_io=output_io or base.output_io)
        named = " and ".join(r.output for r in layers[:count]) if count < 3 else f"the {count} worst layers"
        label = f"keep {named} float"
        yield bench.measure(Candidate(recipe=recipe, group="mixed", label=label, options={"full_integer": False}))


def _effect(base: Outcome, outcome: Outcome) -> dict[str, Any]:
    return {
        "fix": outcome.candidate.label,
        "recipe": outcome.candidate.recipe.name,
        "failure": outcome.failure,
        "drop": outcome.drop,
        "drop_before": base.drop,
        "snr_db": outcome.snr_db,
        "snr_db_before": base.snr_db,
        "operators_float": outcome.operators_float,
        "operators_float_before": base.operators_float,
    }


def _findings(ladder: list[Rung], culprit: str | None, bench: Bench, fixes: list[dict[str, Any]]) -> Iterator[Finding]:
    if culprit is None:
        return
    first = next(r for r in ladder if r.loses)
    if culprit == "kernels":
        yield Finding(
            rule="KERNELS_DIFFER",
            severity="warning",
            message=f"The program loses {first.drop:.4g} of {bench.metric} only with the device's kernels.",
            fix="Report it to the runtime with the artifact; `edgekit check --kernels reference` shows the difference.",
        )
        return
    worst = bench.sensitivity().layers[0]
    pair = (
        f", whose channels are uneven against the weights of {worst.unbalanced_with!r}" if worst.unbalanced_with else ""
    )
    yield Finding(
        rule="CULPRIT",
        severity="warning",
        op=worst.output,
        message=f"The rung {first.name!r} loses first ({first.drop:.4g} of {bench.metric}, {first.snr_db:.0f} dB): "
        f"{culprit}. The worst layer is {worst.operator} {worst.output!r} ({worst.part}, {worst.snr_db:.0f} dB alone)"
        f"{pair}.",
        fix=best_fix(fixes),
    )


def best_fix(fixes: list[dict[str, Any]]) -> str:
    """Return the fix that helps most without another operator in float; the best of all where that stays loud."""
    helping = [f for f in fixes if f["failure"] is None and f["snr_db"] > f["snr_db_before"] + 1]
    if not helping:
        return "Nothing tried here helps: train with quantization in mind."
    integer = [f for f in helping if f["operators_float"] <= f["operators_float_before"]]
    best = max(helping, key=lambda f: f["snr_db"])
    if integer:
        kept = max(integer, key=lambda f: f["snr_db"])
        # Where that stays loud, and float operators do much more, they are worth their time.
        best = best if kept["snr_db"] < _LOUD_DB and best["snr_db"] > kept["snr_db"] + _FALL_DB else kept
    first = best["fix"][0].upper() + best["fix"][1:]
    return (
        f"{first} ({best['recipe']}): drop {best['drop']:.4g} instead of {best['drop_before']:.4g}, "
        f"{best['snr_db']:.0f} dB instead of {best['snr_db_before']:.0f}."
    )
