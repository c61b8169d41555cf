"""The latency that is predicted for a Raspberry Pi: arithmetic, refusals, cross-validation on published numbers."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError
from edge.targets import registry
from edge.targets.litert import flatbuffer
from edge.targets.litert.work import predicted_latency, work_of
from edge.targets.roofline import Board, Roofline, Work, load_of, milliseconds, predict, roofline_of
from tests.small_models import classifier

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
BOARDS = ("rpi-zero2", "rpi3", "rpi4", "rpi5")


def board(**changes: float) -> Board:
    """Return a board of round numbers."""
    values: dict[str, Any] = {
        "clock_mhz": 1000.0, "cores": 4, "cache_kb": 1024.0, "dense_float32": 2.0, "dense_int8": 8.0,
        "dense_uint8": 4.0, "depthwise_float32": 1.0, "depthwise_int8": 2.0, "core_gb_per_s": 2.0,
        "memory_gb_per_s": 4.0, "cache_bytes_per_cycle": 1e9, "operator_kcycles": 10.0, "scaling": 1.0,
        "overlap_loss": 0.5,
    }  # fmt: skip
    return Board(**{**values, **changes})


def dense(macs: int = 0, parameter_bytes: int = 0, arithmetic: Any = "float32") -> Work:
    """Return a convolution's work."""
    return Work(kernel="dense", arithmetic=arithmetic, macs=macs, parameter_bytes=parameter_bytes)


def ms(work: list[Work], threads: int = 1, **changes: float) -> float:
    """Return the predicted time on the board of round numbers."""
    made = board(**changes)
    return milliseconds(load_of(work, made.cache_kb), made, threads)


def test_compute_bound_operator_takes_its_macs_at_the_rate() -> None:
    """200 M MACs at 2 a cycle of 1 GHz are 100 ms, and 10,000 cycles of overhead are 0.01 ms."""
    assert ms([dense(200_000_000)]) == pytest.approx(100.01)


def test_memory_bound_operator_takes_its_bytes_at_the_bandwidth() -> None:
    """8 MB of parameters at 2 GB/s are 4 ms; what is hidden of 1 ms of arithmetic costs half of it."""
    assert ms([dense(2_000_000, 8_000_000)]) == pytest.approx(4.01 + 0.5)


def test_bandwidth_is_shared_by_the_cores() -> None:
    """Four threads get 4 GB/s together, not 8: 8 MB take 2 ms."""
    assert ms([dense(0, 8_000_000)], threads=4) == pytest.approx(2.01)


def test_a_program_that_fits_into_the_cache_needs_no_memory() -> None:
    """100 kB of parameters stay in a cache of 1 MiB."""
    assert ms([dense(2_000_000, 100_000)]) == pytest.approx(1.01)


@pytest.mark.parametrize(("arithmetic", "wanted"), [("float32", 100.01), ("int8", 25.01), ("uint8", 50.01)])
def test_each_dtype_has_its_rate(arithmetic: str, wanted: float) -> None:
    """uint8 does not use dot products, so it has a rate of its own."""
    assert ms([dense(200_000_000, arithmetic=arithmetic)]) == pytest.approx(wanted)


@given(st.integers(0, 10**9), st.integers(0, 10**8), st.integers(1, 8), st.sampled_from(["float32", "int8", "uint8"]))
def test_more_work_never_takes_less_time(macs: int, parameters: int, threads: int, arithmetic: str) -> None:
    """Time grows with MACs and bytes, and does not grow with threads."""
    base = ms([dense(macs, parameters, arithmetic)], threads)
    assert 0 < base <= ms([dense(macs + 10**6, parameters + 10**5, arithmetic)], threads)
    assert ms([dense(macs, parameters, arithmetic)], threads + 1) <= base * (1 + 1e-12)


def test_what_nobody_published_widens_the_interval() -> None:
    """Kernels without a published latency, and very small programs, may be off by a further factor of two."""
    line = Roofline(board=board(), log_width=0.3, rate=0.8)
    seen = predict([dense(100_000_000)], line, [4])["threads_4"]
    unseen = predict([replace(dense(100_000_000), published=False)], line, [4])["threads_4"]
    small = predict([dense(1_000_000)], line, [4])["threads_4"]
    assert seen.high / seen.value == pytest.approx(math.exp(0.3))
    wide = math.exp(math.hypot(0.3, math.log(2)))
    assert [i.high / i.value for i in (unseen, small)] == pytest.approx([wide, wide])


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_of_the_catalogue_has_a_prediction(name: str, tmp_path: Path) -> None:
    """All threads of the target first, then one thread, each inside of its interval; one thread is not faster."""
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier())
    found = predicted_latency(path, registry.target(name))["latency_ms"]
    assert list(found) == ["threads_4", "threads_1"]
    assert all(0 < i["low"] < i["value"] < i["high"] and i["rate"] == 0.8 for i in found.values())
    assert found["threads_4"]["value"] <= found["threads_1"]["value"]


def test_targets_without_a_roofline_have_none(tmp_path: Path) -> None:
    """Nothing is said for a phone or for this machine."""
    path = tmp_path / "m.tflite"
    path.write_bytes(classifier())
    assert predicted_latency(path, registry.target("android")) == {}


def test_a_faulty_table_is_refused_with_its_names() -> None:
    """A user's own board must give every constant as a positive number."""
    table = {"clock_mhz": 1500, "cores": 4, "roofline": {"cache_kb": -1, "dense_int8": "fast"}}
    with pytest.raises(ConfigError, match=r"my-board: hardware.roofline needs positive numbers for cache_kb, dense_fl"):
        roofline_of(table, "my-board")


def _dynamic(position: int) -> list[flatbuffer.Graph]:
    graph = flatbuffer.graph(flatbuffer.load(classifier()))
    first, *rest = graph.tensors
    shape = list(first.shape)
    shape[position] = -1
    return [replace(graph, tensors=(replace(first, signature_shape=tuple(shape)), *rest))]


def test_a_dynamic_batch_is_one_and_other_dimensions_are_refused() -> None:
    """What a program costs is known only where its shapes are."""
    assert work_of(_dynamic(0))[1] is None
    assert work_of(_dynamic(1)) == ((), "it has dynamic dimensions")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module."""
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pi_latency")


@pytest.mark.parametrize(
    ("model", "size", "macs"),
    [
        ("MobileNet v1", 224, 569e6),
        ("MobileNet v2", 224, 300e6),
        ("MobileNet v3 large", 224, 219e6),
        ("MobileNet v3 small", 224, 56e6),
    ],
)
def test_the_architectures_have_the_published_work(model: str, size: int, macs: float, benchmark: Any) -> None:
    """Multiply-accumulates as the papers state them, within 2 %."""
    assert float(benchmark.load_on("a72", model, size, "int8").macs.sum()) == pytest.approx(macs, rel=0.02)


@pytest.mark.slow
def test_cross_validation_and_catalogue_agree(benchmark: Any) -> None:
    """Models of unseen families are hit within 35 % on average, and covered at the rate; the catalogue has that fit."""
    table = benchmark.rows()
    outcomes = benchmark.cross_validate(table)
    width = benchmark.log_width(outcomes)
    assert benchmark.mean_error(outcomes) < benchmark.MAX_ERROR
    assert benchmark.coverage(outcomes, width) >= benchmark.RATE
    for name, values in benchmark.fitted(table, outcomes).items():
        assert dict(registry.target(name).hardware["roofline"]) == pytest.approx(values, rel=0.01)
