"""Search: try recipes in order of cost until one keeps the accuracy budget, on samples that do not evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.calibration.search import Candidate, Outcome, pareto
from edge.errors import QuantizationError
from edge.findings import Finding
from edge.stages.bench import Bench, keep_float
from edge.targets.litert import heads, memory

if TYPE_CHECKING:
    from edge.isolate import Progress

_ISLANDS = (1, 2, 4)
_CUTS = (1, 2, 4, 8, 16)
_BLAMED = 3


def search(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Return the recipe that keeps the budget at the least cost, how it was found, and findings.

    Request: carrier, signature, recipe (to start from), target, runtime, calibration and evaluation (selections;
    evaluation samples are never touched), metric (name or None), max_drop (None: 0.01), kernels, workdir, and cache (a
    folder for outcomes, or None). Result: recipe, options (to lay over the target's), details, findings. Raises
    QuantizationError where not even the first recipe can be built, DataError.
    """
    bench = Bench(request, progress)
    with memory.remembering():
        _climb(bench)
        return _answer(bench)


def _climb(bench: Bench) -> None:
    for group in (_estimators, _tuned, _corrected, _equalized, _split, _mixed):
        if group is _mixed and bench.settled():
            break
        if any(bench.policy.met(bench.measure(c)) for c in group(bench)):
            break


def _answer(bench: Bench) -> dict[str, Any]:
    chosen = bench.policy.choose(bench.outcomes)
    if chosen is None:
        raise QuantizationError(
            f"No recipe of the search could be built: {bench.outcomes[0].failure}",
            hint="See `edgekit inspect` for operators without an integer form.",
        )
    findings = [*bench.split.findings, *_findings(bench, chosen)]
    return {
        "recipe": codec.to_json(chosen.candidate.recipe),
        "options": dict(chosen.candidate.options),
        "details": _details(bench, chosen),
        "findings": [codec.to_json(f) for f in findings],
    }


def _estimators(bench: Bench) -> Iterator[Candidate]:
    base = bench.base
    yield Candidate(recipe=base, group="estimators", label=base.name)
    for name, percentile in (("percentile", 99.99), ("mse", 99.99), ("entropy", 99.99), ("percentile", 99.9)):
        recipe = replace(base, estimator=name, percentile=percentile)  # type: ignore[arg-type]
        if recipe != base:
            yield Candidate(recipe=recipe, group="estimators", label=recipe.name)


def _tuned(bench: Bench) -> Iterator[Candidate]:
    if bench.refined:
        recipe = replace(bench.leader.candidate.recipe, tune_ranges=True)
        yield Candidate(recipe=recipe, group="tuned", label=recipe.name)


def _corrected(bench: Bench) -> Iterator[Candidate]:
    if bench.refined:
        recipe = replace(bench.leader.candidate.recipe, bias_correction=True)
        yield Candidate(recipe=recipe, group="corrected", label=recipe.name)


def _equalized(bench: Bench) -> Iterator[Candidate]:
    if bench.refined:
        # Balanced channels have other shapes: what an estimator cut off before need not be cut off now.
        start = replace(bench.leader.candidate.recipe, estimator=bench.base.estimator, tune_ranges=True)
        recipe = replace(start, equalize=True)
        yield Candidate(recipe=recipe, group="equalized", label=recipe.name)


def _split(bench: Bench) -> Iterator[Candidate]:
    """Join branches of different size in float, at the very end: the joint is one copy, all before it stays integer."""
    if not bench.refined:
        return
    recipe = bench.leader.candidate.recipe
    program, ranges = bench.prepared(bench.base)
    joints = [f.op for f in heads.find_clashes(program, ranges) if f.severity == "error" and f.op]
    names = [name for joint in joints for name in heads.joint_tail(program, joint)]
    if names:
        kept = tuple(keep_float(name) for name in dict.fromkeys(names))
        changed = replace(recipe, overrides=(*recipe.overrides, *kept), output_io="float32")
        label = f"{recipe.name}, branches joined in float"
        yield Candidate(recipe=changed, group="split", label=label, options={"full_integer": False})


def _mixed(bench: Bench) -> Iterator[Candidate]:
    """Float islands and int16 activations where a CPU runs the program, cut points where an accelerator needs int8."""
    if not bench.refined:
        return
    if bench.target.options.get("full_integer"):
        yield from _cut_points(bench)
        return
    recipe = bench.leader.candidate.recipe
    layers = bench.sensitivity().layers
    for count in (c for c in _ISLANDS if c < len(layers)):
        kept, output_io = bench.island(layers[:count])
        changed = replace(recipe, overrides=(*recipe.overrides, *kept), output_io=output_io or recipe.output_io)
        label = f"{recipe.name}, {len(kept)} operators float"
        yield Candidate(recipe=changed, group="mixed", label=label)
    if "int8x16" in bench.target.recipes and recipe.scheme == "int8":
        wide = replace(recipe, scheme="int8x16", tune_ranges=False, overrides=bench.base.overrides)
        yield Candidate(recipe=wide, group="mixed", label=wide.name)


def _cut_points(bench: Bench) -> Iterator[Candidate]:
    recipe = bench.leader.candidate.recipe
    names = bench.operator_outputs()
    for count in (c for c in _CUTS if c < len(names)):
        changed = replace(recipe, overrides=(*recipe.overrides, *map(keep_float, names[-count:])), output_io="float32")
        label = f"{recipe.name}, the last {count} operators float on the CPU"
        yield Candidate(recipe=changed, group="mixed", label=label, options={"full_integer": False})


def _details(bench: Bench, chosen: Outcome) -> dict[str, Any]:
    front = pareto(bench.outcomes)
    sensitivity = bench.measured_sensitivity
    runs = sum(o.runs for o in bench.outcomes) + bench.samples + (sensitivity.runs if sensitivity else 0)
    rows = []
    for position, outcome in enumerate(bench.outcomes):
        row = codec.to_json(outcome)
        candidate = row.pop("candidate")
        rows.append(
            {
                "recipe": candidate["label"],
                "group": candidate["group"],
                **row,
                "met": bench.policy.met(outcome),
                "pareto": position in front,
                "chosen": outcome is chosen,
            }
        )
    return {
        "budget": bench.policy.max_drop,
        "metric": bench.metric,
        "selection_samples": bench.samples,
        "provable": bench.policy.provable,
        "met": bench.policy.met(chosen),
        "chosen": chosen.candidate.label,
        "candidates": rows,
        "runs": runs,
        "forward_passes": round(runs / bench.samples, 2),
        "layers": [codec.to_json(r) for r in sensitivity.layers[:10]] if sensitivity else [],
    }


def _findings(bench: Bench, chosen: Outcome) -> list[Finding]:
    name, budget = bench.metric, bench.policy.max_drop
    if bench.policy.met(chosen):
        return []
    if bench.policy.plausible(chosen):
        bound = "no interval" if chosen.drop_high is None else f"up to {chosen.drop_high:.4g}"
        return [
            Finding(
                rule="SEARCH_UNPROVEN",
                severity="info",
                message=f"The search took {chosen.candidate.label}, whose drop of {name} is {chosen.drop:.4g} ({bound})"
                f" on {bench.samples} selection samples: they cannot prove the budget of {budget:.4g}.",
                fix="Give more calibration samples, with labels: those that do not calibrate choose.",
            )
        ]
    return [_needs_training(bench, chosen)]


def _needs_training(bench: Bench, chosen: Outcome) -> Finding:
    blamed = ""
    if bench.refined:
        worst = bench.sensitivity().layers[:_BLAMED]
        named = ", ".join(f"{r.operator} {r.output!r} ({r.part}, {r.snr_db:.0f} dB)" for r in worst)
        blamed = f" The layers to blame: {named}."
    return Finding(
        rule="NEEDS_QAT",
        severity="warning",
        message=f"No recipe keeps the budget of {bench.policy.max_drop:.4g}: the best, {chosen.candidate.label}, drops "
        f"{bench.metric} by {chosen.drop:.4g}.{blamed}",
        fix="The model needs quantization-aware training, or a target that runs its worst layers in float.",
    )
