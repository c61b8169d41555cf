"""Facts about the rules and the prediction of placement for the Edge TPU."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import SourceError, UsageError
from edge.signature import Quantization
from edge.targets.edgetpu import placement, predict, rules
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph, Op
from tests.tflite_builder import GraphBuilder

GROUND_TRUTH = Path(__file__).resolve().parents[1] / "../shared/edgetpu"
needs_ground_truth = pytest.mark.skipif(not GROUND_TRUTH.is_dir(), reason="the ground truth is not beside the project")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
Q = Quantization(scale=(0.5,), zero_point=(0,))


class Int8:
    """Builds int8 graphs operator by operator."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "int8") -> None:
        self.builder = GraphBuilder()
        self.last = self.builder.input("x", shape, dtype, Q if dtype != "float32" else None)

    def op(self, name: str, shape: tuple[int, ...], *constants: object, dtype: str = "int8", **options: Any) -> Int8:
        """Append an operator that reads the last tensor and int32 or int8 constants."""
        inputs = [self.last]
        for number, value in enumerate(constants):
            array = np.asarray(value)
            quantization = Q if array.dtype == np.int8 else None
            inputs.append(self.builder.const(f"{name}/{len(self.builder.graph.tensors)}/{number}", array, quantization))
        quantization = Q if dtype in ("int8", "uint8") else None
        self.last = self.builder.op(name, inputs, shape, dtype=dtype, quantization=quantization, **options)
        return self

    def graph(self) -> Graph:
        """Return the finished graph, the last tensor its output."""
        return flatbuffer.graph(flatbuffer.load(self.bytes()))

    def bytes(self) -> bytes:
        """Return the flatbuffer."""
        self.builder.output(self.last, "y")
        return self.builder.build()


def only(graph: Graph, **options: int) -> placement.PlacedOp:
    """Return the prediction for the last operator."""
    return placement.predict(graph, **options).operators[-1]  # type: ignore[arg-type]


def chain(count: int, links: list[tuple[int, ...]]) -> Graph:
    """A graph of `count` RELUs, operator i reading the outputs of `links[i]` (or the graph's input)."""
    builder = GraphBuilder()
    source = builder.input("x", (1, 8), "int8", Q)
    outputs: list[int] = []
    for i in range(count):
        inputs = [outputs[j] for j in links[i]] or [source]
        outputs.append(builder.op("RELU", inputs, (1, 8), dtype="int8", quantization=Q))
    builder.output(outputs[-1], "y")
    return flatbuffer.graph(flatbuffer.load(builder.build()))


def test_relu_of_int8_is_mapped() -> None:
    """A documented operator on int8 is mapped and called documented."""
    placed = only(Int8((1, 8)).op("RELU", (1, 8)).graph())
    assert (placed.mapped, placed.reason, placed.certainty) == (True, None, "documented")


@pytest.mark.parametrize(
    ("graph", "rule", "reason"),
    [
        (Int8((1, 8)).op("DEQUANTIZE", (1, 8), dtype="float32"), "UNSUPPORTED_DTYPE", "unsupported data type"),
        (Int8((1, 8), "float32").op("QUANTIZE", (1, 8)), "FLOAT_INPUT", "unspecified limitation"),
        (Int8((1, 8)).op("GATHER", (1, 1), np.array([1], np.int32)), "UNKNOWN_OPERATOR", "Operation not supported"),
        (Int8((1, 8)).op("LOGISTIC", (1, 8), version=3), "OPERATOR_VERSION", "Operation version not supported"),
        (Int8((2, 4, 4, 8)).op("RELU", (2, 4, 4, 8)), "RANK", "unsupported rank"),
        (
            Int8((1, 400, 400, 1)).op("TRANSPOSE", (1, 1, 400, 400), np.array([0, 3, 1, 2], np.int32), version=2),
            "TRANSPOSE_SIZE",
            "unspecified limitation",
        ),
        (
            Int8((1, 400, 600, 1)).op("RESHAPE", (1, 240000), np.array([1, 240000], np.int32)),
            "RESHAPE_SIZE",
            "unspecified limitation",
        ),
        (Int8((1, 20000)).op("SOFTMAX", (1, 20000)), "SOFTMAX_SIZE", "unspecified limitation"),
        (Int8((1, 80, 8400)).op("LOGISTIC", (1, 80, 8400)), "FLATTENED_SIZE", "unspecified limitation"),
        (
            Int8((1, 8, 8, 4)).op("MAX_POOL_2D", (1, 4, 4, 4), fusedActivationFunction=1),
            "FUSED_ACTIVATION",
            "unspecified limitation",
        ),
        (
            Int8((1, 4)).op("CONCATENATION", (1, 8), np.ones((1, 4), np.int8)),
            "CONCATENATION_CONSTANT",
            "unspecified limitation",
        ),
        (
            Int8((1, 4, 6)).op("MEAN", (1, 4), np.array([2], np.int32)),
            "MEAN_DEPTH",
            "unspecified limitation",
        ),
    ],
)
def test_refusals(graph: Int8, rule: str, reason: str) -> None:
    """Each refused operator carries its rule and the compiler's words."""
    placed = only(graph.graph())
    assert (placed.rule, placed.mapped) == (rule, False)
    assert placed.reason is not None
    assert reason in placed.reason


def test_zero_constant_may_be_concatenated() -> None:
    """A constant of zeros acts as padding and is mapped."""
    assert only(Int8((1, 4)).op("CONCATENATION", (1, 8), np.zeros((1, 4), np.int8)).graph()).mapped


def test_image_of_the_same_size_is_not_flattened() -> None:
    """LOGISTIC on an image is mapped where the same number of elements on a flattened axis is not."""
    assert only(Int8((1, 80, 84, 100)).op("LOGISTIC", (1, 80, 84, 100)).graph()).mapped


def test_old_runtime_has_no_transpose() -> None:
    """--min-runtime-version 13 keeps TRANSPOSE on the CPU, 14 maps it."""
    graph = Int8((1, 4, 8)).op("TRANSPOSE", (1, 8, 4), np.array([0, 2, 1], np.int32), version=2).graph()
    assert [only(graph, min_runtime_version=n).mapped for n in (13, 14)] == [False, True]


def test_branch_beside_a_refused_operator_is_in_the_first_subset() -> None:
    """A supported operator on a parallel branch is mapped though it comes after a refused one in execution order."""
    graph = chain(4, [(), (0,), (0,), (1, 2)])
    cut = placement.partition(graph, [True, False, True, True])
    assert cut == [(True, [0, 2]), (False, [1]), (True, [3])]


def test_only_the_first_subset_without_multiple_subgraphs() -> None:
    """What follows a refused operator is refused as a second subgraph, and mapped with -a."""
    model = Int8((1, 8)).op("RELU", (1, 8)).op("GATHER", (1, 8), np.array([0], np.int32)).op("RELU", (1, 8)).graph()
    one, all_ = placement.predict(model), placement.predict(model, multiple_subgraphs=True)
    assert (one.mapped, one.subgraphs) == ((True, False, False), 1)
    assert one.operators[2].reason == "More than one subgraph is not supported"
    assert (all_.mapped, all_.subgraphs) == ((True, False, True), 2)


def test_table_has_the_compilers_rows() -> None:
    """The table counts operators by status, as the compiler's log does."""
    model = Int8((1, 8)).op("RELU", (1, 8)).op("RELU", (1, 8)).op("DEQUANTIZE", (1, 8), dtype="float32").graph()
    assert placement.predict(model).table() == (
        ("RELU", 2, "Mapped to Edge TPU"),
        ("DEQUANTIZE", 1, "Operation is working on an unsupported data type"),
    )


@given(st.integers(1, 14), st.randoms(use_true_random=False))
def test_partition_keeps_every_dependency(count: int, rng: random.Random) -> None:
    """Subsets hold each operator once, are of one kind, and never read what a later subset makes."""
    links = [tuple(j for j in range(i) if rng.random() < 0.3) for i in range(count)]
    supported = [rng.random() < 0.6 for _ in range(count)]
    subsets = placement.partition(chain(count, links), supported)
    home = {index: number for number, (_, members) in enumerate(subsets) for index in members}
    assert sorted(home) == list(range(count))
    assert all(supported[i] is subsets[home[i]][0] for i in home)
    assert all(home[j] <= home[i] for i in range(count) for j in links[i])
    assert all(a[0] != b[0] for a, b in itertools.pairwise(subsets))


def test_partition_ends_on_a_cycle() -> None:
    """Operators that wait for each other end up unmapped instead of in an endless loop."""
    graph = chain(2, [(), (0,)])
    first, second = graph.ops
    loop = Graph(
        tensors=graph.tensors,
        ops=(Op(0, "RELU", 1, second.outputs, first.outputs, None), second),
        inputs=graph.inputs,
        outputs=graph.outputs,
        name="",
        _buffers=(),
    )
    assert placement.partition(loop, [True, True]) == [(False, [0, 1])]


def test_missing_input_is_an_error_of_ours() -> None:
    """An operator without the inputs that its kind needs gives a message, no traceback."""
    builder = GraphBuilder()
    builder.input("x", (1, 8), "int8", Q)
    builder.output(builder.op("RELU", [], (1, 8), dtype="int8", quantization=Q), "y")
    graph = flatbuffer.graph(flatbuffer.load(builder.build()))
    with pytest.raises(SourceError, match="RELU\\) has no input 0"):
        placement.predict(graph)


def test_every_rule_has_reason_fix_and_source() -> None:
    """No rule lacks the compiler's reason, a fix for the user or a source; ids are unique."""
    book = rules.load()
    assert all(rule.reason and rule.fix and rule.source for rule in book.rules)
    assert len({rule.id for rule in book.rules}) == len(book.rules)
    assert {rule.certainty for rule in book.rules} == {"documented", "observed", "extrapolated"}


def test_observed_rule_needs_observations() -> None:
    """A rule that claims to be observed without a count is refused."""
    with pytest.raises(ValueError, match="counts no observation"):
        rules.Rule(
            id="X",
            operators=("*",),
            test="fused_activation",
            reason="r",
            certainty="observed",
            fix="f",
            source="s",
        )


def test_certainty_of_an_observed_rule_has_its_number() -> None:
    """The certainty of an observed refusal says how often it was seen."""
    placed = only(Int8((1, 8), "float32").op("QUANTIZE", (1, 8)).graph())
    rule = next(rule for rule in rules.load().rules if rule.id == "FLOAT_INPUT")
    assert placed.certainty == f"observed {rule.observed} times"


def test_prediction_json_has_exactly_the_fields_of_the_contract() -> None:
    """The JSON object has the keys that scripts rely on, operators in execution order."""
    data = predict.predict_program(Int8((1, 8)).op("RELU", (1, 8)).bytes(), name="m.tflite").to_json()
    assert list(data) == ["model", "operators", "subgraphs", "on_chip_bytes", "off_chip_bytes", "latency_ms"]
    assert data["operators"] == [{"index": 0, "op": "RELU", "mapped": True, "reason": None, "certainty": "documented"}]
    assert all(set(each) == {"value", "low", "high"} for each in data["latency_ms"].values())
    assert json.loads(json.dumps(data)) == data


def test_unknown_runtime_version_is_refused() -> None:
    """A runtime version that never existed is a usage error that lists what is accepted."""
    with pytest.raises(UsageError, match="accepted: 10 to 14"):
        predict.predict_program(Int8((1, 8)).op("RELU", (1, 8)).bytes(), min_runtime_version=99)


def test_file_with_grouped_convolution_version_is_refused_in_the_compilers_words() -> None:
    """CONV_2D version 6 makes the compiler refuse the whole file; the prediction says so and names the cure."""
    weights = np.ones((4, 1, 1, 4), np.int8)
    model = Int8((1, 4, 4, 4)).op("CONV_2D", (1, 4, 4, 4), weights, version=6).bytes()
    found = predict.predict_program(model).findings
    assert found[0].rule == "EDGETPU_REFUSES_FILE"
    assert "Didn't find op for builtin opcode 'CONV_2D' version '6'" in found[0].message


def test_computed_shape_is_refused_as_dynamic() -> None:
    """A RESHAPE to a computed shape is what the compiler calls a dynamic-sized tensor."""
    builder = GraphBuilder()
    x = builder.input("x", (1, 8), "int8", Q)
    shape = builder.op("SHAPE", [x], (2,), dtype="int32")
    builder.output(builder.op("RESHAPE", [x, shape], (1, 8), dtype="int8", quantization=Q), "y")
    found = predict.predict_program(builder.build()).findings
    assert any("dynamic-sized tensors" in f.message for f in found)


def test_five_hundred_operators_in_under_a_second() -> None:
    """Placement, memory and latency of a 500-operator program take less than a second."""
    model = Int8((1, 32, 32, 8))
    for _ in range(250):
        model.op("CONV_2D", (1, 32, 32, 8), np.ones((8, 3, 3, 8), np.int8), version=3).op("RELU", (1, 32, 32, 8))
    program = model.bytes()
    start = time.process_time()  # of this process alone: others share the machine
    predict.predict_program(program)
    assert time.process_time() - start < 1


def test_prediction_imports_neither_tensorflow_nor_torch() -> None:
    """The prediction runs without any of the large frameworks."""
    code = (
        "import sys, edge.targets.edgetpu.predict, edge.targets.edgetpu.latency, edge.targets.edgetpu.normalize;"
        "print(sorted({'tensorflow', 'torch', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("edgetpu_placement")


@needs_ground_truth
def test_ground_truth_thresholds(benchmark: Any) -> None:
    """Placement, subgraphs, the compiler's table and memory reach the shares that the project promises."""
    got = benchmark.shares(benchmark.load(GROUND_TRUTH))
    assert {q: s for q, s in got.items() if s < benchmark.THRESHOLDS[q]} == {}


@needs_ground_truth
def test_numbers_of_observations_come_from_the_ground_truth(benchmark: Any) -> None:
    """The counts in rules.toml are those that the benchmark counts."""
    refused, mapped = benchmark.observations(benchmark.load(GROUND_TRUTH))
    book = rules.load()
    assert {rule.id: rule.observed for rule in book.rules if rule.observed} == dict(refused)
    stated = {name: (facts.mapped, facts.elements) for name, facts in book.operators.items() if facts.mapped}
    assert stated == mapped


@needs_ground_truth
def test_the_benchmark_ends_with_0_when_all_thresholds_hold(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """--check exits with 0, prints the table and names what is wrong."""
    assert benchmark.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert "placement" in printed
    assert "wrong: split_kind" in printed


def test_the_benchmark_without_ground_truth_says_so(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the data the benchmark has nothing to compare and does not fail."""
    assert benchmark.main(["--check", str(tmp_path)]) == 0
    assert "nothing to compare" in capsys.readouterr().out
