"""What a search and a calibration cost: forward passes on a deep network, peak memory by the number of samples.

    python benchmarks/search_cost.py [--check]

Forward passes: a network of 50 layers, 500 samples that calibrate, 500 that choose and 500 that evaluate, and a budget
that nothing meets, so that every candidate before mixed precision is tried. One pass is a run of the network on each of
500; runs that calibrate, tune, correct and round count too, and those of the last comparison. Memory: what calibration
with 100 and 10,000 streamed samples (entropy: histograms, two passes) adds to a process, peak resident set against the
one before the first sample. `--check` exits with 1 above 40 passes, or where 10,000 samples take 2 MB more than 100.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edge import codec
from edge.calibration import ranges
from edge.calibration import recipe as recipes
from edge.calibration.search import Candidate
from edge.calibration.selection import Selection
from edge.isolate import no_progress
from edge.report.summary import search_table
from edge.stages import searching
from edge.stages.bench import Bench
from edge.targets import registry
from edge.targets.litert import calibrate, contract, flatbuffer, probe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.refine_models import SHAPE, ConvNet, conv_net

_LAYERS = 50
_SAMPLES = 500
_MOST_PASSES = 40
_MOST_GROWTH_KB = 2048
_NOTHING_MEETS = -0.5


def passes() -> float:
    """Search on the deep network, print the candidates and return the forward passes before mixed precision."""
    with tempfile.TemporaryDirectory() as name, _integer_candidates_only():
        started = time.perf_counter()
        details = searching.search(_request(Path(name)), no_progress)["details"]
    last = details["final"]["runs"]
    runs = sum(row["runs"] for row in details["candidates"]) + details["selection_samples"] + last
    found = float(runs / details["selection_samples"])
    table = search_table(SimpleNamespace(details={"search": details}))  # type: ignore[arg-type]
    assert table is not None
    print(f"{_LAYERS} layers; {table.caption}; {time.perf_counter() - started:.0f} s")
    for row in details["candidates"]:
        print(f"  {row['recipe']:44} {row['runs']:6} runs  {row['runs'] / details['selection_samples']:6.2f} passes")
    print(f"  {'the float network, once':44} {details['selection_samples']:6} runs  {1:6.2f} passes")
    print(f"  {'the last comparison, on evaluation samples':44} {last:6} runs  {last / _SAMPLES:6.2f} passes")
    print(f"without mixed precision: {found:.2f} passes; at most {_MOST_PASSES} are allowed")
    return found


@contextmanager
def _integer_candidates_only() -> Iterator[None]:
    kept = searching._mixed
    searching._mixed = _no_candidates
    try:
        yield
    finally:
        searching._mixed = kept


def _no_candidates(bench: Bench) -> Iterator[Candidate]:  # noqa: ARG001
    yield from ()


def _request(folder: Path) -> dict[str, Any]:
    program = conv_net(ConvNet(depth=_LAYERS - 2, centred=True))  # and a mean and a dense layer
    (folder / "float.tflite").write_bytes(program)
    x = np.random.default_rng(5).standard_normal((3 * _SAMPLES, *SHAPE[1:])).astype(np.float32)
    labels = [int(o["y"].argmax()) for o in probe.outputs(program, [{"x": v[None]} for v in x])]
    np.savez(folder / "data.npz", x=x, y=np.asarray(labels))
    target = registry.target("coral")
    calibrating, evaluating = tuple(range(_SAMPLES)), tuple(range(2 * _SAMPLES, 3 * _SAMPLES))
    return {
        "carrier": str(folder / "float.tflite"),
        "signature": codec.to_json(contract.signature_of(flatbuffer.load(program))),
        "recipe": codec.to_json(recipes.named("int8", io=target.io)),
        "target": codec.to_json(target),
        "runtime": target.runtimes[0],
        "calibration": codec.to_json(
            Selection(location=str(folder / "data.npz"), role="calibration", indices=calibrating)
        ),
        "evaluation": codec.to_json(
            Selection(location=str(folder / "data.npz"), role="calibration", indices=evaluating)
        ),
        "metric": None,
        "max_drop": _NOTHING_MEETS,
        "kernels": "builtin",
        "workdir": str(folder / "work"),
        "cache": None,
    }


class _Stream:
    """Random images that are made as they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            yield SimpleNamespace(inputs={"x": rng.standard_normal(SHAPE).astype(np.float32)})


def _calibrate(count: int, answer: Any) -> None:
    program = conv_net(ConvNet(depth=3))
    calibrate.collect(program, _Stream(2), ranges.estimator("entropy"), threads=1)  # what loading costs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calibrate.collect(program, _Stream(count), ranges.estimator("entropy"), threads=1)
    answer.put((before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def memory(counts: tuple[int, ...] = (100, 10_000)) -> list[int]:
    """Print and return what calibration adds to the peak resident set, in kB, for each number of samples."""
    context, found = multiprocessing.get_context("spawn"), []
    for count in counts:
        answer = context.Queue()
        child = context.Process(target=_calibrate, args=(count, answer))
        child.start()
        before, peak = answer.get(timeout=600)
        child.join()
        found.append(peak - before)
        print(f"calibration with {count:6,} samples: {before / 1024:.1f} MB, at most {peak / 1024:.1f} MB (resident)")
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is exceeded")
    options = parser.parse_args()
    few, many = memory()
    good = passes() <= _MOST_PASSES and many - few <= _MOST_GROWTH_KB
    return 0 if good or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
