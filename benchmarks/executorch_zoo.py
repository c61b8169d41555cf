"""Train the zoo, build it for XNNPACK and for the lite interpreter in each recipe, and hold the programs to the float.

    python benchmarks/executorch_zoo.py                     all architectures
    python benchmarks/executorch_zoo.py mobile-v2 lstm      some of them
    python benchmarks/executorch_zoo.py --check             exit 1 where a bound below is broken

Of each program: the largest difference from the module (float32), the task's metric on test samples that neither
trained nor calibrated, the delegated share, and the median latency on this host with one thread. The delegation that
edgekit reports is compared with `get_delegation_info` of a lowering that uses ExecuTorch's own functions only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the zoo is among the tests

from edge.calibration import recipe as named_recipes
from edge.errors import EdgekitError
from edge.targets.base import Model, Session, Target
from edge.targets.executorch import carrier, delegates, lower
from edge.targets.executorch import quantize as quantizing
from edge.targets.executorch.runtime import ExecuTorch
from edge.targets.torch_mobile.runtime import TorchMobile
from tests import executorch_helpers as helpers

RECIPES = ("float32", "int8", "dynamic")
MAX_FLOAT_DIFFERENCE = 1e-4
MAX_DROP = 0.01
_COMPARED = 32
_ROUNDS, _RUNS = 15, 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One program; `error` where it could not be built, `unlike` what differs from ExecuTorch's own count."""

    model: str
    runtime: str
    recipe: str
    metric: str = ""
    float_score: float = 0.0
    score: float = 0.0
    max_difference: float = 0.0
    build_s: float = 0.0
    size_bytes: int = 0
    subgraphs: int = 0
    delegated_share: float | None = None
    portable: Sequence[Mapping[str, Any]] = ()
    unlike: str = ""
    median_ms: float = 0.0
    findings: Sequence[str] = ()
    error: str = ""

    @property
    def broken(self) -> str:
        """The bound that is broken, empty where none is."""
        if self.error:
            # The lite interpreter has dynamic int8 for linear and recurrent layers only: a network without has none.
            return "" if self.runtime == "torch_mobile" and "changed nothing" in self.error else "refused"
        if self.unlike:
            return "delegation differs"
        if self.recipe == "float32" and self.max_difference > MAX_FLOAT_DIFFERENCE:
            return "difference"
        return "metric" if self.float_score - self.score > MAX_DROP else ""


def own_delegation(model: Model, recipe: named_recipes.Recipe, samples: Any) -> dict[str, Any]:
    """Lower with ExecuTorch's functions, and return what its `get_delegation_info` counts."""
    from executorch.backends.xnnpack.partition import xnnpack_partitioner as xnnpack
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    exported, _ = carrier.load(model.path)
    made = quantizing.quantize(exported, model.signature, recipe, delegates.DELEGATES["xnnpack"], {}, samples)
    first = [xnnpack.XnnpackDynamicallyQuantizedPartitioner()] if recipe.scheme == "dynamic" else []
    with lower._listening():
        edge = to_edge_transform_and_lower(made.program, partitioner=[*first, xnnpack.XnnpackPartitioner()])
    info = get_delegation_info(edge.exported_program().graph_module)
    rows = {n: r for n, r in info.delegation_by_operator.items() if n not in ("getitem", "alloc")}
    return {
        "subgraphs": info.num_delegated_subgraphs,
        "delegated_nodes": info.num_delegated_nodes,
        "non_delegated_nodes": info.num_non_delegated_nodes,
        "delegated": {n: r.delegated for n, r in rows.items() if r.delegated},
        "portable": {n: r.non_delegated for n, r in rows.items() if r.non_delegated},
    }


def unlike(mine: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return what two counts of a delegation differ in, empty where they agree and every fallback has a reason."""
    portable = {p["operator"]: p["count"] for p in mine["portable"]}
    flat = {**mine, "portable": portable}
    apart = [f"{key}: {flat[key]} instead of {own[key]}" for key in own if flat[key] != own[key]]
    return "; ".join(apart + [f"no reason for {p['operator']}" for p in mine["portable"] if not p["reason"]])


def imported(name: str, module: Any, folder: Path) -> Model:
    """Write a trained module as a model in the exported carrier, with the zoo's names."""
    return helpers.imported(name, folder, module=module)


def measure(
    name: str, trained: Any, model: Model, reference: float, folder: Path, *, recipes: Sequence[str] = RECIPES
) -> list[tuple[Row, Session | None]]:
    """Build and run one architecture by both runtimes in these recipes."""
    data = [helpers.Sample(_sample(trained.calibration, i)) for i in range(len(trained.calibration))]
    made = []
    for runtime in (ExecuTorch(), TorchMobile()):
        for recipe in recipes:
            below = folder / f"{runtime.name}-{recipe}"
            below.mkdir(parents=True)
            made.append(_measured(name, trained, model, reference, runtime, recipe, data, below))
            show(made[-1][0])
    return made


def _sample(data: Any, index: int) -> Any:
    from tests import zoo_tasks

    return zoo_tasks.sample(data, index)


def _measured(
    name: str, trained: Any, model: Model, reference: float, runtime: Any, kind: str, data: list[Any], folder: Path
) -> tuple[Row, Session | None]:
    from tests import zoo_tasks

    recipe, started = named_recipes.named(kind, io="float32"), time.perf_counter()
    samples: Any = data if recipe.needs_calibration else None
    aim = Target(name="t", title="t", family="linux", runtimes=(runtime.name,))
    try:
        program = runtime.build(model, recipe, aim, samples, folder, lambda *_: None)
        built = time.perf_counter() - started
        session = runtime.open(program.path, kernels=runtime.kernel_sets[0], threads=1)
        apart = _difference(trained, ExecuTorch().open_carrier(model.path), session)
        found = zoo_tasks.score(trained, session.run)
    except EdgekitError as error:
        return Row(model=name, runtime=runtime.name, recipe=kind, error=error.message), None
    delegation = program.details.get("delegation")
    own = own_delegation(model, recipe, samples) if delegation else {}
    row = Row(
        model=name,
        runtime=runtime.name,
        recipe=kind,
        metric=trained.task.metric,
        float_score=reference,
        score=found,
        max_difference=apart,
        build_s=built,
        size_bytes=program.path.stat().st_size,
        subgraphs=delegation["subgraphs"] if delegation else 0,
        delegated_share=delegation["delegated_share"] if delegation else None,
        portable=delegation["portable"] if delegation else (),
        unlike=unlike(delegation, own) if delegation else "",
        findings=sorted({f.rule for f in program.findings}),
    )
    return row, session


def _difference(trained: Any, reference: Session, session: Session) -> float:
    """Return the largest difference of a program's outputs from the module's."""
    worst = 0.0
    for i in range(_COMPARED):
        inputs = _sample(trained.test, i)
        wanted, found = reference.run(inputs), session.run(inputs)
        worst = max(worst, *(float(np.abs(np.subtract(wanted[n], found[n], dtype=np.float64)).max()) for n in wanted))
    return worst


def timed(measured: Sequence[tuple[Row, Session | None]], inputs: Any) -> list[Row]:
    """Return the rows with their medians; the programs take turns, so that a slow moment hits all of them."""
    opened = [(i, s) for i, (_, s) in enumerate(measured) if s is not None]
    times: dict[int, list[float]] = {i: [] for i, _ in opened}
    for _ in range(_ROUNDS):
        for i, session in opened:
            session.run(inputs)
            for _ in range(_RUNS):
                started = time.perf_counter()
                session.run(inputs)
                times[i].append(time.perf_counter() - started)
    return [
        Row(**{**asdict(row), "median_ms": 1e3 * statistics.median(times[i])}) if i in times else row
        for i, (row, _) in enumerate(measured)
    ]


def show(row: Row) -> None:
    """Print one line while the run goes on."""
    what = row.error or f"{row.score:.4f} of {row.float_score:.4f}, max {row.max_difference:.1e}"
    print(f"  {row.model} {row.runtime} {row.recipe}: {what} {row.broken and '<- ' + row.broken}", flush=True)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: one line per program, latency relative to float32 of the same runtime."""
    lines = [
        "| net | runtime | recipe | metric | float | program | max difference | delegated | parts | size | latency |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = {(r.model, r.runtime): r.median_ms for r in rows if r.recipe == "float32"}
    for r in rows:
        if r.error:
            lines.append(f"| {r.model} | {r.runtime} | {r.recipe} | refused: {r.error} |" + " |" * 7)
            continue
        share = "" if r.delegated_share is None else f"{r.delegated_share:.1%}"
        times = base[r.model, r.runtime] / r.median_ms if r.median_ms else 0.0
        lines.append(
            f"| {r.model} | {r.runtime} | {r.recipe} | {r.metric} | {r.float_score:.2%} | {r.score:.2%}"
            f" | {r.max_difference:.1e} | {share} | {r.subgraphs or ''} | {r.size_bytes / 1e3:.0f} kB"
            f" | {r.median_ms:.3f} ms ({times:.2f}x) |"
        )
    return "\n".join(lines)


def run(name: str, folder: Path) -> list[Row]:
    """Train one architecture, and return the rows of its programs."""
    import torch

    from tests import zoo_tasks

    torch.set_num_threads(1)
    trained = zoo_tasks.train(name)
    model = imported(name, trained.module, folder)
    reference = zoo_tasks.score(trained, ExecuTorch().open_carrier(model.path).run)
    print(f"{name}: {trained.task.metric} {reference:.4f} in float", flush=True)
    return timed(measure(name, trained, model, reference, folder), _sample(trained.test, 0))


def main() -> int:
    """Run and return the exit code."""
    from tests import zoo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(zoo.ZOO)}")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is broken")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.models or zoo.ZOO:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as work:
            rows += run(name, Path(work))
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")
    print(table(rows))
    for row in (r for r in rows if r.broken):
        print(f"broken: {row.model} {row.runtime} {row.recipe}: {row.broken} {row.error or row.unlike}")
    return int(arguments.check and any(r.broken for r in rows))


if __name__ == "__main__":
    sys.exit(main())
