"""`--mlflow` and `edgekit history`: each check is a run of a real MLflow store, numbers keep their modes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge import artifact, history
from edge.artifact import Artifact
from edge.errors import ConfigError, ToolError
from tests.test_report import LATENCY
from tests.test_verdict import with_accuracy

pytest.importorskip("mlflow")


def made(folder: Path, name: str = "net") -> Artifact:
    """Return a written artifact with accuracy, latency and memory."""
    m = replace(with_accuracy(0.02, 0.03), name=name, tools={"ai-edge-litert": "2.3.0"})
    predicted = {"usb3": {"value": 0.4, "low": 0.2, "high": 0.8}}
    m = replace(
        m,
        metrics=replace(m.metrics, latency=LATENCY, predicted_latency=predicted, memory={"arena_bytes": 128}),
    )
    with artifact.writing(folder / name) as work:
        (work / "model.tflite").write_bytes(b"program")
        artifact.write_manifest(work, m, {"model.tflite": "program"})
    return artifact.read(folder / name)


def test_a_check_is_read_back_as_it_was_logged(tmp_path: Path) -> None:
    """Parameters, verdict, device, and metrics whose names end with their mode come back, with the manifest beside."""
    store = str(tmp_path / "runs")
    (logged,) = history.log([made(tmp_path)], store)
    (run,) = history.read(store)
    assert run.id == logged
    assert run.params["name"] == "net"
    assert run.params["tool.ai-edge-litert"] == "2.3.0"
    assert (run.tags["verdict"], run.tags["device"]) == ("unchecked", "local")
    assert run.metrics["top1.quantized.emulated"] == pytest.approx(0.88)
    assert run.metrics["latency.median_ms.emulated"] == 1.5
    assert run.metrics["latency.usb3_ms.predicted"] == 0.4
    assert "latency.p99_ms.emulated" not in run.metrics
    assert all(name.endswith(("measured", "emulated", "predicted", "size_bytes")) for name in run.metrics)
    assert list((tmp_path / "runs").rglob("manifest.json"))


def test_the_newest_is_first(tmp_path: Path) -> None:
    """Two checks in turn are listed the later one first."""
    store = str(tmp_path / "runs")
    for name in ("first", "second"):
        history.log([made(tmp_path, name)], store)
    assert [r.params["name"] for r in history.read(store)] == ["second", "first"]


def test_an_empty_place_has_no_history_and_is_not_made(tmp_path: Path) -> None:
    """Reading where nothing was logged gives nothing and creates nothing."""
    assert history.read(str(tmp_path / "none")) == []
    assert not (tmp_path / "none").exists()


def test_an_unknown_scheme_is_refused() -> None:
    """An address that MLflow cannot have is refused with what is accepted."""
    with pytest.raises(ConfigError, match="accepted: a folder"):
        history.address("gopher:x")
    assert history.address("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


def test_a_server_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    """A refused connection ends in an error that names the address, soon."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ToolError, match=f"MLflow at http://127.0.0.1:{port}"):
        history.log([made(tmp_path)], f"http://127.0.0.1:{port}")


def test_the_command_filters(tmp_path: Path) -> None:
    """`edgekit history --name` shows only that model, as JSON and for people."""
    store = str(tmp_path / "runs")
    history.log([made(tmp_path, "one"), made(tmp_path, "two")], store)
    code = [sys.executable, "-c", "from edge.cli import main; main()", "history", "--mlflow", store, "--name", "two"]
    listed = subprocess.run([*code, "--json"], capture_output=True, text=True, timeout=120, check=True)
    assert [r["params"]["name"] for r in json.loads(listed.stdout)["runs"]] == ["two"]
    shown = subprocess.run(code, capture_output=True, text=True, timeout=120, check=True)
    assert "two linux litert int8  unchecked  on local" in shown.stdout
    assert "one" not in shown.stdout
