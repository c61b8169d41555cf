"""From numbers and budgets to a verdict, with the reasons in words."""

from __future__ import annotations

from dataclasses import replace

from edge.artifact import Accuracy, Manifest, Verdict
from edge.findings import Finding
from edge.project import Budgets
from edge.targets.base import Target

# A loss of this share that the samples show is told even where nobody set a budget.
_NOTABLE_DROP = 0.01


def judge(manifest: Manifest, budgets: Budgets, target: Target, size_bytes: int) -> Manifest:
    """Return the manifest with verdict, reasons and budget findings.

    `fail`: a budget is broken or a finding is an error. `unchecked`: nothing failed, but accuracy was not checked or a
    budget cannot be decided by the numbers at hand. An interval that reaches over a kept budget is a finding.
    """
    broken = [f"{f.rule}: {f.message}" for f in manifest.findings if f.severity == "error"]
    open_: list[str] = []
    notes: list[Finding] = []
    _accuracy(manifest, budgets, broken, open_, notes)
    _latency(manifest, budgets, broken, open_, target)
    if budgets.max_size_bytes is not None and size_bytes > budgets.max_size_bytes:
        broken.append(f"size {size_bytes} bytes is over the budget of {budgets.max_size_bytes}")
    verdict: Verdict = "fail" if broken else "unchecked" if open_ else "pass"
    return replace(
        manifest,
        verdict=verdict,
        reasons=tuple(broken or open_),
        budgets=budgets.as_dict(),
        findings=tuple(dict.fromkeys((*manifest.findings, *notes))),
    )


def _accuracy(manifest: Manifest, budgets: Budgets, broken: list[str], open_: list[str], notes: list[Finding]) -> None:
    accuracy = manifest.metrics.accuracy
    if accuracy is None:
        open_.append("accuracy was not checked: no evaluation data was given (--evaluation DATA)")
        return
    if accuracy.metric.startswith("snr"):
        # Against itself the float source is exact: a drop in dB is no loss of any task.
        if budgets.max_drop is not None:
            open_.append("the accuracy budget is open: the data has no labels, so only signal-to-noise could be told")
        return
    if budgets.max_drop is None:
        notes += _unbudgeted_loss(accuracy)
        return
    allowed = budgets.max_drop
    if accuracy.drop > allowed:
        broken.append(f"{accuracy.metric} drops by {accuracy.drop:.4g}, over the budget of {allowed:.4g}")
    elif accuracy.drop_high is None or accuracy.drop_high > allowed:
        reach = "has no interval" if accuracy.drop_high is None else f"reaches {accuracy.drop_high:.4g}"
        detectable = accuracy.detectable_drop
        smallest = "" if detectable is None else f" The smallest drop these samples would show is {detectable:.4g}."
        notes.append(
            Finding(
                rule="BUDGET_UNCERTAIN",
                severity="info",
                message=f"The drop of {accuracy.drop:.4g} keeps the budget of {allowed:.4g}, but its 95 % interval "
                f"({accuracy.samples} samples) {reach}.{smallest}",
                fix="Evaluate on more samples.",
            )
        )


def _unbudgeted_loss(accuracy: Accuracy) -> list[Finding]:
    shown = accuracy.drop_low is not None and accuracy.drop_low > 0
    if not shown or accuracy.drop <= _NOTABLE_DROP:
        return []
    return [
        Finding(
            rule="ACCURACY_LOST",
            severity="warning",
            message=f"{accuracy.metric} drops by {accuracy.drop:.4g}, and no budget says whether that is too much.",
            fix="Set one with --max-drop; more calibration samples, another recipe or operators kept float may help.",
        )
    ]


def _latency(manifest: Manifest, budgets: Budgets, broken: list[str], open_: list[str], target: Target) -> None:
    if budgets.max_latency_ms is None:
        return
    latency = manifest.metrics.latency
    if not latency or latency.get("mode") != "measured" or latency.get("verdict") == "invalid":
        why = "an emulated number cannot decide it" if latency else "it was not measured"
        if latency and latency.get("verdict") == "invalid":
            why = "the measurement is invalid: " + "; ".join(latency.get("reasons", ()))
        open_.append(f"the latency budget of {budgets.max_latency_ms:g} ms for {target.name} is open: {why}")
        return
    if latency["median_ms"] > budgets.max_latency_ms:
        broken.append(
            f"median latency {latency['median_ms']:.3f} ms is over the budget of {budgets.max_latency_ms:g} ms"
        )
