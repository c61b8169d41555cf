"""Several routes for one crossing: their order, the reasons of those that fail, and the operator that is at fault."""

from __future__ import annotations

import ctypes
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import isolate
from edge.errors import ConfigError, ConversionError, MissingPackageError, StageCrashError
from edge.sources import registry, routes
from edge.stages import importing
from tests.tflite_builder import GraphBuilder


def double(path: Path, factor: float = 2.0) -> str:
    """Write y = factor * x as a flatbuffer."""
    builder = GraphBuilder()
    factor_ = builder.const("factor", np.array([factor], np.float32))
    builder.output(builder.op("MUL", [builder.input("x", (1, 4)), factor_], (1, 4)), "y")
    path.write_bytes(builder.build())
    return str(path)


def task(folder: Path) -> routes.Task:
    """Return the task to write a doubling flatbuffer."""
    loaded = registry.load(double(folder / "source.tflite"))
    return routes.Task(loaded=loaded, path=folder / "carrier.tflite", progress=isolate.no_progress)


def refusing(error: Exception) -> Callable[[routes.Task], routes.Findings]:
    """Return a conversion that raises."""

    def convert(_: routes.Task) -> routes.Findings:
        raise error

    return convert


def wrong(task: routes.Task) -> routes.Findings:
    """Write a program that computes something else."""
    double(task.path, 2.5)
    return ()


def right(task: routes.Task) -> routes.Findings:
    """Write the right program."""
    task.loaded.to_litert(task.path)
    return ()


def plant(monkeypatch: pytest.MonkeyPatch, kind: str, carrier: str, **converts: Any) -> None:
    """Let a crossing have these routes, by name."""
    made = tuple(routes.Route(name=n, what=f"the route {n}", convert=c) for n, c in converts.items())
    monkeypatch.setitem(routes.ROUTES, (kind, carrier), made)


def request(folder: Path, source: str, carrier: str, data: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a request of the import stage."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    selected = {"calibration": data, "evaluation": None, "calibration_samples": 4, "evaluation_samples": None}
    declaration = {"layout": "keep"} if carrier == "exported" else {}
    return {
        "source": source,
        "carrier": carrier,
        "declaration": declaration,
        "workdir": str(work),
        "data": selected,
        **more,
    }


def test_the_first_route_that_passes_verification_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that raises and one whose program is wrong are passed over; the answer says which won, and why."""
    raising = refusing(ConversionError("it knows no MUL."))
    plant(monkeypatch, "litert", "litert", first=raising, second=wrong, third=right, fourth=raising)
    answer = importing.import_source(request(tmp_path, double(tmp_path / "m.tflite"), "litert"), isolate.no_progress)
    assert answer["route"]["name"] == "third"
    assert answer["route"]["failed"]["first"] == "it knows no MUL."
    assert "computes something else" in answer["route"]["failed"]["second"]
    (found,) = [f for f in answer["findings"] if f["rule"] == "ROUTE_CHOSEN"]
    assert found["message"].startswith(
        "The model was converted by the route third; others failed before it: first: it knows no MUL.; second: "
    )
    registry.load(answer["carrier"])


def test_all_reasons_are_given_where_no_route_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every route fails the error has the first one's message and hint, and the reasons of the others."""
    first = refusing(ConversionError("it knows no MUL.", hint="Use ADD."))
    plant(monkeypatch, "litert", "litert", first=first, second=refusing(MissingPackageError("no package.")))
    with pytest.raises(ConversionError) as caught:
        routes.cross(task(tmp_path), "litert")
    assert caught.value.message == "it knows no MUL. The other routes failed as well: second: no package."
    assert caught.value.hint == "Use ADD."


def test_what_the_user_has_to_change_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong declaration is no route's fault; a missing package of the first route is said as such."""
    plant(monkeypatch, "litert", "litert", first=refusing(ConfigError("declare a shape")), second=right)
    with pytest.raises(ConfigError, match="declare a shape"):
        routes.cross(task(tmp_path), "litert")
    plant(monkeypatch, "litert", "litert", first=refusing(MissingPackageError("install it")), second=right)
    with pytest.raises(MissingPackageError, match="install it"):
        routes.cross(task(tmp_path), "litert")


def crossing_that_crashes(request: dict[str, Any], progress: isolate.Progress) -> dict[str, Any]:
    """Stage: cross with a first route that reads address 0."""

    def crash(_: routes.Task) -> routes.Findings:
        ctypes.string_at(0)
        return ()

    made = (("first", crash), ("second", right))
    routes.ROUTES["litert", "litert"] = tuple(routes.Route(name=n, what=f"the route {n}", convert=c) for n, c in made)
    return routes.cross(task(Path(request["folder"])), "litert", crashed=request["crashed"]).record()


def test_a_route_that_ends_the_process_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of a converter costs its route, not the build; a crash outside of any route is raised."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))

    def attempt(crashed: dict[str, str]) -> dict[str, Any]:
        asked = {"folder": str(tmp_path), "crashed": crashed}
        return isolate.call("tests.test_sources_routes:crossing_that_crashes", asked, workdir=tmp_path)

    record = routes.past_crashes(attempt, tmp_path)
    assert (record["name"], list(record["failed"])) == ("second", ["first"])
    assert "crossing_that_crashes" in record["failed"]["first"]

    def before(_: dict[str, str]) -> None:
        raise StageCrashError("it died")

    with pytest.raises(StageCrashError, match="it died"):
        routes.past_crashes(before, tmp_path)


def test_every_kind_has_routes_to_both_carriers() -> None:
    """Each built-in kind, and JAX, reaches both carriers; names of routes are unique in a crossing."""
    for kind in (*registry.names(), "jax"):
        for carrier in ("litert", "exported"):
            names = [r.name for r in routes.ROUTES[kind, carrier]]
            assert names and len(set(names)) == len(names)


# --- Faults in converters, by the real path: the import stage with real samples ------------------------------------


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stages of child processes in this one, so that a planted fault is theirs too."""

    def call(stage: str, request: dict[str, Any], **options: Any) -> dict[str, Any]:
        module, _, name = stage.partition(":")
        function = getattr(importlib.import_module(module), name)
        answer: dict[str, Any] = json.loads(json.dumps(function(json.loads(json.dumps(request)), isolate.no_progress)))
        return answer

    monkeypatch.setattr(isolate, "call", call)


def spoil(monkeypatch: pytest.MonkeyPatch, converters: dict[str, Any], kind: str) -> None:
    """Let a converter cut values above 1, which random inputs from 0 to 1 do not show."""
    torch: Any = pytest.importorskip("torch")
    original = converters[kind]

    def wrong(node: Any) -> Any:
        return torch.clamp(original(node), max=1.0)

    monkeypatch.setitem(converters, kind, wrong)


def samples(folder: Path, name: str, shape: tuple[int, ...]) -> str:
    """Write samples from 0 to 20."""
    np.savez(folder / "data.npz", **{name: np.random.default_rng(0).random((4, *shape[1:]), np.float32) * 20})  # type: ignore[arg-type]
    return str(folder / "data.npz")


def small_onnx(folder: Path) -> str:
    """Return x -> Relu (kept) -> Exp-free chain: Relu, then Neg, then Add."""
    from tests.onnx_models import model, node, save

    nodes = [node("Relu", ["x"], ["kept"]), node("Neg", ["kept"], ["turned"]), node("Abs", ["turned"], ["y"])]
    return str(save(model(nodes, {"x": [1, 6]}, ["y"]), folder))


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("carrier", ["litert", "exported"])
def test_a_fault_in_an_onnx_converter_is_named(carrier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX to either carrier: the first operator with another result on real samples is named, not its followers."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("litert_torch")
    importlib.import_module("edge.sources.onnx_graph")  # which registers the converters
    from edge.sources.onnx_node import CONVERTERS

    spoil(monkeypatch, CONVERTERS, "Relu")
    monkeypatch.setitem(routes.ROUTES, ("onnx", carrier), routes.ROUTES["onnx", carrier][:1])
    asked = request(tmp_path, small_onnx(tmp_path), carrier, samples(tmp_path, "x", (1, 6)))
    with pytest.raises(ConversionError) as caught:
        importing.import_source(asked, isolate.no_progress)
    assert "computes something else than the source (4 inputs)" in caught.value.message
    assert "The first operator that differs is Relu (node 'the_Relu', tensor 'kept')." in caught.value.message


@pytest.mark.frameworks
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_process")
def test_a_fault_in_a_litert_converter_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LiteRT to the exported carrier: the operator and its tensor are named."""
    pytest.importorskip("torch")
    importlib.import_module("edge.sources.litert_graph")  # which registers the converters
    from edge.sources.litert_node import CONVERTERS

    builder = GraphBuilder()
    y = builder.op("SQUARE", [builder.input("x", (1, 6))], (1, 6), name="squared")
    y = builder.op("SQRT", [y], (1, 6), name="back")
    builder.output(builder.op("NEG", [y], (1, 6)), "y")
    (tmp_path / "m.tflite").write_bytes(builder.build())
    asked = request(tmp_path, str(tmp_path / "m.tflite"), "exported", samples(tmp_path, "x", (1, 6)))
    assert importing.import_source(asked, isolate.no_progress)["route"]["name"] == "flatbuffer"
    spoil(monkeypatch, CONVERTERS, "SQRT")
    with pytest.raises(ConversionError, match=r"The first operator that differs is SQRT \(tensor 'back'\)\."):
        importing.import_source(asked, isolate.no_progress)
