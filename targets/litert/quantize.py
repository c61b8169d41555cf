"""Quantize a float flatbuffer: prepare, calibrate, try the quantizers in order, verify what came out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edge.calibration import ranges as estimators
from edge.calibration.estimators import Histograms
from edge.calibration.ranges import Ranges
from edge.calibration.recipe import Recipe
from edge.errors import DataError, QuantizationError, SourceError
from edge.findings import Finding
from edge.isolate import Progress, no_progress
from edge.targets.litert import (
    aeq,
    calibrate,
    coverage,
    edit,
    equalize,
    fixed,
    flatbuffer,
    frontend,
    heads,
    islands,
    learned,
    memory,
    pixels,
    prepare,
    ptq,
    refine,
    repair,
    tryout,
    tune,
    weights,
)
from edge.targets.litert.coverage import Coverage
from edge.targets.litert.learned import Learned
from edge.targets.litert.pixels import Pixels

# In order of preference; the first whose program is integer throughout wins, else the one that leaves least float.
QUANTIZERS = (aeq.NAME, ptq.NAME)
_NAMED = {"aeq": aeq.NAME, "ptq": ptq.NAME}
# An int8 step of a wider interval is above 4000: next to it ordinary activations are all 0.
_WIDE = 1e6


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized program: its bytes, who made it, what was found, the ranges used (static schemes only)."""

    program: bytes
    quantizer: str
    coverage: Coverage
    findings: tuple[Finding, ...] = ()
    ranges: Ranges | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Attempt:
    quantizer: str
    program: bytes
    coverage: Coverage
    mended: int
    guarded: int


def quantize(
    model: Any,
    recipe: Recipe,
    samples: Iterable[Any] | None,
    *,
    full_integer: bool = False,
    threads: int = 2,
    progress: Progress = no_progress,
) -> Quantized:
    """Quantize a canonical float `ModelT` (it is edited). `full_integer` makes an operator left float an error.

    The same model, recipe, samples and package versions give the same bytes. Raises QuantizationError, DataError.
    """
    ready = calibrated(model, recipe, samples, threads=threads, progress=progress)
    program, ranges, magnitude, refined = ready.program, ready.ranges, ready.mask_magnitude, dict(ready.details)
    recipe = frontend.resolved(pixels.recipe_for(ready.pixels, recipe), program, ranges)
    progress("quantizing", None)
    coarse = frontend.findings(program, ranges, recipe, integer=full_integer)
    factor = heads.FACTOR_TO_SPLIT if recipe.split_outputs else heads.FACTOR_AT_OUTPUT
    clashes = heads.find_clashes(program, ranges, at_output=factor) if ranges is not None else ()
    joints = [f.op for f in clashes if f.severity == "error" and f.op]
    if recipe.split_outputs and joints:
        refined["split_outputs"] = joints
        whole = _best(ready, recipe, samples)[0].program
        recipe, full_integer = heads.split_recipe(program, recipe, joints), False
    best, failures = _best(ready, recipe, samples)
    if "split_outputs" in refined and samples is not None:
        refined["split_gain"] = {
            "mode": "emulated",
            "snr_db_joined": heads.signal_to_noise_db(program, whole, samples),
            "snr_db_split": heads.signal_to_noise_db(program, best.program, samples),
        }
    _refuse_unchanged(best, recipe, failures)
    if full_integer and recipe.scheme == "int8":
        _refuse_float(best.coverage)
    made, changed = learned.write(best.program, program, ready.learned) if ready.learned else (best.program, ())
    made, corrections = refine.apply(program, made, ranges, recipe, samples, progress)
    if ready.pixels:
        refined["pixel_inputs"] = pixels.check(made, ready.pixels)
    return Quantized(
        program=made,
        quantizer=best.quantizer,
        coverage=best.coverage,
        ranges=ranges,
        findings=(
            *_clash_findings(clashes, refined),
            *coarse,
            *_restored_findings(ready.restored),
            *pixels.findings(refined.get("pixel_inputs", {})),
            *learned.findings(ready.learned, changed, ranges, recipe),
            *_findings(model, recipe, best, ranges, magnitude),
        ),
        details={**_details(best, failures, ranges, magnitude), **refined, **corrections},
    )


def _clash_findings(clashes: Iterable[Finding], refined: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what joins branches of different size; a clash that was split is only a note with what it gained."""
    split, gain = (
        refined.get("split_outputs", ()),
        refined.get("split_gain") or {"snr_db_joined": 0.0, "snr_db_split": 0.0},
    )
    for clash in clashes:
        if clash.op not in split:
            fix = f"{clash.fix} Or build with --split-outputs auto."
            yield replace(clash, severity="warning", fix=fix if clash.severity == "error" else clash.fix)
            continue
        yield Finding(
            rule="OUTPUTS_SPLIT",
            severity="info",
            op=clash.op,
            message="The branches have scales of their own and are joined in float: "
            f"{gain['snr_db_joined']:.1f} dB became {gain['snr_db_split']:.1f} dB against the float model "
            "(emulated, on calibration samples; the worst column).",
        )


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A float program as the quantizers get it, with its ranges (static schemes only) and how they were refined."""

    program: bytes
    ranges: Ranges | None
    restored: int = 0
    learned: Learned = field(default_factory=Learned)
    mask_magnitude: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    pixels: tuple[Pixels, ...] = ()


def calibrated(
    model: Any, recipe: Recipe, samples: Iterable[Any] | None, *, threads: int = 2, progress: Progress = no_progress
) -> Calibrated:
    """Return a canonical float `ModelT` (it is edited) ready for quantizing. Raises QuantizationError, DataError."""
    _refuse_bad_overrides(recipe)
    known = learned.take(model)
    learned.check(known, recipe)
    restored = prepare.quantizable(model, static=recipe.needs_calibration)
    _refuse_single_use(recipe, samples)
    if not recipe.needs_calibration or samples is None:
        return Calibrated(program=flatbuffer.dump(model), ranges=None, restored=restored, learned=known)
    magnitude = repair.patch_masks(model, samples)
    ranges, refined, taken = _ranges(model, recipe, samples, threads, progress, known)
    ranges = pixels.hold(taken, repair.hold_clamps(model, ranges))
    return Calibrated(
        program=flatbuffer.dump(model),
        ranges=ranges,
        restored=restored,
        learned=known,
        mask_magnitude=magnitude,
        details=refined,
        pixels=taken,
    )


def _ranges(
    model: Any, recipe: Recipe, samples: Iterable[Any], threads: int, progress: Progress, noted: Learned
) -> tuple[Ranges, dict[str, Any], tuple[Pixels, ...]]:
    """Equalize where the recipe asks for it, and return the ranges of the model, which is edited, and its pixels."""
    refined: dict[str, Any] = {}
    if recipe.equalize:
        progress("equalizing channels", None)
        refined["channels_equalized"] = equalize.apply(model, recipe, samples, threads=threads)
    # After equalizing, which would scale the channels of x; int16 has no form in which a byte is its own stored value.
    taken = pixels.take(model) if recipe.scheme == "int8" else ()
    program = flatbuffer.dump(model)
    known = recipe.estimator != "moving-average" and memory.knows(("histograms", program), samples)
    refined["calibration_passes"] = int(recipe.equalize) + int(not known)
    estimated = _estimated(program, recipe, samples, threads, progress)
    ranges = fixed.apply(model, noted.laid_over(estimated) if noted else estimated, recipe)
    if recipe.tune_ranges:
        ranges, refined["tuned_ranges"] = _tuned(program, ranges, recipe, samples, progress)
    repair.lift_dead_channels(model, ranges, 32767 if recipe.scheme == "int8x16" else 255)
    return ranges, refined, taken


def _tuned(
    program: bytes, ranges: Ranges, recipe: Recipe, samples: Iterable[Any], progress: Progress
) -> tuple[Ranges, dict[str, Any] | None]:
    weights = (recipe.scheme, recipe.granularity, recipe.per_tensor_operators)
    key = (program, tuple(ranges.limits.items()), weights)
    known = memory.knows(key, samples)
    tuned = memory.recall(key, samples, lambda: tune.tune(program, ranges, recipe, samples, progress))
    if tuned is None:
        return ranges, None
    # What is remembered costs no run.
    return tuned.ranges, {**tuned.to_json(), "runs": 0 if known else tuned.runs}


def _estimated(program: bytes, recipe: Recipe, samples: Iterable[Any], threads: int, progress: Progress) -> Ranges:
    """Return the estimator's ranges; while a search remembers, one pass of histograms serves all estimators."""
    if not memory.is_remembering() or recipe.estimator == "moving-average":
        estimator = estimators.for_recipe(recipe)
        return calibrate.collect(program, samples, estimator, threads=threads, progress=progress)

    def seen() -> tuple[Histograms, Ranges]:
        collector = Histograms("minmax", lambda h: (h.low, h.high))
        return collector, calibrate.collect(program, samples, collector, threads=threads, progress=progress)

    collector, ranges = memory.recall(("histograms", program), samples, seen)
    return (
        ranges
        if recipe.estimator == "minmax"
        else replace(ranges, limits=collector.limits_by(estimators.rule_for(recipe)), estimator=recipe.estimator)
    )


def _refuse_bad_overrides(recipe: Recipe) -> None:
    for override in recipe.overrides:
        try:
            re.compile(override.tensor)
        except re.error as error:
            raise QuantizationError(
                f"The override's expression {override.tensor!r} is no regular expression: {error}.",
                hint="It is searched in the names of the tensors that operators write; `edgekit inspect` lists them.",
            ) from None


def _refuse_single_use(recipe: Recipe, samples: Any) -> None:
    if not recipe.needs_calibration:
        return
    if samples is None:
        raise DataError(
            f"The recipe {recipe.name} needs calibration data and none was given.",
            hint="Give representative samples with --calibration, or use the recipe dynamic or float16.",
        )
    if iter(samples) is samples:
        raise DataError(
            f"The calibration data is a one-time {type(samples).__name__}; it is read more than once.",
            hint="Give an object whose iteration starts anew each time.",
        )


def _best(ready: Calibrated, recipe: Recipe, samples: Iterable[Any] | None) -> tuple[_Attempt, dict[str, str]]:
    found: list[_Attempt] = []
    failures: dict[str, str] = {}
    if recipe.weights == "mse" and ready.ranges is not None:
        # Only for the quantizers: the float program that all is compared with keeps its weights.
        ready = replace(ready, program=weights.clipped(ready.program, ready.ranges, recipe))
    for name in _quantizers(recipe):
        try:
            attempt = _attempt(name, ready, recipe, samples)
        except (QuantizationError, SourceError) as error:
            failures[name] = error.message
            continue
        found.append(attempt)
        if not recipe.needs_calibration or attempt.coverage.cost == (0, 0):
            break
    if not found:
        raise QuantizationError(" ".join(failures.values()), hint="Keep the operator named here float, or replace it.")
    return min(found, key=lambda a: a.coverage.cost), failures


def _quantizers(recipe: Recipe) -> tuple[str, ...]:
    """Return who may make the recipe's program, in order of preference."""
    if recipe.quantizer == "ptq" and not ptq.accepts(recipe):
        raise QuantizationError(
            f"{ptq.NAME} knows no overrides, and the recipe {recipe.name} has {len(recipe.overrides)}.",
            hint="Leave out -ptq, or the overrides.",
        )
    if recipe.quantizer:
        return (_NAMED[recipe.quantizer],)
    return QUANTIZERS if ptq.accepts(recipe) else (aeq.NAME,)


def _attempt(name: str, ready: Calibrated, recipe: Recipe, samples: Iterable[Any] | None) -> _Attempt:
    program, ranges = ready.program, ready.ranges
    if name == aeq.NAME or ranges is None or samples is None:
        raw = aeq.quantize(program, recipe, ranges)
    else:
        raw = ptq.quantize(program, recipe, ranges, samples)
    made = flatbuffer.load(raw, name=f"The output of {name}")
    mended = repair.mend_signature(made, flatbuffer.load(program))
    prepare.drop_dynamic_shapes(made, flatbuffer.load(program))
    pixels.drop_identities(made, ready.pixels)
    islands.close(made)
    guarded = islands.guard_divisions(made)
    edit.drop_unused_buffers(made)
    final = flatbuffer.dump(made)
    sample = next((s.inputs for s in samples or ()), None)
    # Its comparisons (EQUAL) of tensors with scales far apart abort the process that runs them.
    tryout.run(final, sample, isolated=recipe.scheme == "int8x16" or name == ptq.NAME)
    return _Attempt(name, final, coverage.of(flatbuffer.load(final), recipe.overrides), mended, guarded)


def _refuse_unchanged(best: _Attempt, recipe: Recipe, failures: Mapping[str, str]) -> None:
    if best.coverage.stored == 0 and len(best.coverage.left_float) == best.coverage.total:
        reason = f" ({' '.join(failures.values())})" if failures else ""
        raise QuantizationError(
            f"The recipe {recipe.name} changed nothing: no operator of the model has such a form{reason}.",
            hint="Use the recipe float32, or another one that covers the model's operators.",
        )


def _refuse_float(found: Coverage) -> None:
    names = sorted({name for name, _ in found.left_float})
    if not names and not found.by_wish:
        return
    wished = f"{found.by_wish} by an override" if found.by_wish else ""
    listed = ", ".join(f"{n} ({sum(name == n for name, _ in found.left_float)})" for n in names)
    raise QuantizationError(
        f"The target runs integers only, and these operators stay float: {', '.join(filter(None, (listed, wished)))}.",
        hint="Replace them in the model (see `edgekit inspect`), move them out of it, take a target with a CPU, or "
        "keep them on the host's CPU: full_integer = false in [build.options] of edgekit.toml.",
    )


def _findings(
    model: Any, recipe: Recipe, best: _Attempt, ranges: Ranges | None, magnitude: float | None
) -> tuple[Finding, ...]:
    made = list(coverage.findings(best.coverage)) if recipe.needs_calibration else []
    if magnitude is not None:
        made.append(
            Finding(
                rule="MASK_BOUNDED",
                severity="info",
                message=f"Constants beyond ±{repair.HUGE:g} (masks) were set to ±{magnitude:g}; the float outputs on "
                "calibration samples are the same to 1e-5.",
            )
        )
    made.extend(_guard_findings(best.guarded))
    made.extend(_wide_findings(ranges))
    made.extend(ranges.findings if ranges else ())
    made.extend(_unused_overrides(model, recipe))
    return tuple(made)


def _guard_findings(count: int) -> list[Finding]:
    if not count:
        return []
    return [
        Finding(
            rule="DIVISION_GUARDED",
            severity="info",
            op="DIV",
            message=f"{count} divisor(s) are held at one step or more: int8 DIV refuses to run where one rounds to 0.",
        )
    ]


def _restored_findings(count: int) -> list[Finding]:
    if not count:
        return []
    return [
        Finding(
            rule="WEIGHTS_RESTORED",
            severity="warning",
            message=f"{count} weights of the model were stored as integers (dynamic or weight-only quantization) and "
            "were turned back into float first: they are quantized twice.",
            fix="Give the float model that it was made from.",
        )
    ]


def _wide_findings(ranges: Ranges | None) -> list[Finding]:
    return [
        Finding(
            rule="WIDE_RANGE",
            severity="warning",
            op=name,
            message=f"The tensor {name!r} spans {low:g} to {high:g}: one int8 step is {(high - low) / 255:g}.",
            fix="Mask with a moderate number such as -100, or keep this part float.",
        )
        for name, (low, high) in (ranges.wider_than(_WIDE) if ranges else {}).items()
    ]


def _unused_overrides(model: Any, recipe: Recipe) -> list[Finding]:
    written = [
        (op.name, view.tensors[t].name) for view in flatbuffer.graphs(model) for op in view.ops for t in op.outputs
    ]
    return [
        Finding(
            rule="OVERRIDE_UNUSED",
            severity="warning",
            message=f"The override for operator {o.operator!r} and tensor {o.tensor!r} matches no operator.",
            fix="`edgekit inspect` lists the operators and the tensors that they write.",
        )
        for o in recipe.overrides
        if not any(coverage.matches(o, *entry) for entry in written)
    ]


def _details(
    best: _Attempt, failures: Mapping[str, str], ranges: Ranges | None, magnitude: float | None
) -> dict[str, Any]:
    return {
        "operators": best.coverage.total,
        "operators_left_float": len(best.coverage.left_float),
        "operators_kept_float": best.coverage.by_wish,
        "inner_conversions": best.coverage.conversions,
        "calibration_samples": ranges.samples if ranges else 0,
        "signature_entries_mended": best.mended,
        "mask_magnitude": magnitude,
        "quantizers_failed": dict(failures),
    }
