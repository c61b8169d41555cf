"""Try the prediction of ExecuTorch programs: do those of LiteRT with the same work take as many instructions?

    python benchmarks/pte_prediction.py                       all networks, boards and recipes
    python benchmarks/pte_prediction.py unet --board rpi4     some of them
    python benchmarks/pte_prediction.py --check               exit 1 where the interval that is stated is too narrow

The constants of the roofline are fitted to published latencies of LiteRT programs; of ExecuTorch next to none were
published. Each network is therefore built for both runtimes, and the instructions of one inference are counted on the
emulated boards, exactly. Where the predicted times of both stand to one another as their instructions do, the constants
hold for both. What is left is the runtime's part of the interval (`OTHER_RUNTIME_LOG_WIDTH` of targets/roofline.py).
Needed: qemu-user and qemu-user-static, `edgekit emulator setup`, g++-aarch64-linux-gnu, litert_torch and executorch.
"""

from __future__ import annotations

import argparse
import ast
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from edge.calibration.recipe import named
from edge.devices.instructions import count_instructions
from edge.devices.programs import describe
from edge.isolate import no_progress
from edge.signature import Signature
from edge.sources import registry as sources
from edge.sources import routes
from edge.sources.base import Declaration
from edge.targets import registry, roofline
from edge.targets.base import Model

FILE = Path(__file__).with_name("pte_networks.py")
BOARDS = ("rpi3", "rpi4", "rpi5")
RECIPES = ("float32", "int8")
RUNTIMES = ("litert", "executorch")
RATE = 0.8


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network on a board: predicted milliseconds with one thread, and instructions in thousands, of both runtimes."""

    network: str
    board: str
    recipe: str
    litert_ms: float
    pte_ms: float
    litert_kilo: float
    pte_kilo: float

    @property
    def log_error(self) -> float:
        """Ln of the predicted ratio over the counted ratio."""
        return math.log(self.pte_ms / self.litert_ms) - math.log(self.pte_kilo / self.litert_kilo)


def networks() -> tuple[str, ...]:
    """Return the factories' names without importing torch."""
    for node in ast.parse(FILE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "NETWORKS":
            return tuple(ast.literal_eval(node.value))
    raise LookupError(f"{FILE} has no NETWORKS")


def build(network: str, runtime_name: str, recipes: Sequence[str], folder: Path) -> None:
    """Write the programs of a network for one runtime: `folder/RECIPE/model.*`."""
    target, runtime = registry.target("rpi4"), registry.runtime(runtime_name)
    layout: Literal["keep", "channel-last"] = "channel-last" if runtime.carrier == "litert" else "keep"
    loaded = sources.load(f"{FILE}:{network}", Declaration(layout=layout))
    carrier = folder / ("carrier.tflite" if runtime.carrier == "litert" else "carrier.pt2")
    routes.cross(routes.Task(loaded=loaded, path=carrier, progress=no_progress), runtime.carrier)
    model = Model(carrier=runtime.carrier, path=carrier, signature=loaded.signature)
    for recipe in recipes:
        (folder / recipe).mkdir()
        runtime.build(model, named(recipe), target, samples(loaded.signature), folder / recipe, no_progress)


def built(network: str, runtime: str, recipes: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return the programs by recipe; each runtime has its own process: both link the same kernels."""
    place = folder / f"{network}-{runtime}"
    place.mkdir()
    command = [sys.executable, __file__, "--build", runtime, str(place), network]
    command += [word for recipe in recipes for word in ("--recipe", recipe)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{network} cannot be built for {runtime}: {done.stderr.strip()[-2000:]}")
    suffix = registry.runtime(runtime).suffix
    return {recipe: next((place / recipe).glob(f"*{suffix}")) for recipe in recipes}


def samples(signature: Signature) -> Any:
    """Return what calibrates: normal noise, as the numbers do not matter for the work."""
    drawn = np.random.default_rng(0)
    inputs = [{t.name: drawn.standard_normal(t.shape).astype(np.float32) for t in signature.inputs} for _ in range(8)]
    return [SimpleNamespace(inputs=one) for one in inputs]


def measured(path: Path, runtime: str, board: str) -> tuple[float, float]:
    """Return the predicted milliseconds with one thread (nan where there is none), and the counted thousands."""
    inspected = registry.runtime(runtime).inspect(path, registry.target(board), {})
    predicted = inspected.details.get("latency_ms", {}).get("threads_1", {}).get("value", math.nan)
    if math.isnan(predicted):
        print(f"{path}: {inspected.details.get('latency_note')}", file=sys.stderr)
    assert inspected.signature is not None
    program = describe(path, runtime=runtime, kernels="xnnpack", threads=1, signature=inspected.signature)
    sample = {t.name: np.zeros([max(d, 1) for d in t.shape], t.dtype) for t in program.signature.inputs}
    runner = "native" if runtime == "executorch" else "python"
    return predicted, count_instructions(program, sample, board, runner=runner).total / 1e3


def rows_of(network: str, recipes: Sequence[str], boards: Sequence[str], folder: Path) -> list[Row]:
    """Return the rows of a network."""
    made, rows = {runtime: built(network, runtime, recipes, folder) for runtime in RUNTIMES}, []
    for recipe in recipes:
        for board in boards:
            (litert_ms, litert_kilo), (pte_ms, pte_kilo) = (
                measured(made[runtime][recipe], runtime, board) for runtime in RUNTIMES
            )
            rows.append(
                Row(network=network, board=board, recipe=recipe, litert_ms=litert_ms, pte_ms=pte_ms,
                    litert_kilo=litert_kilo, pte_kilo=pte_kilo)
            )  # fmt: skip
            show(rows[-1])
    return rows


def show(row: Row) -> None:
    """Print a row."""
    ratios = f"{row.pte_ms / row.litert_ms:6.2f} {row.pte_kilo / row.litert_kilo:6.2f} {row.log_error:+6.2f}"
    what = f"{row.network:12} {row.board:5} {row.recipe:8} {row.litert_ms:8.3f} {row.pte_ms:8.3f}"
    print(f"{what} {row.litert_kilo:10.1f} {row.pte_kilo:10.1f} {ratios}", flush=True)


def log_width(rows: Sequence[Row]) -> float:
    """Return what covers RATE of the errors: the ceil((n + 1) * RATE)-th smallest, at most the largest."""
    errors = sorted(abs(r.log_error) for r in rows)
    return errors[min(len(errors), math.ceil((len(errors) + 1) * RATE)) - 1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=networks(), help="of pte_networks.py")
    parser.add_argument("--board", action="append", choices=BOARDS, help="may be repeated; default: all")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="may be repeated; default: all")
    parser.add_argument("--check", action="store_true", help="exit 1 where the stated interval is too narrow")
    parser.add_argument("--build", nargs=2, metavar=("RUNTIME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.build:
        build(options.networks[0], options.build[0], options.recipe, Path(options.build[1]))
        return 0
    print(
        f"{'network':12} {'board':5} {'recipe':8} {'tflite':>8} {'pte, ms':>8} {'tflite':>10} {'pte, 1000':>10} ratios"
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for network in options.networks:
            rows += rows_of(network, options.recipe or RECIPES, options.board or BOARDS, Path(temporary))
    rows = [r for r in rows if not math.isnan(r.log_error)]
    if not rows:
        return 1
    width = log_width(rows)
    print(f"\n{len(rows)} pairs; {RATE:.0%} within x/{math.exp(width):.2f} (log-width {width:.3f})")
    print(f"stated: {roofline.OTHER_RUNTIME_LOG_WIDTH}")
    return int(options.check and width > roofline.OTHER_RUNTIME_LOG_WIDTH)


if __name__ == "__main__":
    sys.exit(main())
