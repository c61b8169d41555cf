"""A fake of Google's edgetpu_compiler for tests: it takes its options, prints its formats and writes a package.

It compiles nothing. Environment: FAKE_VERSION (16.0.384591198), FAKE_INTERNAL_ERROR (an operator's name: fails where
that operator is to be mapped), FAKE_FAILURES (a file that counts down failures that do not repeat), FAKE_UNMAPPED
(operator names that stay on the CPU, with commas), FAKE_HANG (seconds) with FAKE_CHILD (a file that gets the id of a
hanging child), FAKE_SILENT (writes no file), FAKE_RUNS (a file that gets one line for each compilation: its arguments).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph
from tests.edgetpu_packages import ExecutableFields, PackageFields, compiled

VERSION = os.environ.get("FAKE_VERSION", "16.0.384591198")
MAJOR = int(VERSION.split(".")[0])
REFUSED = "Operation is otherwise supported, but not mapped due to some unspecified limitation"


def options() -> argparse.Namespace:
    """Return the command line; version 16 knows more options than 14 and 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", "--version", action="store_true")
    parser.add_argument("-s", "--show_operations", action="store_true")
    parser.add_argument("-o", "--out_dir", default=".")
    parser.add_argument("-m", "--min_runtime_version", type=int, default=14)
    parser.add_argument("-i", "--intermediate_tensors", default="")
    parser.add_argument("-n", "--num_segments", type=int, default=1)
    parser.add_argument("-a", "--enable_multiple_subgraphs", action="store_true")
    if MAJOR >= 16:
        parser.add_argument("-d", "--search_delegate", action="store_true")
        parser.add_argument("-k", "--delegate_search_step", type=int, default=1)
        parser.add_argument("-t", "--timeout_sec", type=int, default=180)
    parser.add_argument("models", nargs="*")
    return parser.parse_args()


def before(graph: Graph, names: list[str]) -> set[int]:
    """Return the operators that the tensors of those names need."""
    producers = graph.producers()
    todo = [t.index for t in graph.tensors if t.name in names and t.index in producers]
    found: set[int] = set()
    while todo:
        op = producers.get(todo.pop())
        if op is not None and op not in found:
            found.add(op)
            todo += [t for t in graph.ops[op].inputs if t >= 0]
    return found


def mapped(graph: Graph, cut: str) -> list[bool]:
    """Return which operators the fake maps."""
    kept = before(graph, cut.split(",")) if cut else set(range(len(graph.ops)))
    left = os.environ.get("FAKE_UNMAPPED", "").split(",")
    return [op.index in kept and op.name not in left for op in graph.ops]


def fails(graph: Graph, places: list[bool]) -> bool:
    """Tell whether this run ends with the internal error."""
    counter = Path(os.environ.get("FAKE_FAILURES", ""))
    if counter.is_file() and (left := int(counter.read_text())) > 0:
        counter.write_text(str(left - 1))
        return True
    culprit = os.environ.get("FAKE_INTERNAL_ERROR")
    return any(op.name == culprit and on_chip for op, on_chip in zip(graph.ops, places, strict=True))


def table(graph: Graph, places: list[bool]) -> list[str]:
    """Return the operator table as every version prints it."""
    rows = Counter(
        (op.name, "Mapped to Edge TPU" if on_chip else REFUSED) for op, on_chip in zip(graph.ops, places, strict=True)
    )
    lines = [f"{name:<31s}{count:<11d}{status}" for (name, status), count in rows.items()]
    return ["", f"{'Operator':<31s}{'Count':<11s}Status", "", *lines]


def report(file: Path, target: Path, graph: Graph, places: list[bool], show: bool) -> None:
    """Print the block of one model."""
    log = target.with_suffix(".log")
    memory = [
        "On-chip memory used for caching model parameters: 1.00KiB",
        f"On-chip memory {'remaining' if MAJOR > 2 else 'available'} for caching model parameters: 7.96MiB",
    ]
    print(f"\nInput model: {file.name}\nInput size: {file.stat().st_size / 1024:.2f}KiB")
    print(f"Output model: {target.name}\nOutput size: 60.00KiB")
    print("\n".join(memory if MAJOR > 2 else reversed(memory)))
    print("Off-chip memory used for streaming uncached model parameters: 0.00B")
    print(f"Number of Edge TPU subgraphs: {int(any(places))}\nTotal number of operations: {len(places)}")
    print(f"Operation log: {log.name}")
    lines = table(graph, places)
    print("\n".join(lines) if show else "See the operation log file for individual operation details.")
    header = [f"Edge TPU Compiler version {VERSION}", f"Input: {file.name}", f"Output: {target.name}"]
    log.write_text("\n".join([*header, *lines, ""]))


def compile_one(file: Path, asked: argparse.Namespace) -> bool:
    """Compile one model; tell whether it went well."""
    program = file.read_bytes()
    graph = flatbuffer.graph(flatbuffer.load(program))
    places = mapped(graph, asked.intermediate_tensors)
    if fails(graph, places):
        print("Internal compiler error. Aborting! ")
        return False
    fields = PackageFields(
        executables=(
            ExecutableFields(kind="EXECUTION_ONLY"),
            ExecutableFields(kind="PARAMETER_CACHING", parameter_bytes=1024),
        ),
        min_runtime_version=asked.min_runtime_version,
    )
    count = asked.num_segments
    ends = [f"_segment_{i}_of_{count}_edgetpu" for i in range(count)] if count > 1 else ["_edgetpu"]
    for end in ends:
        if not os.environ.get("FAKE_SILENT"):
            (Path(asked.out_dir) / f"{file.stem}{end}.tflite").write_bytes(compiled(program, places, fields))
    print("\nModel compiled successfully in 12 ms.")
    report(file, Path(asked.out_dir) / f"{file.stem}_edgetpu.tflite", graph, places, asked.show_operations)
    return True


def main() -> int:
    """Behave as the compiler and return its exit code."""
    asked = options()
    print(f"Edge TPU Compiler version {VERSION}", flush=True)
    if asked.version:
        return 0
    if runs := os.environ.get("FAKE_RUNS"):
        with Path(runs).open("a") as lines:
            lines.write(" ".join(sys.argv[1:]) + "\n")
    if hang := os.environ.get("FAKE_HANG"):
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({hang})"])
        Path(os.environ["FAKE_CHILD"]).write_text(str(child.pid))
        time.sleep(float(hang))
    if MAJOR >= 16:
        print(f"Started a compilation timeout timer of {asked.timeout_sec} seconds.")
    done = [compile_one(Path(name), asked) for name in asked.models]
    if MAJOR >= 16:
        print("Compilation child process completed within timeout period.")
        print("Compilation succeeded! " if all(done) else "Compilation failed! ")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
