"""Compare: two programs on the same labelled samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge import codec
from edge.calibration.data import open_dataset
from edge.errors import ArtifactError
from edge.measure import metrics
from edge.signature import Signature
from edge.stages.checking import metric_maker, run_real
from edge.targets import registry

if TYPE_CHECKING:
    from edge.isolate import Progress


def compare_programs(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Return what the second program loses against the first, pairwise on the same samples.

    `request`: programs (two of runtime, path, kernels), signature (of the source, which both share), evaluation, metric
    (name or None). Raises ArtifactError where their inputs or outputs differ, DataError for unlabelled data.
    """
    signature = codec.from_json(Signature, request["signature"])
    samples = open_dataset(request["evaluation"], signature, role="evaluation")
    make = metric_maker(request["metric"], signature, samples.first().label)
    sessions = [
        registry.runtime(p["runtime"]).open(Path(p["path"]), kernels=p["kernels"], threads=1)
        for p in request["programs"]
    ]
    ends = [({t.name for t in s.signature.inputs}, {t.name for t in s.signature.outputs}) for s in sessions]
    if ends[0] != ends[1]:
        raise ArtifactError(
            "The baseline has other inputs or outputs than the artifact.",
            hint="Give an earlier build of the same model.",
        )
    scores = [make() for _ in sessions]
    for index, sample in enumerate(samples):
        for session, score in zip(sessions, scores, strict=True):
            score.update(run_real(session, sample.inputs), sample.label)
        progress("comparing with the baseline", (index + 1) / samples.count if samples.count else 0.0)
    difference = metrics.compare(*scores)
    return {"metric": scores[0].name, **asdict(difference)}
