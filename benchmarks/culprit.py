"""Does diagnose name a planted culprit, and does the search repair it, in trained networks?

    python benchmarks/culprit.py             ten networks of different depth, width, culprit (torch, scikit-learn)
    python benchmarks/culprit.py --count 2   the first ones

Each network is trained on scikit-learn's digits. Then a quarter of the channels of one layer is scaled by 2^8 or 2^-8
and the next layer's weights back, which changes no output of the float network and leaves int8 no steps for the other
channels. Printed: accuracy in float, in plain int8, what diagnose names first, and the search's choice on samples that
neither calibrated nor chose. Exit code 1 where a culprit is not named or not repaired by integers within 2 points, and
where the float network has less than 88 % or the culprit costs less than 15 points: such a case would prove nothing.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge import codec
from edge.calibration import recipe as recipes
from edge.calibration.selection import Selection
from edge.isolate import no_progress
from edge.stages.diagnosing import diagnose
from edge.stages.searching import search
from edge.targets import registry
from edge.targets.litert import contract, flatbuffer
from tests.tflite_builder import GraphBuilder

_TRAIN, _TEST, _EPOCHS = 1100, 1500, 30
_WITHIN = 0.02
# A network that has learned nothing, or a culprit that costs nothing, would prove nothing.
_LEAST_ACCURACY, _LEAST_LOSS = 0.88, 0.15
_WIDE = 3
_SHAPE = (1, 8, 8, 1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network: convolutions of `channels`, the layer that is spoilt, by which power of two."""

    seed: int
    depth: int
    channels: int
    planted: int
    by: int


def cases(count: int = 10) -> list[Case]:
    """Return networks of 3 to 5 convolutions, the culprit in each position, scaled up and down."""
    made = []
    for seed in range(count):
        depth = 3 + seed % 3
        by = 8 if seed % 2 else -8
        made.append(Case(seed=seed, depth=depth, channels=(12, 16, 24)[seed % 3], planted=seed % (depth - 1), by=by))
    return made


def digits() -> tuple[Any, Any]:
    """Return scikit-learn's digits in a fixed random order: images [N, 8, 8] from 0 to 1, float32, and classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return (found.images[order] / 16).astype(np.float32), found.target[order]


def trained(case: Case) -> list[tuple[Any, Any]]:
    """Return weights and biases of convolutions (three 3x3, then 1x1) and a dense layer, trained, culprit planted."""
    import torch

    torch.manual_seed(case.seed)
    torch.set_num_threads(1)
    sizes = [1, *[case.channels] * case.depth]
    layers = [
        torch.nn.Conv2d(a, b, 3 if i < _WIDE else 1, padding="same")
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]
    end = torch.nn.Linear(case.channels, 10)
    parameters = [p for layer in (*layers, end) for p in layer.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    steps = _EPOCHS * -(-_TRAIN // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    images, classes = digits()
    x = torch.from_numpy(images[:_TRAIN, None])
    y = torch.from_numpy(classes[:_TRAIN].astype(np.int64))
    for _ in range(_EPOCHS):
        for part in torch.randperm(_TRAIN).split(32):
            value = x[part]
            for layer in layers:
                value = torch.relu(layer(value))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(end(value.mean((2, 3))), y[part]).backward()
            optimizer.step()
            schedule.step()
    found = [(c.weight.detach().numpy().transpose(0, 2, 3, 1), c.bias.detach().numpy()) for c in layers]
    with torch.no_grad():
        value = x
        for layer in layers[: case.planted + 1]:
            value = torch.relu(layer(value))
    _plant(found, case, value.mean((0, 2, 3)).numpy())
    return [*found, (end.weight.detach().numpy(), end.bias.detach().numpy())]


def _plant(layers: list[tuple[Any, Any]], case: Case, means: Any) -> None:
    # Channels that are used: a dead one hides what is done to it.
    chosen = means >= np.sort(means)[-len(means) // 4]
    scales = np.where(chosen, 2.0**case.by, 1.0)
    weights, bias = layers[case.planted]
    layers[case.planted] = (weights * scales[:, None, None, None], bias * scales)
    weights, bias = layers[case.planted + 1]
    layers[case.planted + 1] = (weights / scales, bias)


def program(case: Case) -> bytes:
    """Return the float flatbuffer; convolution n writes `layer_n`."""
    builder = GraphBuilder()
    relu = flatbuffer.schema().ActivationFunctionType.RELU
    *layers, end = trained(case)
    x = builder.input("x", _SHAPE)
    for number, (weights, bias) in enumerate(layers):
        x = builder.conv(x, weights, bias, name=f"layer_{number}", fusedActivationFunction=relu)
    pooled = builder.op("MEAN", [x, builder.const("axes", [1, 2])], (1, case.channels), name="pooled")
    builder.output(builder.fully_connected(pooled, *end, name="logits"), "y")
    return builder.build()


def request(folder: Path, case: Case, target: str = "linux") -> dict[str, Any]:
    """Write network and data; return what diagnose and search are asked."""
    images, classes = digits()
    x = images[..., None]
    np.savez(folder / "data.npz", x=x, y=classes)
    path = folder / "float.tflite"
    path.write_bytes(program(case))
    found = registry.target(target)
    data = str(folder / "data.npz")
    return {
        "carrier": str(path),
        "signature": codec.to_json(contract.signature_of(flatbuffer.load(path))),
        "recipe": codec.to_json(recipes.named("int8", io=found.io)),
        "target": codec.to_json(found),
        "runtime": found.runtimes[0],
        "calibration": codec.to_json(Selection(location=data, role="calibration", indices=tuple(range(0, 400, 4)))),
        "evaluation": codec.to_json(Selection(location=data, role="calibration", indices=tuple(range(_TEST, len(x))))),
        "metric": None,
        "max_drop": _WITHIN,
        "kernels": "builtin",
        "workdir": str(folder / "work"),
        "cache": None,
    }


def run(case: Case) -> dict[str, Any]:
    """Return what diagnose named and what the search reached for one network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = request(folder, case)
        answer = diagnose({**asked, "workdir": str(folder / "diagnose")}, no_progress)
        found = search(asked, no_progress)
        rows = found["details"]["candidates"]
        chosen = next(row for row in rows if row["chosen"])
        return {
            "case": case,
            "float": answer["ladder"][0]["metric"],
            "int8": next(r["metric"] for r in answer["ladder"] if r["name"].startswith("int8")),
            "named": answer["layers"][0]["output"],
            "expected": f"layer_{case.planted}",
            "culprit": answer["culprit"],
            "plain_drop": rows[0]["drop"],
            "drop": chosen["drop"],
            "recipe": chosen["recipe"],
            "integer": chosen["operators_float"] == 0,
            "passes": found["details"]["forward_passes"],
            "diagnose_passes": answer["cost"]["forward_passes"],
        }


def good(row: dict[str, Any]) -> bool:
    """Tell whether the culprit mattered, was named first and repaired by integers."""
    matters = row["float"] >= _LEAST_ACCURACY and row["plain_drop"] >= _LEAST_LOSS
    return bool(matters and row["named"] == row["expected"] and row["drop"] <= _WITHIN and row["integer"])


def main() -> int:
    """Print one line per network; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10)
    count = parser.parse_args().count
    print("net depth planted  by  float   int8  named    culprit    drop before  after  recipe (passes)")
    rows = []
    for case in cases(count):
        row = run(case)
        rows.append(row)
        mark = "" if good(row) else "  <- FAILS"
        print(
            f"{case.seed:3d} {case.depth:5d} layer_{case.planted} {case.by:+3d} {row['float']:6.1%} "
            f"{row['int8']:6.1%}  "
            f"{row['named']:8s} {row['culprit'] or 'none':12s} {row['plain_drop']:7.1%} {row['drop']:8.1%}  "
            f"{row['recipe']} ({row['passes']:g}){mark}",
            flush=True,
        )
    named = sum(r["named"] == r["expected"] for r in rows)
    repaired = sum(map(good, rows))
    print(f"named first: {named} of {len(rows)}; named and repaired by integers within {_WITHIN:.0%}: {repaired}")
    return 0 if all(map(good, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
