"""Findings as SARIF 2.1.0 (OASIS), which code hosts show beside a change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from edge.artifact import Artifact
from edge.findings import Finding, Outcome

_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def render(judged: Mapping[str, tuple[Artifact, Sequence[Outcome]]]) -> str:
    """Return one run with the findings of all artifacts, and their broken budgets as errors."""
    results: list[dict[str, Any]] = []
    rules: dict[str, str] = {}
    version = "0"
    for artifact, outcomes in judged.values():
        version = artifact.manifest.edgekit
        for finding in (*artifact.manifest.findings, *_broken(artifact, outcomes)):
            rules.setdefault(finding.rule, finding.fix or "")
            results.append(_result(artifact, finding))
    described = [{"id": rule, **({"help": {"text": fix}} if fix else {})} for rule, fix in sorted(rules.items())]
    driver = {"name": "edgekit", "version": version, "rules": described}
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _broken(artifact: Artifact, outcomes: Sequence[Outcome]) -> list[Finding]:
    """Return broken budgets as findings; errors among the findings are there already."""
    told = {f.rule for f in artifact.manifest.findings}
    return [
        Finding(rule=f"BUDGET_{o.check.upper()}", severity="error", message=o.message)
        for o in outcomes
        if o.state == "fail" and o.check not in told
    ]


def _result(artifact: Artifact, finding: Finding) -> dict[str, Any]:
    m = artifact.manifest
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": quote(m.source.name)}}}
    if finding.op:
        location["logicalLocations"] = [{"name": finding.op, "kind": "member"}]
    fix = f" Fix: {finding.fix}" if finding.fix else ""
    return {
        "ruleId": finding.rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{m.name} for {m.target} ({m.runtime}): {finding.message}{fix}"},
        "locations": [location],
        "partialFingerprints": {"edgekit/v1": f"{m.name}/{m.target}/{m.runtime}/{finding.rule}/{finding.op or ''}"},
    }
