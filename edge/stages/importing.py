"""Import: source to carrier, verified, and the reference outputs of the float source."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge import codec
from edge.calibration.data import Dataset, Sample
from edge.calibration.data_findings import Classes
from edge.calibration.selection import Plan, Selection, plan
from edge.content import recording_reads
from edge.findings import Finding
from edge.measure.store import OutputWriter
from edge.signature import Signature
from edge.sources import registry as sources
from edge.sources import routes
from edge.sources.base import Declaration, LoadedSource

if TYPE_CHECKING:
    from edge.isolate import Progress

_VERIFY_SAMPLES = 8
_UNVERIFIED = Finding(
    rule="VERIFIED_ON_RANDOM_INPUT",
    severity="warning",
    message="The conversion was verified on random inputs only, because no data was given.",
    fix="Give real samples with --calibration or --evaluation.",
)
_SEED = 20260101
_BATCH = 32
# Up to so many samples, and values in all of them, they run one by one: a batch has to be compiled first. A batch is
# rounded otherwise in its last bits, so that the choice must not depend on how fast a machine is at the moment.
_SAMPLES_ONE_BY_ONE, _VALUES_ONE_BY_ONE = 2000, 1 << 23


_SUFFIXES = {"litert": ".tflite", "exported": ".pt2", "scripted": ".pt"}


def _load(request: Mapping[str, Any], progress: Progress) -> tuple[str, LoadedSource]:
    source = sources.detect(request["source"])
    progress(f"reading {Path(request['source']).name} ({source.kind})", None)
    return source.kind, source.load(request["source"], codec.from_json(Declaration, request["declaration"]))


def describe(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Return the signature of a source."""
    kind, loaded = _load(request, progress)
    return {"kind": kind, "signature": codec.to_json(loaded.signature)}


def convert(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Bring a source to the LiteRT carrier, to look at it; it is not verified on data."""
    kind, loaded = _load(request, progress)
    path = Path(request["workdir"]) / "carrier.tflite"
    routes.cross(routes.Task(loaded=loaded, path=path, progress=progress), "litert")
    return {"kind": kind, "signature": codec.to_json(loaded.signature), "carrier": str(path)}


def import_source(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Bring a source to a carrier, verify it on real inputs, and run the float source on the evaluation data.

    Doing all three in one process imports the framework once. `opened` names the user's files that were read.
    """
    with recording_reads(Path(request["workdir"])) as opened:
        result = _import(request, progress)
    return {**result, "opened": sorted(opened)}


def _import(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    workdir = Path(request["workdir"])
    kind, loaded = _load(request, progress)
    data = plan(loaded.signature, request["data"])
    carrier = workdir / f"carrier{_SUFFIXES[request['carrier']]}"
    task = routes.Task(loaded=loaded, path=carrier, progress=progress)
    crossing = _cross(task, request, data.verification())
    findings = [*loaded.findings, *data.findings]
    if data.calibration:
        findings += data.calibration.open(loaded.signature).findings()
    findings += crossing.findings
    signature = loaded.signature
    if request.get("fold"):
        carrier, signature, folded = _fold(loaded, carrier, request["fold"], data, progress)
        findings += folded
    reference = None
    if data.evaluation:
        reference = workdir / "reference"
        classes = Classes()
        _run_reference(loaded, data.evaluation.open(loaded.signature), reference, progress, classes)
        findings += classes.findings(loaded.signature, "evaluation")
    return {
        "kind": kind,
        "digest": loaded.digest,
        "signature": codec.to_json(signature),
        "carrier": str(carrier),
        "methods": [str(p) for p in sorted(carrier.parent.glob(f"{carrier.stem}.*{carrier.suffix}"))],
        "tools": {**loaded.tools, **task.tools},
        "route": crossing.record(),
        "findings": [codec.to_json(f) for f in findings],
        "reference": str(reference) if reference else None,
        **_planned(data),
    }


def _fold(
    loaded: LoadedSource, carrier: Path, kind: Any, data: Plan, progress: Progress
) -> tuple[Path, Signature, list[Finding]]:
    """Make the preprocessing part of the carrier, and compare the two on raw and preprocessed samples."""
    from edge.sources import folding
    from edge.targets import registry

    progress("folding the preprocessing into the program", None)
    path, signature, folds = folding.fold_carrier(carrier, loaded.signature, kind)
    if not folds:
        return carrier, loaded.signature, []
    runtime = registry.runtime("litert" if path.suffix == ".tflite" else "executorch")
    before, after = (runtime.open_carrier(p).run for p in (carrier, path))
    chosen = data.calibration or data.evaluation
    raw = (dict(s.inputs) for s in chosen.open(signature)) if chosen else iter([_random_inputs(signature, 0)])
    return path, signature, list(folding.verify(before, after, raw, folds))


def _cross(task: routes.Task, request: Mapping[str, Any], samples: Iterator[Sample] | None) -> routes.Crossing:
    """Write the carrier by the first route that passes verification, on random inputs where there is no data."""
    inputs = [dict(s.inputs) for s in itertools.islice(samples, _VERIFY_SAMPLES)] if samples is not None else []
    notes = [] if inputs else [_UNVERIFIED]
    inputs = inputs or [_random_inputs(task.loaded.signature, i) for i in range(2)]

    def verify(path: Path) -> list[Finding]:
        from edge.sources.verify import verify_carrier

        task.progress("verifying the conversion", None)
        check = verify_carrier if path.suffix == ".tflite" else _verify_exported
        return [*notes, *check(task.loaded, path, inputs)]

    crashed = request.get("crashed", {})
    return routes.cross(task, request["carrier"], verify=verify, sample=inputs[0], crashed=crashed)


def _planned(data: Plan) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for part, selection in (("calibration", data.calibration), ("evaluation", data.evaluation)):
        answer[part] = codec.to_json(selection) if selection else None
        answer[f"{part}_record"] = _record(selection, data.signature) if selection else None
    return answer


def _record(selection: Selection, signature: Signature) -> dict[str, Any]:
    samples = selection.open(signature)
    count = samples.count if samples.count is not None else sum(1 for _ in samples)
    return {
        "name": Path(selection.location).name,
        "kind": samples.kind,
        "digest": samples.digest(),
        "samples": count,
        "selection": "all" if selection.indices is None else f"{count}, chosen evenly",
    }


def _verify_exported(loaded: LoadedSource, path: Path, samples: Iterable[Mapping[str, Any]]) -> tuple[Finding, ...]:
    from edge.sources.verify import MIN_FAKE_QUANTIZED_DB, MIN_SNR_DB, accept, compare
    from edge.targets import registry, torch_fake_quant
    from edge.targets.executorch import carrier

    scripted, given = path.suffix == ".pt", list(samples)
    session = registry.runtime("torch_mobile" if scripted else "executorch").open_carrier(path)
    marked = not scripted and torch_fake_quant.marks(carrier.load(path)[0].graph)
    least = MIN_FAKE_QUANTIZED_DB if marked else MIN_SNR_DB
    accept(compare([loaded.run(s) for s in given], [session.run(s) for s in given]), len(given), least)
    return ()


def _random_inputs(signature: Signature, number: int) -> dict[str, Any]:
    random = np.random.default_rng((_SEED, number))
    inputs: dict[str, Any] = {}
    for t in signature.inputs:
        shape = tuple(max(d, 1) for d in t.shape)
        if t.dtype.startswith("float"):
            inputs[t.name] = random.random(shape, dtype=np.float32).astype(t.dtype)
        else:
            # Small token ids: any integer input accepts 0 and 1.
            inputs[t.name] = random.integers(0, 2, shape).astype(t.dtype)
    return inputs


def _run_reference(loaded: LoadedSource, samples: Dataset, folder: Path, progress: Progress, classes: Classes) -> None:
    """Store the float source's outputs; in batches where that is worth it and gives what single samples give.

    `classes` takes the labels on the way.
    """
    iterator = iter(samples)
    first = list(itertools.islice(iterator, _BATCH))
    single = [loaded.run(s.inputs) for s in first[:2]]
    batched = _worth_batching(first, samples.count) and _batches(loaded, first, single)
    with OutputWriter(folder) as writer:
        stream = itertools.chain(first, iterator)
        while group := list(itertools.islice(stream, _BATCH if batched else 1)):
            for outputs in _run_group(loaded, group) if batched else [loaded.run(group[0].inputs)]:
                writer.append(outputs)
            for sample in group:
                classes.add(sample.label)
            progress("running the float source", writer.count / samples.count if samples.count else 0.0)


def _run_group(loaded: LoadedSource, group: list[Sample]) -> Iterator[dict[str, Any]]:
    """Run up to 32 samples at once; fewer are filled up, because frameworks compile anew for each batch size."""
    filled = [*group, *[group[-1]] * (_BATCH - len(group))]
    outputs = loaded.run({name: np.concatenate([s.inputs[name] for s in filled]) for name in group[0].inputs})
    for i in range(len(group)):
        yield {name: value[i : i + 1] for name, value in outputs.items()}


def _worth_batching(first: list[Sample], count: int | None) -> bool:
    if len(first) < _BATCH or count is None:
        return len(first) == _BATCH
    values = sum(np.size(v) for v in first[0].inputs.values())
    return count > _SAMPLES_ONE_BY_ONE or count * values > _VALUES_ONE_BY_ONE


def _batches(loaded: LoadedSource, group: list[Sample], single: list[dict[str, Any]]) -> bool:
    """Tell whether the source treats dimension 0 as a batch: many at once give what each alone gives."""
    if any(v.ndim == 0 or v.shape[0] != 1 for outputs in single for v in outputs.values()):
        return False
    try:
        together = list(_run_group(loaded, group))
    except Exception:
        return False
    return all(
        one[name].shape == many[name].shape and np.allclose(one[name], many[name], rtol=1e-4, atol=1e-5)
        for one, many in zip(single, together, strict=False)
        for name in one
    )
