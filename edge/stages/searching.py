"""Search: try recipes in order of cost until one keeps the accuracy budget, on samples that do not evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.calibration.search import Candidate, Group, Outcome, pareto
from edge.errors import QuantizationError
from edge.findings import Finding
from edge.stages import finals
from edge.stages.bench import Bench, keep_float
from edge.targets.litert import heads, memory

if TYPE_CHECKING:
    from edge.isolate import Progress

_ISLANDS = (1, 2, 4, 8, 16)
_CUTS = (1, 2, 4, 8, 16)
_BLAMED = 3


def search(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Return the recipe that keeps the budget at the least cost, how it was found, and findings.

    Request: carrier, signature, recipe (to start from), target, runtime, calibration and evaluation (selections;
    evaluation samples only compare the choice with what the quantizers make alone), metric (name or None), max_drop
    (None: 0.01), kernels, workdir, and cache (a folder for outcomes, or None). Result: recipe, options (to lay over the
    target's), details, findings. Raises QuantizationError where not even the first recipe can be built, DataError.
    """
    bench = Bench(request, progress)
    with memory.remembering():
        _climb(bench)
        return _answer(bench)


def _climb(bench: Bench) -> None:
    for group in (_estimators, _tuned, _corrected, _equalized, _split, _mixed, _rounded):
        if group is _mixed and (not bench.usable or bench.settled()):
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
    last = finals.compare(bench, chosen.candidate)
    if last is not None and last.winner is not chosen.candidate:
        chosen = bench.measure(last.winner)
        findings.append(last.finding())
    return {
        "recipe": codec.to_json(chosen.candidate.recipe),
        "options": dict(chosen.candidate.options),
        "details": _details(bench, chosen, last),
        "findings": [codec.to_json(f) for f in findings],
    }


def _estimators(bench: Bench) -> Iterator[Candidate]:
    base = bench.base
    yield bench.candidate(base, "estimators")
    if bench.outcomes[-1].failure and bench.relax():
        # Not all of it can be integer: what can is searched for on the accelerator, the rest runs on its host.
        yield bench.candidate(base, "estimators")
    if not bench.usable:
        return
    yield from _front_end(bench)
    base = bench.base
    for name, percentile in (("percentile", 99.99), ("mse", 99.99), ("entropy", 99.99), ("percentile", 99.9)):
        recipe = replace(base, estimator=name, percentile=percentile)  # type: ignore[arg-type]
        if recipe != base:
            yield bench.candidate(recipe, "estimators")
    if "weights-mse" in bench.refinements:
        yield bench.candidate(replace(bench.leader.candidate.recipe, weights="mse"), "estimators")


def _front_end(bench: Bench) -> Iterator[Candidate]:
    """Yield a float front end; where that loses less, all that follows keeps it."""
    candidate, plain = bench.front_end(), bench.outcomes[-1]
    if candidate is None:
        return
    yield candidate
    if bench.outcomes[-1].failure is None and bench.outcomes[-1].drop < plain.drop:
        bench.keep_front_end(candidate.recipe)


def _refined(bench: Bench, word: str, group: Group, **changes: Any) -> Iterator[Candidate]:
    """Yield the best recipe so far with one refinement more, where the runtime has it."""
    if word in bench.refinements and bench.usable:
        yield bench.candidate(replace(bench.leader.candidate.recipe, **changes), group)


def _tuned(bench: Bench) -> Iterator[Candidate]:
    return _refined(bench, "tuned", "tuned", tune_ranges=True)


def _corrected(bench: Bench) -> Iterator[Candidate]:
    return _refined(bench, "corrected", "corrected", bias_correction=True)


def _equalized(bench: Bench) -> Iterator[Candidate]:
    # Balanced channels have other shapes: what an estimator cut off before need not be cut off now.
    start = {"estimator": bench.base.estimator, "weights": bench.base.weights}
    tuned = "tuned" in bench.refinements
    return _refined(bench, "equalized", "equalized", equalize=True, tune_ranges=tuned, **start)


def _rounded(bench: Bench) -> Iterator[Candidate]:
    return _refined(bench, "rounded", "rounded", adaptive_rounding=True)


def _split(bench: Bench) -> Iterator[Candidate]:
    """Join branches of different size in float, at the very end: the joint is one copy, all before it stays integer."""
    if "split outputs" not in bench.refinements or not bench.usable:
        return
    recipe = bench.leader.candidate.recipe
    program, ranges = bench.prepared(bench.base)
    joints = [f.op for f in heads.find_clashes(program, ranges) if f.severity == "error" and f.op]
    names = [name for joint in joints for name in heads.joint_tail(program, joint)]
    if names:
        kept = tuple(keep_float(name) for name in dict.fromkeys(names))
        changed = replace(recipe, overrides=(*recipe.overrides, *kept), output_io="float32")
        yield bench.candidate(changed, "split", f"{recipe.name}, branches joined in float", full_integer=False)


def _mixed(bench: Bench) -> Iterator[Candidate]:
    """Float islands and int16 activations where a CPU runs the program, cut points where an accelerator needs int8."""
    if bench.target.options.get("full_integer"):
        yield from _cut_points(bench)
        return
    if not bench.refinements:
        return
    recipe = bench.leader.candidate.recipe
    layers = bench.sensitivity().layers
    for count in (c for c in _ISLANDS if c < len(layers)):
        kept, output_io = bench.island(layers[:count])
        changed = replace(recipe, overrides=(*recipe.overrides, *kept), output_io=output_io or recipe.output_io)
        yield bench.candidate(changed, "mixed", f"{recipe.name}, {len(kept)} operators float")
    if "int8x16" in bench.runtime_recipes and recipe.scheme == "int8":
        wide = replace(recipe, scheme="int8x16", tune_ranges=False, overrides=bench.base.overrides)
        yield bench.candidate(wide, "mixed")


def _cut_points(bench: Bench) -> Iterator[Candidate]:
    """Yield the leader with its tail in float on the CPU: from the first operator without an integer form on, too."""
    recipe, names = bench.leader.candidate.recipe, bench.operator_outputs()
    counts = {c for c in _CUTS if c < len(names)}
    float_ones = [names.index(name) for name in bench.left_float() if name in names]
    if float_ones and min(float_ones) > 0:
        counts.add(len(names) - min(float_ones))
    for count in sorted(counts):
        changed = replace(recipe, overrides=(*recipe.overrides, *map(keep_float, names[-count:])), output_io="float32")
        label = f"{recipe.name}, the last {count} operators float on the CPU"
        yield bench.candidate(changed, "mixed", label, full_integer=False)


def _details(bench: Bench, chosen: Outcome, last: finals.Final | None) -> dict[str, Any]:
    front = pareto(bench.outcomes)
    sensitivity = bench.measured_sensitivity
    runs = sum(o.runs for o in bench.outcomes) + bench.samples + (sensitivity.runs if sensitivity else 0)
    runs += last.runs if last else 0
    rows = [
        {**_row(bench, outcome), "pareto": position in front, "chosen": outcome is chosen}
        for position, outcome in enumerate(bench.outcomes)
    ]
    return {
        "budget": bench.policy.max_drop,
        "metric": bench.metric,
        "float": bench.floats.value(),
        "modes": {"drop": "emulated", "host_ms": "emulated", "latency_ms": "predicted"},
        "selection_samples": bench.samples,
        "provable": bench.policy.provable,
        "met": bench.policy.met(chosen),
        "chosen": chosen.candidate.label,
        "candidates": rows,
        "runs": runs,
        "forward_passes": round(runs / bench.samples, 2),
        "final": last.to_json() if last else None,
        "layers": [codec.to_json(r) for r in sensitivity.layers[:10]] if sensitivity else [],
    }


def _row(bench: Bench, outcome: Outcome) -> dict[str, Any]:
    row = codec.to_json(outcome)
    candidate = row.pop("candidate")
    sign = 1 if bench.floats.higher_is_better else -1
    return {
        "recipe": candidate["label"],
        "group": candidate["group"],
        "value": None if outcome.failure else bench.floats.value() - sign * outcome.drop,
        **row,
        "met": bench.policy.met(outcome),
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
    if bench.refinements:
        worst = bench.sensitivity().layers[:_BLAMED]
        named = ", ".join(f"{r.operator} {r.output!r} ({r.part}, {r.snr_db:.0f} dB)" for r in worst)
        blamed = f" The layers to blame: {named}."
    return Finding(
        rule="NEEDS_QAT",
        severity="warning",
        message=f"No recipe keeps the budget of {bench.policy.max_drop:.4g}: the best, {chosen.candidate.label}, drops "
        f"{bench.metric} by {chosen.drop:.4g}.{blamed}",
        fix="The model needs quantization-aware training (PyTorch and Keras: --recipe qat --train FILE.py:FUNCTION), "
        "or a target that runs its worst layers in float.",
    )
