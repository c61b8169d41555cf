"""Check: accuracy, parity, golden vectors and host latency of programs, in one pass over the samples."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge import codec
from edge.calibration.affine import from_program, to_program
from edge.calibration.data import open_dataset
from edge.calibration.quality import InputSaturation
from edge.calibration.selection import Selection
from edge.errors import ArtifactError, blaming
from edge.findings import Finding
from edge.measure import metrics, parity
from edge.measure.latency import measure
from edge.measure.latency_record import PROFILES, Latency, Setting
from edge.measure.metric import Metric
from edge.measure.resident import growth
from edge.measure.store import OutputReader
from edge.signature import Signature
from edge.stages import rounding
from edge.targets import registry
from edge.targets.base import Session

if TYPE_CHECKING:
    from edge.isolate import Progress

Array = NDArray[np.generic]
GOLDEN_VECTORS = 16
# A golden output may differ by one step of its scale between kernel sets on a few elements.
_GOLDEN_STEPS = 1
_GOLDEN_SHARE = 0.999


def run_real(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run one sample, given and returned as real values."""
    signature = session.signature
    stored = session.run({t.name: to_program(t, inputs[t.name]) for t in signature.inputs})
    return {t.name: from_program(t, stored[t.name]) for t in signature.outputs}


class Subject:
    """One program under test: its session, and what is collected of it."""

    def __init__(self, session: Session, metric: Metric | None) -> None:
        self.session = session
        self.metric = metric
        outputs = {t.name: t.quantization for t in session.signature.outputs}
        self.parity = parity.Parity(outputs)
        self.saturation = InputSaturation(session.signature.inputs)
        self.golden: list[tuple[dict[str, Array], dict[str, Array], dict[str, Array]]] = []

    def run(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
        """Return stored inputs, stored outputs and real outputs of one sample."""
        signature = self.session.signature
        fed = {t.name: to_program(t, inputs[t.name]) for t in signature.inputs}
        stored = self.session.run(fed)
        return fed, stored, {t.name: from_program(t, stored[t.name]) for t in signature.outputs}

    def take(self, inputs: Mapping[str, Array], reference: Mapping[str, Array], label: Any, keep: bool) -> None:
        """Run one sample and collect."""
        fed, stored, real = self.run(inputs)
        self.saturation.see(inputs)
        self.parity.update(reference, real, stored)
        if self.metric is not None:
            self.metric.update(real, label)
        if keep:
            self.golden.append((fed, stored, dict(reference)))


class _Side:
    """Programs that run side by side, each in a thread of its own: runtimes let others run while they compute.

    Samples are handed over in blocks, so that small networks do not wait for threads; each program sees all samples in
    order, and the results are those of one after the other.
    """

    block = 16

    def __init__(self, *subjects: Subject) -> None:
        self._subjects = subjects
        self._waiting: list[tuple[Any, ...]] = []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(min(len(subjects), cores))

    def __enter__(self) -> _Side:
        return self

    def take(self, *sample: Any) -> None:
        """Run one sample, now or with the next block."""
        self._waiting.append(sample)
        if len(self._waiting) >= self.block:
            self._run()

    def _run(self) -> None:
        block, self._waiting = self._waiting, []
        for done in [self._pool.submit(_take_all, subject, block) for subject in self._subjects]:
            done.result()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._run()
        finally:
            self._pool.shutdown()


def _take_all(subject: Subject, block: Sequence[tuple[Any, ...]]) -> None:
    for sample in block:
        subject.take(*sample)


def check_programs(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Compare the float source's stored outputs, the carrier and each program on the same samples."""
    signature = codec.from_json(Signature, request["signature"])
    samples = codec.from_json(Selection, request["evaluation"]).open(signature)
    reference = OutputReader(Path(request["reference"]))
    example = samples.first().label
    make = metric_maker(request["metric"], signature, example)
    floats = make()
    carrier = Subject(_open_carrier(request), make())
    subjects = [Subject(_open(p["runtime"], p["path"], p["kernels"]), make()) for p in request["programs"]]
    keep = set(_evenly(reference.count, GOLDEN_VECTORS))
    with _Side(carrier, *subjects) as sides:
        for index, sample in enumerate(samples):
            expected = reference.sample(index)
            # Data without labels: how far each program follows the float source is all that can be told.
            label = expected if sample.label is None else sample.label
            floats.update(expected, label)
            sides.take(sample.inputs, expected, label, index in keep)
            progress("checking accuracy", (index + 1) / reference.count)
    # A fine-tuned network computes something else than the one it was made of, and shall.
    trained = bool(request.get("trained"))
    carrier_findings = () if trained else _carrier_findings(Path(request["carrier"]), carrier)
    results = []
    for subject, wanted in zip(subjects, request["programs"], strict=True):
        write_golden(Path(wanted["golden"]), subject.golden)
        summary = _summary(floats, carrier, subject, ran(subject.session, wanted["kernels"]), carrier_findings)
        if wanted["runtime"] == "executorch" and not getattr(subject.session, "not_run", ()):
            from edge.targets.executorch import bundle

            vectors = [(fed, stored) for fed, stored, _ in subject.golden]
            bundle.write_bundled(Path(wanted["path"]), vectors, Path(wanted["golden"]).with_name("model.bpte"))
        if wanted["runtime"] == "edgetpu":
            progress("disturbing the rounding as the Edge TPU may", None)
            summary["rounding"] = rounding.sensitivity(Path(wanted["path"]), samples, reference, make, run_real)
        results.append(summary)
    return {"programs": results}


def _carrier_findings(path: Path, carrier: Subject) -> tuple[Finding, ...]:
    """Return where the float carrier is not its source; with fake quantization values between two steps take either."""
    least = parity.FAKE_QUANTIZED_MIN_DB if _fake_quantized(path) else parity.CARRIER_MIN_DB
    return parity.carrier_findings(carrier.parity.result(), min_db=least)


def _fake_quantized(path: Path) -> bool:
    if path.suffix == ".tflite":
        from edge.targets.litert import flatbuffer, learned

        return learned.carries(flatbuffer.load(path))
    if path.suffix == ".pt2":
        from edge.targets import torch_fake_quant
        from edge.targets.executorch import carrier

        return torch_fake_quant.marks(carrier.load(path)[0].graph)
    return False


def _open(runtime: str, path: str, kernels: str) -> Session:
    return registry.runtime(runtime).open(Path(path), kernels=kernels, threads=1)


def ran(session: Session, asked: str) -> str:
    """Return the kernel set that a session runs: the one `asked` for, or what stands in for it on this host."""
    return str(getattr(session, "kernels", asked))


def _open_carrier(request: Mapping[str, Any]) -> Session:
    return registry.runtime(request["carrier_runtime"]).open_carrier(Path(request["carrier"]))


def metric_maker(name: str | None, signature: Signature, label: Any) -> Any:
    """Return what makes the named metric, or the usual one for labels like `label`."""
    if name:
        return lambda: metrics.metric_named(name)
    return lambda: metrics.default_metric(signature, label)


def _evenly(count: int, wanted: int) -> tuple[int, ...]:
    wanted = min(count, wanted)
    return tuple(i * count // wanted for i in range(wanted))


def _summary(
    floats: Metric, carrier: Subject, subject: Subject, kernels: str, carrier_findings: Sequence[Finding]
) -> dict[str, Any]:
    assert subject.metric is not None
    assert carrier.metric is not None
    difference = metrics.compare(floats, subject.metric)
    records = subject.parity.result()
    carried = {record.name: record.snr_db for record in carrier.parity.result()}
    accuracy = {
        "metric": floats.name,
        "float": difference.reference,
        "carrier": carrier.metric.value(),
        "quantized": difference.candidate,
        "drop": difference.drop,
        "drop_low": difference.low,
        "drop_high": difference.high,
        "samples": difference.samples,
        "kernels": kernels,
        "higher_is_better": floats.higher_is_better,
        "p_value": difference.p_value,
        "detectable_drop": difference.detectable,
        "interval_method": difference.method,
    }
    findings = [*carrier_findings, *parity.output_findings(records), *subject.saturation.findings()]
    return {
        "accuracy": accuracy,
        "parity": [_parity(record, carried.get(record.name)) for record in records],
        "findings": [codec.to_json(f) for f in findings],
    }


def _parity(record: parity.OutputParity, carrier_snr_db: float | None) -> dict[str, Any]:
    return {
        "output": record.name,
        "snr_db": record.snr_db,
        "cosine": record.cosine,
        "max_abs": record.max_abs,
        "carrier_snr_db": carrier_snr_db,
    }


def write_golden(
    path: Path, vectors: Sequence[tuple[Mapping[str, Array], Mapping[str, Array], Mapping[str, Array]]]
) -> None:
    """Write `in/NAME`, `out/NAME` (the program's own dtypes) and `float/NAME` (the source's), each [vectors, ...]."""
    arrays: dict[str, Array] = {}
    for position, prefix in enumerate(("in", "out", "float")):
        for name in vectors[0][position]:
            arrays[f"{prefix}/{name}"] = np.stack([v[position][name] for v in vectors])
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_golden(path: Path) -> dict[str, dict[str, Array]]:
    """Return the arrays of a golden file as {"in": {name: array}, "out": …, "float": …}; raise ArtifactError."""
    found: dict[str, dict[str, Array]] = {"in": {}, "out": {}, "float": {}}
    what = f"{path} is no file of golden vectors"
    with blaming(ArtifactError, what, hint="Build the artifact again."), np.load(path, allow_pickle=False) as data:
        for key in data.files:
            prefix, _, name = key.partition("/")
            found[prefix][name] = data[key]
    return found


def check_artifact(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run an artifact's golden vectors, and its accuracy against its float carrier where evaluation data is given."""
    session = _open(request["runtime"], request["program"], request["kernels"])
    findings: list[Finding] = []
    if request["golden"]:
        exact = request["golden_kernels"] == ran(session, request["kernels"])
        golden = read_golden(Path(request["golden"]))
        findings += compare_golden(session, golden, exact=exact, scheme=request["scheme"])
    if request["runtime"] == "executorch":
        from edge.targets.executorch import vectors

        findings += vectors.repeat(Path(request["program"]))
    answer: dict[str, Any] = {"accuracy": None, "parity": [], "findings": [codec.to_json(f) for f in findings]}
    if request["evaluation"] is None:
        return answer
    if request["carrier"] is None:
        raise ArtifactError("The artifact has no float carrier to compare with.", hint="Build the artifact again.")
    return evaluate(request, session, findings, progress)


def evaluate(
    request: Mapping[str, Any], session: Session, findings: list[Finding], progress: Progress
) -> dict[str, Any]:
    """Return accuracy and parity of a session, here or on a device, against the float carrier on the same samples."""
    signature = codec.from_json(Signature, request["signature"])
    samples = open_dataset(request["evaluation"], signature, role="evaluation")
    make = metric_maker(request["metric"], signature, samples.first().label)
    carrier, subject = Subject(_open_carrier(request), make()), Subject(session, make())
    for index, sample in enumerate(samples):
        _, _, expected = carrier.run(sample.inputs)
        label = expected if sample.label is None else sample.label
        for one in (carrier, subject):
            one.take(sample.inputs, expected, label, False)
        progress("checking accuracy", (index + 1) / samples.count if samples.count else 0.0)
    assert carrier.metric is not None
    return _summary(carrier.metric, carrier, subject, ran(session, request["kernels"]), findings)


def compare_golden(
    session: Session, golden: Mapping[str, Mapping[str, Array]], *, exact: bool, scheme: str = "float32"
) -> list[Finding]:
    """Return an error finding per output that does not repeat its golden vectors.

    With the kernels that wrote them (`exact`) integers must be equal, floats within 1e-3 of the output's size; with
    others 99.9 % of the elements must lie within one step, floats within `parity.float_tolerance` of the recipe.
    """
    tolerance = parity.float_tolerance("float32" if exact else scheme)
    names = {t.name: t for t in session.signature.outputs}
    if set(golden["in"]) != {t.name for t in session.signature.inputs} or set(golden["out"]) != set(names):
        raise ArtifactError("The golden vectors are for other inputs or outputs.", hint="Build the artifact again.")
    count = len(next(iter(golden["in"].values())))
    differing: dict[str, float] = dict.fromkeys(names, 0.0)
    for i in range(count):
        found = session.run({name: values[i] for name, values in golden["in"].items()})
        for name in names:
            differing[name] = max(differing[name], _apart(found[name], golden["out"][name][i], exact, tolerance))
    return [
        Finding(
            rule="GOLDEN_MISMATCH",
            severity="error",
            op=name,
            message=f"The program does not repeat its golden vectors: {share:.2%} of a vector's elements differ.",
            fix="This runtime computes something else than at build time: compare versions with the manifest.",
        )
        for name, share in differing.items()
        if share > (0.0 if exact else 1 - _GOLDEN_SHARE)
    ]


def _apart(found: Array, wanted: Array, exact: bool, tolerance: float) -> float:
    """Return the share of elements that differ by more than is allowed."""
    if found.shape != wanted.shape:
        return 1.0
    if np.issubdtype(wanted.dtype, np.floating):
        size = float(np.abs(wanted).max(initial=1e-6))
        return float((~np.isclose(found, wanted, rtol=0, atol=tolerance * size, equal_nan=True)).mean())
    allowed = 0 if exact else _GOLDEN_STEPS
    return float((np.abs(found.astype(np.int64) - wanted.astype(np.int64)) > allowed).mean())


def measure_latency(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Time a program on this host with real inputs; return the record of edge.measure with flat headline numbers."""
    progress(f"measuring latency on this host ({request['profile']})", None)
    started = time.perf_counter()
    session = registry.runtime(request["runtime"]).open(
        Path(request["path"]), kernels=request["kernels"], threads=request["threads"]
    )
    loaded = time.perf_counter()
    if getattr(session, "not_run", ()):
        return {"latency": None}
    inputs = _latency_inputs(session.signature, request["golden"])
    before_first = time.perf_counter()
    session.run(inputs)
    setting = Setting(
        mode=request["mode"],
        threads=request["threads"],
        kernels=ran(session, request["kernels"]),
        load_ms=1e3 * (loaded - started),
        first_ms=1e3 * (time.perf_counter() - before_first),
    )

    def run() -> None:
        session.run(inputs)

    measured = measure(run, profile=PROFILES[request["profile"]], setting=setting)
    resident = growth(lambda: _opened_and_run(request, inputs))
    return {
        "latency": {
            **flat_latency(measured.latency),
            "quantiles_ms": quantiles_ms(measured.samples_ns),
            "resident_bytes": resident,
        }
    }


def _opened_and_run(request: Mapping[str, Any], inputs: Mapping[str, Array]) -> Session:
    """Open the program once more, its libraries being there, so that what it takes itself can be seen."""
    session = registry.runtime(request["runtime"]).open(
        Path(request["path"]), kernels=request["kernels"], threads=request["threads"]
    )
    session.run(inputs)
    return session


def quantiles_ms(samples_ns: NDArray[np.int64]) -> list[float]:
    """Return the 0th, 1st, ... 100th percentile of durations, in ms: what a plot of their distribution needs."""
    return [round(float(q) / 1e6, 6) for q in np.percentile(samples_ns, range(101))]


def _latency_inputs(signature: Signature, golden: str | None) -> dict[str, Array]:
    if golden:
        return {name: values[0] for name, values in read_golden(Path(golden))["in"].items()}
    return {t.name: np.zeros([max(d, 1) for d in t.shape], t.dtype) for t in signature.inputs}


def flat_latency(result: Latency) -> dict[str, Any]:
    """Return the record of a measurement with flat headline numbers, as the manifest has it."""
    interval = result.median_interval
    return {
        "mode": result.setting.mode,
        "kernels": result.setting.kernels,
        "threads": result.setting.threads,
        "profile": result.profile.name,
        "samples": result.samples,
        "verdict": result.verdict,
        "reasons": [reason.message for reason in result.reasons],
        "load_ms": result.setting.load_ms,
        "first_ms": result.setting.first_ms,
        "median_ms": result.median_ms,
        "median_low_ms": interval.low if interval else None,
        "median_high_ms": interval.high if interval else None,
        **{name: e.value if e.value is not None else str(e) for name, e in _percentiles(result).items()},
        "min_ms": result.min_ms,
        "mean_ms": result.mean_ms,
        "std_ms": result.std_ms,
        "cv": result.cv,
        "clock": result.clock,
        "environment": {"before": asdict(result.before), "after": asdict(result.after)},
    }


def _percentiles(result: Latency) -> dict[str, Any]:
    return {"p90_ms": result.p90, "p95_ms": result.p95, "p99_ms": result.p99}
