"""The Edge TPU latency model: arithmetic, monotony, and cross-validation on published numbers."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge.targets.edgetpu import latency
from edge.targets.edgetpu.latency import Work, conv_cycles, dense_cycles, predict_latency
from edge.targets.edgetpu.memory import LayerMemory, MemoryPlan
from edge.targets.interval import Interval
from edge.targets.litert import flatbuffer
from edge.targets.litert.flatbuffer import Graph
from tests.edgetpu_models import chain, classifier

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
LINKS = {"usb3", "pcie", "usb2"}
NO_PARAMETERS = MemoryPlan(layers=(), on_chip_bytes=0, off_chip_bytes=0)


def graph_of(program: bytes) -> Graph:
    """Return the view of a program's first subgraph."""
    return flatbuffer.graph(flatbuffer.load(program))


def one_layer(parameter_bytes: int, *, on_chip: bool) -> MemoryPlan:
    """Return a plan of a single layer, operator 0."""
    layer = LayerMemory(op=0, name="layer", parameter_bytes=parameter_bytes, on_chip=on_chip)
    streamed = 0 if on_chip else parameter_bytes
    return MemoryPlan(layers=(layer,), on_chip_bytes=parameter_bytes - streamed, off_chip_bytes=streamed)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("edgetpu_latency")


@pytest.fixture
def architectures(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's architectures."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("edgetpu_architectures")


@pytest.mark.parametrize(
    ("arguments", "cycles"), [((7, 7, 64, 64, 9), 2304), ((1, 1, 32, 4, 1), 2), ((5, 4, 33, 5, 1), 2 * 2 * 1 * 2 * 2)]
)
def test_cycles_of_a_convolution(arguments: tuple[int, int, int, int, int], cycles: int) -> None:
    """The formula of old compilers' estimates, which were exact on 7x7 maps."""
    assert conv_cycles(*arguments) == cycles


def test_cycles_of_a_dense_layer() -> None:
    """2 * rows * ceil(co / 128) * ceil(ci / 4)."""
    assert dense_cycles(3, 129, 5) == 2 * 3 * 2 * 2


@settings(max_examples=200, deadline=None)
@given(*[st.integers(1, 600)] * 4, st.integers(1, 49))
def test_cycles_never_beat_the_hardware(height: int, width: int, co: int, ci: int, kernel: int) -> None:
    """No shape does more multiply-accumulates in a cycle than 16 tiles of 64 cells."""
    macs = height * width * co * ci * kernel
    assert macs / conv_cycles(height, width, co, ci, kernel) <= 16 * 64


def test_work_of_a_classifier() -> None:
    """Convolution and dense layer count cycles, MEAN moves its input, SOFTMAX computes, ends are transferred."""
    total = latency.work(graph_of(classifier()), [True] * 4, NO_PARAMETERS)
    assert total == Work(
        conv_cycles=conv_cycles(8, 8, 16, 3, 9) + dense_cycles(1, 5, 16),
        moved_elements=8 * 8 * 16,
        arithmetic_elements=5,
        operators=4,
        input_bytes=8 * 8 * 3,
        output_bytes=5,
        invocations=1,
    )


def test_unmapped_operators_are_the_hosts_and_cross_the_link() -> None:
    """A CPU tail takes the activation off the chip, and its work is the host's alone."""
    graph = graph_of(classifier())
    total = latency.work(graph, [True, True, False, False], NO_PARAMETERS)
    assert (total.operators, total.host_macs, total.output_bytes) == (2, 16 * 5, 16)
    assert total.host_desktop_ns == 5 * latency.table("host_ns")["other"]


def test_nothing_mapped_costs_no_invocation() -> None:
    """A model that stays on the CPU neither pays the floor nor any transfer."""
    total = latency.work(graph_of(classifier()), [False] * 4, NO_PARAMETERS)
    assert (total.invocations, total.input_bytes, total.output_bytes, total.operators) == (0, 0, 0, 0)


def test_predicts_the_three_links() -> None:
    """Each link has a value within its interval, at the rate of the cross-validation."""
    found = predict_latency(graph_of(classifier()), [True] * 4, NO_PARAMETERS)
    assert set(found) == LINKS
    assert all(i.low < i.value < i.high and i.rate == latency.table("interval")["rate"] for i in found.values())
    assert latency.MODE == "predicted"


def test_streaming_costs_its_bytes_at_the_links_rate() -> None:
    """10 MB of streamed parameters take about 10 MB / rate longer on every link, and cached ones nothing."""
    graph = graph_of(classifier())
    base, cached, streamed = (
        predict_latency(graph, [True] * 4, plan)
        for plan in (NO_PARAMETERS, one_layer(10_000_000, on_chip=True), one_layer(10_000_000, on_chip=False))
    )
    assert cached == base
    constants = latency.fitted()
    for link, rate in (("usb3", constants.usb3_stream_mb_per_s), ("pcie", constants.pcie_stream_mb_per_s)):
        assert streamed[link].value - base[link].value == pytest.approx(10_000 / rate, rel=0.01)
    assert streamed["usb2"].value > 5 * streamed["usb3"].value


def test_a_slower_host_makes_a_cpu_tail_slower_and_less_certain() -> None:
    """The CPU class counts only where something is left to it, and its share widens the interval."""
    graph = graph_of(chain(("LOGISTIC",) * 3))
    tail = [True, False, False, False]
    slow, fast = (predict_latency(graph, tail, NO_PARAMETERS, hosts={"usb3": host}) for host in ("a53", "desktop"))
    assert slow["usb3"].value > fast["usb3"].value
    assert slow["usb3"].high / slow["usb3"].value > fast["usb3"].high / fast["usb3"].value
    whole = [predict_latency(graph, [True] * 4, NO_PARAMETERS, hosts={"usb3": h}) for h in ("a53", "desktop")]
    assert whole[0]["usb3"] == whole[1]["usb3"]


def test_each_subgraph_costs_a_floor() -> None:
    """Three Edge TPU subgraphs pay the per-invocation floor three times."""
    graph = graph_of(classifier())
    one, three = (predict_latency(graph, [True] * 4, NO_PARAMETERS, invocations=n)["usb3"].value for n in (1, 3))
    assert three - one == pytest.approx(2 * latency.table("links")["usb3"]["floor_ms"])


def test_an_unknown_host_is_named() -> None:
    """A CPU class that does not exist is a configuration error with the accepted ones."""
    with pytest.raises(ConfigError, match="'m1'; accepted: desktop, a53, a72, a76"):
        predict_latency(graph_of(classifier()), [True] * 4, NO_PARAMETERS, hosts={"usb3": "m1"})


def test_placements_must_fit_the_graph() -> None:
    """One placement for each operator."""
    with pytest.raises(ValueError, match="3 placements for 4 operators"):
        predict_latency(graph_of(classifier()), [True] * 3, NO_PARAMETERS)


@pytest.mark.parametrize("bad", [(1.0, 2.0, 3.0, 0.8), (1.0, -1.0, 2.0, 0.8), (1.0, 0.5, 2.0, 1.0)])
def test_an_interval_holds_its_value(bad: tuple[float, float, float, float]) -> None:
    """Low, value and high are in order and the rate is a share."""
    with pytest.raises(ValueError, match="no interval"):
        Interval(value=bad[0], low=bad[1], high=bad[2], rate=bad[3])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 10**8))
def test_more_streaming_is_never_faster(mapped: list[bool], size: int) -> None:
    """For any placement, streaming more bytes takes at least as long, and every number is finite."""
    graph = graph_of(classifier())
    less, more = (predict_latency(graph, mapped, one_layer(n, on_chip=False)) for n in (size, 2 * size))
    for link in LINKS:
        assert less[link].value <= more[link].value
        assert math.isfinite(more[link].high)


def test_prediction_of_500_operators_takes_less_than_a_second_and_no_framework() -> None:
    """A long model is predicted in a fraction of a second, in a process that loads neither TensorFlow nor torch."""
    code = (
        "import sys; from edge.targets.edgetpu import latency, memory; from edge.targets.litert import flatbuffer;"
        "from tests.edgetpu_models import chain; import time;"
        "g = flatbuffer.graph(flatbuffer.load(chain(('RELU',) * 499))); t = time.perf_counter();"
        "latency.predict_latency(g, [True] * 500, memory.MemoryPlan(layers=(), on_chip_bytes=0, off_chip_bytes=0));"
        "assert not {'tensorflow', 'torch'} & set(sys.modules); print(time.perf_counter() - t)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=BENCHMARKS.parent, check=True
    )
    assert float(done.stdout) < 0.5


def test_leave_one_out_error_and_coverage_hold(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Over the published table the mean error is at most 20 %, and the intervals cover at their stated rate."""
    assert benchmark.main(["--check"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("usb3") == printed.count("pcie") == 11
    assert "mean absolute error" in printed


def test_the_shipped_constants_are_the_fitted_ones(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """latency.toml carries what the benchmark's refit gives with today's placement and memory plan."""
    assert benchmark.main(["--refit"]) == 0
    shipped = {**latency.table("fitted"), "log_width": latency.table("interval")["log_width"]}
    fitted = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines())
    assert fitted.keys() == shipped.keys()
    for name, value in fitted.items():
        assert float(value) == pytest.approx(shipped[name], rel=0.03), name


def test_rows_that_were_never_fitted_lie_in_their_intervals(benchmark: Any) -> None:
    """MobileNet v2, ResNet-152 and VGG19 of the same page are predicted by constants that never saw them."""
    width = latency.table("interval")["log_width"]
    held_out = [row for row in benchmark.rows() if row.use == "check"]
    assert [row.model for row in held_out] == ["MobileNet v2", "ResNet-152 V2", "VGG19"]
    for row in held_out:
        for value, published in zip(benchmark.predict(row, latency.fitted()), row.published, strict=True):
            assert abs(math.log(value / published)) <= width


def test_check_fails_where_the_model_is_wrong(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: with a target that nothing meets, the exit code is 1."""
    monkeypatch.setattr(benchmark, "MAX_ERROR", 0.001)
    assert benchmark.main(["--check"]) == 1
    assert benchmark.main([]) == 0


# Multiply-accumulates (millions) and weights (millions) from the papers and the model cards.
_SIZES = {
    "MobileNet v1": (569, 4.2),
    "Inception v1": (1500, 6.6),
    "Inception v4": (12300, 42.6),
    "SqueezeNet": (840, 1.24),
    "VGG16": (15470, 138.3),
    "MobileNet v2": (300, 3.5),
}


@pytest.mark.parametrize("name", _SIZES)
def test_architectures_have_the_published_size(name: str, architectures: Any) -> None:
    """The graphs have the multiply-accumulates and weights that the papers state, within 3 %."""
    graph = architectures.ARCHITECTURES[name](299 if name == "Inception v4" else 224)
    macs = sum(latency._macs(graph, op) for op in graph.ops)
    weights = sum(t.elements for t in graph.tensors if t.name == "weights")
    assert macs / 1e6 == pytest.approx(_SIZES[name][0], rel=0.03)
    assert weights / 1e6 == pytest.approx(_SIZES[name][1], rel=0.03)


@pytest.mark.frameworks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keras_name", "size"),
    [
        ("MobileNet v1", "MobileNet", 224),
        ("DenseNet", "DenseNet121", 224),
        ("ResNet-50 V2", "ResNet50V2", 299),
        ("VGG16", "VGG16", 224),
    ],
)
def test_architectures_are_those_of_keras(name: str, keras_name: str, size: int, architectures: Any) -> None:
    """The kernels' sizes are those of keras.applications, but for the 1001 classes that TF-slim's MobileNet has."""
    import keras

    model = getattr(keras.applications, keras_name)(weights=None, input_shape=(size, size, 3))
    theirs = sorted(math.prod(v.shape) for v in model.trainable_variables if len(v.shape) > 1)
    graph = architectures.ARCHITECTURES[name](size)
    ours = sorted(t.elements for t in graph.tensors if t.name == "weights")
    if name == "MobileNet v1":
        ours[ours.index(1024 * 1001)] = 1024 * 1000
        ours.sort()
    assert ours == theirs


def test_a_large_architecture_is_described_quickly(architectures: Any) -> None:
    """Weights take no memory: VGG16 with 138 million of them is built in well under a second."""
    started = time.perf_counter()
    architectures.ARCHITECTURES["VGG16"](224)
    assert time.perf_counter() - started < 1
