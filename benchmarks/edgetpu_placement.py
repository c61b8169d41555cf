"""Hold the Edge TPU prediction against models that the real compiler compiled.

    python benchmarks/edgetpu_placement.py [--check] [--count] [GROUNDTRUTH_FOLDER]

Prints what share of the models is predicted exactly, by author, and every model that is not, with the reason. `--check`
exits with 1 below the thresholds; `--count` prints the numbers of observations that rules.toml states. Without the
ground truth (../shared/edgetpu) it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.targets.edgetpu import memory, placement
from edge.targets.edgetpu.memory import MemoryPlan
from edge.targets.edgetpu.placement import Placement
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "../shared/edgetpu"
# Shares of all models; placement and subgraphs as 145 and 148 of 151.
THRESHOLDS = {
    "placement": 145 / 151,
    "subgraphs": 148 / 151,
    "table": 0.95,
    "within_5_percent": 0.90,
    "exact_bytes": 0.50,
    "split_kind": 0.95,
}
_KNOWN = (
    ("google-coral/edgetpu", "split_kind", "compiled with options that left less of the cache; not in the file"),
    ("iwatake2222/", "split_kind", "compiler 1.0 streams what comes after about 80 layers"),
    ("prbodmann/", "split_kind", "some layers are streamed though the cache has room; rule unknown"),
    ("R-e-d-a-X/", "within_5_percent", "constants as the first operand of FULLY_CONNECTED; layout unknown"),
    ("ricardodeazambuja/", "within_5_percent", "SOFTMAX over a reshaped image is smaller than over classes"),
    ("google-coral/test_data", "within_5_percent", "CONCATENATION of 1-, 2- and 3-channel images needs a table"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model of the ground truth beside its prediction."""

    record: dict[str, Any]
    graph: Graph
    placement: Placement
    memory: MemoryPlan
    seconds: float

    @property
    def author(self) -> str:
        """Repository that the model came from."""
        return "/".join(self.record["origin"].split(":")[1].split("/")[:2])

    @property
    def name(self) -> str:
        """Origin without the scheme."""
        return str(self.record["origin"].split(":", 1)[1])

    def results(self) -> dict[str, bool]:
        """Answer each question of THRESHOLDS."""
        true = self.record["on_chip_bytes"] + self.record["off_chip_bytes"]
        error = abs(self.memory.parameter_bytes - true)
        rows = sorted([list(row) for row in self.placement.table()])
        return {
            "placement": list(self.placement.mapped) == self.record["mapped"],
            "subgraphs": self.placement.subgraphs == self.record["subgraphs"],
            "table": not self.record["log_rows"] or rows == sorted(self.record["log_rows"]),
            "within_5_percent": error <= 0.05 * true,
            "exact_bytes": error == 0,
            "split_kind": (self.memory.off_chip_bytes > 0) == (self.record["off_chip_bytes"] > 0),
        }

    def describe(self, question: str) -> str:
        """One line on what is wrong, with the reason where it is known."""
        why = next((text for who, what, text in _KNOWN if self.author.startswith(who) and what == question), "unknown")
        if question in ("placement", "subgraphs", "table"):
            pairs = zip(self.placement.operators, self.record["mapped"], strict=True)
            wrong = [f"{op.index} {op.op} {op.rule or 'mapped'}" for op, truth in pairs if op.mapped != truth]
            return f"{self.name}: subgraphs {self.placement.subgraphs} for {self.record['subgraphs']}, {wrong[:5]}"
        pair = (self.record["on_chip_bytes"], self.record["off_chip_bytes"])
        ours = (self.memory.on_chip_bytes, self.memory.off_chip_bytes)
        return f"{self.name}: on and off chip {ours} for {pair} ({why})"


def load(folder: Path) -> list[Case]:
    """Read the ground truth and predict each model."""
    records = json.loads((folder / "groundtruth.json").read_text(encoding="utf-8"))["records"]
    return [_case(folder, record) for record in records]


def _case(folder: Path, record: dict[str, Any]) -> Case:
    graph = flatbuffer.graph(flatbuffer.load(gzip.decompress((folder / record["model"]).read_bytes())))
    runtime = record["min_runtime_version"]
    start = time.perf_counter()
    placed = placement.predict(
        graph, multiple_subgraphs=record["multiple_subgraphs_option"], min_runtime_version=runtime
    )
    parameters = memory.plan(graph, placed, min_runtime_version=runtime)
    return Case(record=record, graph=graph, placement=placed, memory=parameters, seconds=time.perf_counter() - start)


def shares(cases: Sequence[Case]) -> dict[str, float]:
    """Return the share of models for which each question is answered right."""
    results = [case.results() for case in cases]
    return {question: sum(r[question] for r in results) / len(results) for question in THRESHOLDS}


def _longest_row(case: Case) -> int:
    rows = [0]
    for op in case.graph.ops:
        if op.name == "FULLY_CONNECTED":
            weights = case.graph.tensors[op.inputs[1]]
            rows.append(weights.shape[-1] if weights.is_constant else 0)
    return max(rows)


def leave_one_author_out(cases: Sequence[Case]) -> list[str]:
    """Refit the one fitted limit (longest cached row of a FULLY_CONNECTED) without each author, and predict them."""
    rows = [(c.author, _longest_row(c), c.record["off_chip_bytes"] > c.record["on_chip_bytes"]) for c in cases]
    rows = [row for row in rows if row[1]]
    lines = []
    for author in sorted({who for who, length, streamed in rows if streamed and length > 4096}):
        cached = max(length for who, length, streamed in rows if who != author and not streamed)
        out = [length for who, length, streamed in rows if who != author and streamed and length > cached]
        limit = math.sqrt(cached * min(out)) if out else math.inf
        mine = [(length, streamed) for who, length, streamed in rows if who == author]
        right = sum((length > limit) == streamed for length, streamed in mine)
        lines.append(f"without {author}: rows above {limit:,.0f} are streamed; {right} of {len(mine)} right")
    return lines


def observations(cases: Iterable[Case]) -> tuple[Counter[str], dict[str, tuple[int, int]]]:
    """Count refused operators by rule, and mapped operators with their largest activation by kind.

    A refusal counts where it decided: everything that the operator reads was mapped or needs no operator, so that it
    would have been mapped had it been supported (with -a every refusal decides).
    """
    refused: Counter[str] = Counter()
    mapped: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for case in cases:
        everything = placement.predict(case.graph, multiple_subgraphs=True)
        producers = case.graph.producers()
        decided = case.record["mapped"]
        for op, truth, rule in zip(
            case.graph.ops, case.record["mapped"], (o.rule for o in everything.operators), strict=True
        ):
            if not truth:
                ready = case.record["multiple_subgraphs_option"] or all(
                    decided[producers[t]] for t in op.inputs if t in producers
                )
                refused.update([rule] if rule and ready else [])
                continue
            active = [t for t in (*op.inputs, *op.outputs) if t >= 0 and not case.graph.tensors[t].is_constant]
            count, largest = mapped[op.name]
            mapped[op.name] = count + 1, max(largest, *(case.graph.tensors[t].elements for t in active))
    return refused, dict(mapped)


def _by_author(cases: Sequence[Case]) -> None:
    authors = defaultdict(list)
    for case in cases:
        authors[case.author].append(case)
    print(f"\n{'author':<42}{'models':>7}" + "".join(f"{q:>18}" for q in THRESHOLDS))
    for author, group in sorted(authors.items(), key=lambda item: -len(item[1])):
        counts = [sum(case.results()[q] for case in group) for q in THRESHOLDS]
        print(f"{author:<42}{len(group):>7}" + "".join(f"{n:>18}" for n in counts))


def _print_counts(cases: Sequence[Case]) -> None:
    refused, mapped = observations(cases)
    print("\nrefused operators by rule")
    for rule, count in refused.most_common():
        print(f"  {rule:<28}{count:>6}")
    print("\nmapped operators: instances, largest activation in elements")
    for name, (count, largest) in sorted(mapped.items()):
        print(f"  {name:<28}{count:>6}{largest:>12}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--check", action="store_true", help="exit with 1 below the thresholds")
    parser.add_argument("--count", action="store_true", help="print the observations that rules.toml states")
    options = parser.parse_args(arguments)
    if not (options.folder / "groundtruth.json").is_file():
        print(f"No ground truth at {options.folder}: nothing to compare.")
        return 0
    cases = load(options.folder)
    got = shares(cases)
    print(f"{len(cases)} models, slowest prediction {max(c.seconds for c in cases) * 1000:.0f} ms\n")
    print(f"{'question':<20}{'right':>7}{'share':>9}{'needed':>9}")
    for question, share in got.items():
        print(f"{question:<20}{round(share * len(cases)):>7}{share:>9.1%}{THRESHOLDS[question]:>9.1%}")
    _by_author(cases)
    for question in THRESHOLDS:
        wrong = [case for case in cases if not case.results()[question]]
        if question == "exact_bytes" or not wrong:
            continue
        print(f"\nwrong: {question}")
        for case in wrong:
            print(f"  {case.describe(question)}")
    print("\nleave one author out")
    for line in leave_one_author_out(cases):
        print(f"  {line}")
    if options.count:
        _print_counts(cases)
    below = [question for question, share in got.items() if share < THRESHOLDS[question]]
    if below:
        print(f"\nbelow the threshold: {', '.join(below)}")
    return 1 if options.check and below else 0


if __name__ == "__main__":
    sys.exit(main())
