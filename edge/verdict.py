"""From numbers and budgets to a verdict, with the reasons in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edge.artifact import Accuracy, Manifest, Verdict
from edge.budgets import Budgets, strong_enough
from edge.calibration.recipe import REFINEMENTS
from edge.findings import BASELINE, Finding, Outcome
from edge.report.summary import predicted_label
from edge.targets.base import Mode, Target

# A loss of this share that the samples show is told even where nobody set a budget; from the second on, no user of the
# program would call it working.
_NOTABLE_DROP, _RUINOUS_SHARE = 0.01, 0.2
# Errors of a tenth, and of a third, of the size of an output.
_NOISY_DB, _DROWNED_DB = 20.0, 10.0
_UNQUANTIZED = ("float16", "float32")


@dataclass
class _Judgement:
    """How each question was answered, and what is to be said besides."""

    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def add(self, check: str, state: Literal["pass", "fail", "open"], message: str = "") -> None:
        self.outcomes.append(Outcome(check=check, state=state, message=message))


@dataclass(frozen=True, kw_only=True)
class _Number:
    """A number that a limit may be held against; `unusable` says why it decides nothing."""

    value: float
    mode: str
    what: str
    unusable: str = ""


def judge(manifest: Manifest, budgets: Budgets, target: Target, size_bytes: int) -> Manifest:
    """Return the manifest with verdict, reasons and budget findings.

    `fail`: a budget is broken or a finding is an error. `unchecked`: nothing failed, but accuracy was not checked or a
    budget cannot be decided by the numbers at hand. An interval that reaches over a kept budget is a finding.
    """
    j = _judged(manifest, budgets, target, size_bytes)
    broken = [o.message for o in j.outcomes if o.state == "fail"]
    open_ = [o.message for o in j.outcomes if o.state == "open"]
    verdict: Verdict = "fail" if broken else "unchecked" if open_ else "pass"
    return replace(
        manifest,
        verdict=verdict,
        reasons=tuple(dict.fromkeys(broken or open_)),
        budgets=budgets.as_dict(),
        findings=tuple(dict.fromkeys((*manifest.findings, *j.notes))),
    )


def outcomes(manifest: Manifest, target: Target, size_bytes: int) -> tuple[Outcome, ...]:
    """Return how each question to a judged artifact was answered: its budgets, errors, and those of a baseline."""
    answered = _judged(manifest, Budgets.from_dict(manifest.budgets), target, size_bytes).outcomes
    compared = [f for f in manifest.findings if f.rule.startswith(BASELINE) and f.severity != "error"]
    kept = [Outcome(check=f.rule, state="pass" if f.severity == "info" else "open", message=f.text) for f in compared]
    return (*answered, *kept)


def _judged(manifest: Manifest, budgets: Budgets, target: Target, size_bytes: int) -> _Judgement:
    j = _Judgement()
    for f in manifest.findings:
        if f.severity == "error":
            j.add(f.rule, "fail", f"{f.rule}: {f.message}")
    _accuracy(manifest, budgets, target, j)
    _latency(manifest, budgets, target, j)
    _memory(manifest, budgets, target, j)
    _share("min_mapped", _mapped(manifest), budgets.min_mapped, "mapped to the Edge TPU", j)
    _share("min_delegated", _delegated(manifest), budgets.min_delegated, "on the delegate", j)
    if (most := budgets.max_size_bytes) is not None:
        over = size_bytes > most
        j.add("max_size", "fail" if over else "pass", _over(f"size {size_bytes} bytes", f"{most}", over))
    return j


def _over(what: str, limit: str, over: bool) -> str:
    return f"{what} is over the budget of {limit}" if over else f"{what} is within the budget of {limit}"


def _accuracy(manifest: Manifest, budgets: Budgets, target: Target, j: _Judgement) -> None:
    accuracy = manifest.metrics.accuracy
    if accuracy is None:
        j.add("accuracy", "open", "accuracy was not checked: no evaluation data was given (--evaluation DATA)")
        return
    if accuracy.metric.startswith("snr"):
        _noise(manifest, target, j)
        # Against itself the float source is exact: a drop in dB is no loss of any task.
        if budgets.max_drop is not None:
            why = "the accuracy budget is open: the data has no labels, so only signal-to-noise could be told"
            j.add("max_drop", "open", why)
        return
    if budgets.max_drop is None:
        what = f"{accuracy.metric} drops by {accuracy.drop:.4g}; no budget is set"
        j.add("accuracy", "open" if _ruined(accuracy) else "pass", what)
        j.notes += _unbudgeted_loss(accuracy, manifest, target)
        return
    allowed = budgets.max_drop
    over = accuracy.drop > allowed
    what = f"{accuracy.metric} drops by {accuracy.drop:.4g}, {'over' if over else 'within'} the budget of {allowed:.4g}"
    j.add("max_drop", "fail" if over else "pass", what)
    if not over and (accuracy.drop_high is None or accuracy.drop_high > allowed):
        reach = "has no interval" if accuracy.drop_high is None else f"reaches {accuracy.drop_high:.4g}"
        detectable = accuracy.detectable_drop
        smallest = "" if detectable is None else f" The smallest drop these samples would show is {detectable:.4g}."
        j.notes.append(
            Finding(
                rule="BUDGET_UNCERTAIN",
                severity="info",
                message=f"The drop of {accuracy.drop:.4g} keeps the budget of {allowed:.4g}, but its 95 % interval "
                f"({accuracy.samples} samples) {reach}.{smallest}",
                fix="Evaluate on more samples.",
            )
        )


def _ruined(accuracy: Accuracy) -> bool:
    """Tell whether a share of right answers surely falls, and by more than a fifth of the float model's."""
    share = 0 < accuracy.float <= 1 and accuracy.quantized < (1 - _RUINOUS_SHARE) * accuracy.float
    return share and accuracy.drop_low is not None and accuracy.drop_low > 0


def _unbudgeted_loss(accuracy: Accuracy, manifest: Manifest, target: Target) -> list[Finding]:
    shown = accuracy.drop_low is not None and accuracy.drop_low > 0
    if not shown or accuracy.drop <= _NOTABLE_DROP:
        return []
    commands = _way_back(manifest, target)
    message = (
        f"{accuracy.metric} falls from {accuracy.float:.4g} to {accuracy.quantized:.4g}: this {manifest.recipe_name} "
        "program is not usable as it is."
        if _ruined(accuracy)
        else f"{accuracy.metric} drops by {accuracy.drop:.4g}, and no budget says whether that is too much."
    )
    return [
        Finding(
            rule="ACCURACY_LOST", severity="warning", message=message, fix=f"What helps, in this order: {commands}."
        )
    ]


def _noise(manifest: Manifest, target: Target, j: _Judgement) -> None:
    """Tell where nothing but the outputs' noise can say that quantization has ruined a program."""
    known = [(p.snr_db, p.output) for p in manifest.metrics.parity if p.snr_db is not None]
    if manifest.recipe_name in _UNQUANTIZED or not known or min(known)[0] >= _NOISY_DB:
        return
    db, output = min(known)
    share = 10 ** (-db / 20)
    note = "only labels can tell whether the task bears that"
    if db < _DROWNED_DB:
        note = f"this {manifest.recipe_name} program is hardly usable as it is"
        j.add("accuracy", "open", f"the error of output {output!r} is {share:.0%} of its size ({db:.1f} dB)")
    commands = _way_back(manifest, target)
    message = f"Output {output!r} is {db:.1f} dB from the float source's: its error is {share:.0%} of its size; {note}."
    j.notes.append(
        Finding(
            rule="NOISY_OUTPUT",
            severity="warning",
            op=output,
            message=message,
            fix=f"What helps, in this order: {commands}.",
        )
    )


def _way_back(manifest: Manifest, target: Target) -> str:
    """Return the next commands after a program lost too much: what the target and its runtime can still try."""
    rest = f"{manifest.source.name} --target {target.name} --calibration DATA"
    steps = []
    if manifest.runtime in REFINEMENTS and manifest.recipe_name.startswith("int8"):
        steps.append(f"`edgekit diagnose {rest}` names the layers and what helps")
        if "search" not in manifest.details:
            steps.append(f"`edgekit build {rest} --recipe auto --max-drop 1%` searches for a recipe that keeps it")
    if less := next((r for r in _UNQUANTIZED if r in target.recipes and r != manifest.recipe_name), None):
        steps.append(f"`--recipe {less}` keeps the accuracy without integers")
    return "; ".join(steps) or "training with quantization in mind (--recipe qat)"


def _latency(manifest: Manifest, budgets: Budgets, target: Target, j: _Judgement) -> None:
    if budgets.max_latency_ms is None:
        return
    limit, statistic = budgets.max_latency_ms, budgets.latency_statistic
    numbers = [
        *_measured_latency(manifest.metrics.latency, statistic),
        *_predicted_latency(manifest.metrics.predicted_latency, statistic),
    ]
    number = next((n for n in numbers if strong_enough(n.mode, budgets.latency_mode) and not n.unusable), None)
    if number is None:
        why = _why_open(numbers, budgets.latency_mode)
        j.add(
            "max_latency", "open", f"the latency budget of {limit:g} ms ({statistic}) for {target.name} is open: {why}"
        )
        return
    over = number.value > limit
    what = f"{number.what} {number.value:.3f} ms ({number.mode})"
    j.add("max_latency", "fail" if over else "pass", _over(what, f"{limit:g} ms", over))


def _measured_latency(latency: Mapping[str, Any] | None, statistic: str) -> list[_Number]:
    if not latency:
        return []
    value = latency.get(f"{statistic}_ms")
    unusable = ""
    if latency.get("verdict") == "invalid":
        unusable = "the measurement is invalid: " + "; ".join(latency.get("reasons", ()))
    elif not isinstance(value, (int, float)):
        unusable = f"its {statistic} is {value or 'not known'}; measure with --latency standard"
    number = float(value) if isinstance(value, (int, float)) else 0.0
    return [_Number(value=number, mode=str(latency.get("mode")), what=f"{statistic} latency", unusable=unusable)]


def _predicted_latency(predicted: Mapping[str, Any] | None, statistic: str) -> list[_Number]:
    """Return what is predicted, for the first of the ways that a device may be connected."""
    for way, p in (predicted or {}).items():
        if isinstance(p, Mapping) and isinstance(p.get("value"), (int, float)):
            unusable = "" if statistic == "median" else f"a prediction has no {statistic}"
            return [_Number(value=p["value"], mode="predicted", what=predicted_label(way), unusable=unusable)]
    return []


def _why_open(numbers: list[_Number], wanted: Mode) -> str:
    for number in numbers:
        if number.unusable and strong_enough(number.mode, wanted):
            return number.unusable
    if not numbers:
        return "it was not measured"
    article = "an emulated" if numbers[0].mode == "emulated" else f"a {numbers[0].mode}"
    return f"{article} number cannot decide it, a {wanted} one is asked for"


def _memory(manifest: Manifest, budgets: Budgets, target: Target, j: _Judgement) -> None:
    """Hold the memory of program and tensors against its limit: the peak seen on a board, else what is planned."""
    if budgets.max_memory_bytes is None:
        return
    numbers = _memory_numbers(manifest)
    number = next((n for n in numbers if strong_enough(n.mode, budgets.memory_mode)), None)
    most = budgets.max_memory_bytes
    if number is None:
        why = _why_open(numbers, budgets.memory_mode)
        j.add("max_memory", "open", f"the memory budget of {most} bytes for {target.name} is open: {why}")
        return
    over = number.value > most
    what = f"{number.what} of {number.value:.0f} bytes ({number.mode})"
    j.add("max_memory", "fail" if over else "pass", _over(what, f"{most}", over))


def _memory_numbers(manifest: Manifest) -> list[_Number]:
    found = []
    board = manifest.details.get("board") or {}
    seen, mode = board.get("memory") or {}, (manifest.metrics.latency or {}).get("mode") or board.get("mode")
    if mode and {"before_kib", "peak_kib"} <= set(seen):
        grown = 1024 * (seen["peak_kib"] - seen["before_kib"])
        found.append(_Number(value=grown, mode=mode, what="peak memory of runtime and program"))
    arena, parameters = (manifest.metrics.memory.get(k) for k in ("arena_bytes", "parameter_bytes"))
    if arena is not None and parameters is not None:
        found.append(_Number(value=arena + parameters, mode="predicted", what="memory of tensors and parameters"))
    return found


def _share(check: str, share: float | None, least: float | None, where: str, j: _Judgement) -> None:
    if least is None:
        return
    if share is None:
        j.add(check, "open", f"the share of operators {where} is not known for this runtime")
        return
    message = f"{share:.1%} of the operators are {where}; the budget is at least {least:.1%}"
    j.add(check, "fail" if share < least else "pass", message)


def _mapped(manifest: Manifest) -> float | None:
    placement = manifest.details.get("placement") or {}
    mapped, total = placement.get("mapped"), placement.get("operators")
    return mapped / total if isinstance(mapped, int) and isinstance(total, int) and total else None


def _delegated(manifest: Manifest) -> float | None:
    delegation = manifest.details.get("delegation") or {}
    share = delegation.get("delegated_share")
    return float(share) if isinstance(share, (int, float)) else None


def accelerated(manifest: Manifest) -> float | None:
    """Return the share of operators on the Edge TPU or on a delegate, None where the runtime knows of none."""
    mapped = _mapped(manifest)
    return _delegated(manifest) if mapped is None else mapped
