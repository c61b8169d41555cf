"""Build the zoo for XNNPACK in float32, int8 and dynamic int8; run it, and print agreement, delegation and latency.

    python benchmarks/executorch_zoo.py                     all architectures
    python benchmarks/executorch_zoo.py mobile-v2 lstm      some of them
    python benchmarks/executorch_zoo.py --check             exit 1 where a bound below is broken

Weights are random, so agreement stands for accuracy: the largest difference for float32, the signal-to-noise ratio over
samples that did not calibrate for the others. Latency is the median on this host with one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the zoo is among the tests

from edge.calibration import recipe as recipes
from edge.errors import EdgekitError
from edge.targets.base import Model, Session
from edge.targets.executorch.runtime import ExecuTorch
from tests import executorch_helpers as helpers

RECIPES = ("float32", "int8", "dynamic")
MAX_FLOAT_DIFFERENCE = 1e-4
MIN_SNR_DB = 20.0
_RUNS = 200


@dataclass(frozen=True, kw_only=True)
class Row:
    """One build of one architecture; `error` where it failed."""

    model: str
    recipe: str
    build_s: float = 0.0
    size_bytes: int = 0
    subgraphs: int = 0
    delegated_share: float = 0.0
    delegated_nodes: int = 0
    non_delegated_nodes: int = 0
    max_difference: float = 0.0
    snr_db: float = 0.0
    median_ms: float = 0.0
    error: str = ""

    @property
    def broken(self) -> bool:
        """Whether a bound is broken."""
        if self.error:
            return True
        return self.max_difference > MAX_FLOAT_DIFFERENCE if self.recipe == "float32" else self.snr_db < MIN_SNR_DB


def measure(model: Model, name: str, recipe: str, folder: Path) -> Row:
    """Build, run and time one architecture."""
    started = time.perf_counter()
    try:
        made = helpers.build(model, recipes.named(recipe, io="float32"), folder)
        built = time.perf_counter() - started
        runtime = ExecuTorch()
        session, reference = runtime.open(made.path, kernels="xnnpack", threads=1), runtime.open_carrier(model.path)
        held_out = [s.inputs for s in helpers.samples(model.signature, 8, seed=1)]
        wanted, found = [reference.run(i) for i in held_out], [session.run(i) for i in held_out]
    except EdgekitError as error:
        return Row(model=name, recipe=recipe, error=error.message)
    delegation = made.details["delegation"]
    return Row(
        model=name,
        recipe=recipe,
        build_s=built,
        size_bytes=made.path.stat().st_size,
        subgraphs=delegation["subgraphs"],
        delegated_share=delegation["delegated_share"],
        delegated_nodes=delegation["delegated_nodes"],
        non_delegated_nodes=delegation["non_delegated_nodes"],
        max_difference=max(
            float(np.abs(np.subtract(w[n], f[n], dtype=np.float32)).max())
            for w, f in zip(wanted, found, strict=True)
            for n in w
        ),
        snr_db=min(helpers.snr_db(wanted, found).values()),
        median_ms=median_ms(session, held_out[0]),
    )


def median_ms(session: Session, inputs: Mapping[str, Any]) -> float:
    """Return the median of one run in milliseconds."""
    for _ in range(20):
        session.run(inputs)
    times = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        session.run(inputs)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def show(row: Row) -> None:
    """Print one line."""
    if row.error:
        print(f"{row.model:10} {row.recipe:8} FAILED {row.error}", flush=True)
        return
    print(
        f"{row.model:10} {row.recipe:8} {row.build_s:6.1f} s {row.size_bytes / 1e3:7.1f} kB"
        f" {row.delegated_share:6.1%} ({row.delegated_nodes}+{row.non_delegated_nodes} nodes, {row.subgraphs} parts)"
        f"  max {row.max_difference:.1e}  SNR {row.snr_db:5.1f} dB  {row.median_ms:.3f} ms",
        flush=True,
    )


def main() -> int:
    """Run and return the exit code."""
    from tests import zoo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(zoo.ZOO)}")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is broken")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgekit-") as work:
        for name in arguments.models or zoo.ZOO:
            model = helpers.imported(name, Path(work) / name)
            for recipe in RECIPES:
                rows.append(measure(model, name, recipe, Path(work) / name / recipe))
                show(rows[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    return int(arguments.check and any(r.broken for r in rows))


if __name__ == "__main__":
    sys.exit(main())
