"""Several devices at once, sweeps, and a real Dask cluster on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from edge import cluster, fleet, jobs, parcel, sweep
from edge.cli import again, application
from edge.devices import farm
from edge.errors import ConfigError, ToolError
from edge.isolate import no_progress
from edge.report import fleet as reporting
from tests import board_setup
from tests.small_models import classifier, labelled_data


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return an artifact for the Pi 4 and its labelled data."""
    return board_setup.built_artifact(tmp_path_factory.mktemp("built"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a current folder with a model, a file that is none, and data."""
    (tmp_path / "net.tflite").write_bytes(classifier())
    (tmp_path / "bad.tflite").write_bytes(b"not a model")
    np.savez(tmp_path / "data.npz", **labelled_data())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '[rpi-a]\ndevice = "local"\ntags = ["lab"]\n[rpi-gone]\ndevice = "ssh://pi@127.0.0.1:9"\n'
        '[other]\ndevice = "ssh://pi@127.0.0.1:9"\n'
    )
    (folder / "devices.toml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("EDGEKIT_DEVICES", str(folder / "devices.toml"))


@pytest.mark.parametrize(
    ("codes", "wanted"), [([], 0), ([0, 0], 0), ([0, 1], 1), ([1, 4, 3], 3), ([3, 2], 2), ([2, 70, 0], 70)]
)
def test_the_worst_code_says_most(codes: list[int], wanted: int) -> None:
    """A broken budget is less than a model that cannot be built, that less than a missing device, a bug is worst."""
    assert jobs.worst(codes) == wanted


def test_a_command_is_started_again_with_its_options() -> None:
    """All that was given comes back but for the device; defaults do not, and repeated options do."""
    group: Any = typer.main.get_command(application())
    command = group.commands["check"]
    words = [
        "art",
        "--device",
        "all-of:x",
        "--evaluation",
        "a b.npz",
        "--max-drop",
        "1%",
        "--json",
        "--latency",
        "none",
    ]
    context = command.make_context("check", list(words))
    found = again.arguments(context, without=("device", "json_"))
    assert found == ("--evaluation=a b.npz", "--max-drop=1%", "--latency=none", "--", "art")
    repeated = command.make_context("check", ["--device=local", *found])
    assert again.arguments(repeated, without=("device",)) == found


def test_jobs_end_in_their_order_and_apart() -> None:
    """One job's error is its own: the other prints its record."""
    done = jobs.run(
        [
            jobs.Job(name="bad", arguments=("check", "no-such-folder", "--json")),
            jobs.Job(name="good", arguments=("targets", "--json")),
        ],
        at_once=2,
    )
    assert [d.name for d in done] == ["bad", "good"]
    assert (done[0].record, done[1].error, done[1].code) == (None, None, 0)
    assert done[0].code != 0
    assert "no-such-folder" in (done[0].error or {})["message"]


def test_an_interruption_ends_all_jobs(tmp_path: Path) -> None:
    """Ctrl-C in the middle of several: none of them lives on, and it is over within seconds."""
    (tmp_path / "slow.py").write_text("import time\ndef make():\n    time.sleep(60)\n", encoding="utf-8")
    code = (
        "from edge import jobs\n"
        "words = ('build', 'slow.py:make', '--target', 'rpi4', '--recipe', 'float32')\n"
        "one = lambda n: jobs.Job(name=n, arguments=words)\n"
        "jobs.run([one('a'), one('b'), one('c')], at_once=2)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "EDGEKIT_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(_running(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _running(tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) != 0
    assert _running(tmp_path) == []


def _running(folder: Path) -> list[str]:
    """Return the edgekit commands whose current folder is `folder`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if b"edge" in words and (place / "cwd").resolve() == folder.resolve():
                found.append(place.name)
    return found


def test_one_failing_device_does_not_hide_the_others(
    artifact: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device that is there passes, one that is not is an error with its reason; the code is that of the worst."""
    _devices(tmp_path, monkeypatch)
    record = fleet.check(str(artifact[0]), ("--latency=none", "--", str(artifact[0])), ["rpi-a", "rpi-gone"])
    passed, gone = record["devices"]
    assert (passed["device"], passed["exit_code"], gone["exit_code"], record["exit_code"]) == ("rpi-a", 0, 3, 3)
    assert passed["record"]["board"]["device"] == "rpi-a"
    assert "no ssh server is listening" in gone["error"]["message"]
    reporting.show_devices(record)
    printed = capsys.readouterr().out
    assert "rpi-a" in printed
    assert "no ssh server is listening" in printed


def test_devices_are_listed_with_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry has its state, its tags, and what to do; without probing nothing is connected to."""
    _devices(tmp_path, monkeypatch)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    found = {d.name: d for d in farm.listed()}
    assert (found["rpi-a"].state, found["rpi-a"].tags) == ("ready", ("lab",))
    assert found["rpi-gone"].state == "unreachable"
    assert "Enable ssh on the board" in (found["rpi-gone"].fix or "")
    assert (found["emulator:rpi4"].state, found["emulator:rpi4"].emulated) == ("incomplete", True)
    assert "edgekit emulator setup rpi4" in (found["emulator:rpi4"].fix or "")
    assert {d.name: d.state for d in farm.listed(probe=False)}["rpi-gone"] == "not probed"


def test_every_cell_has_a_folder_of_its_own() -> None:
    """Models of one name in two folders, and targets that are files, do not collide."""
    made = sweep.plan(
        ["a/net.tflite", "b/net.tflite", "m.py:make"], ["rpi4", "x/my.toml"], ["int8"], [], output=Path("o")
    )
    places = [c.place for c in made.cells]
    assert len(places) == len(set(places)) == 6
    assert places[:3] == ["net-rpi4-int8", "net-my-int8", "net-rpi4-int8-2"]
    with pytest.raises(ConfigError, match="needs models and targets"):
        sweep.plan([], ["rpi4"], [], [], output=Path("o"))


def _plan(*models: str) -> sweep.Plan:
    return sweep.plan(models, ["rpi4"], ["float32"], [], output=Path("out"), evaluation="data.npz")


def test_a_sweep_on_this_machine_goes_on_after_a_bad_cell(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The good cell is an artifact with a prediction, the bad one a line with its reason; sweep.json holds both."""
    record = sweep.run(_plan("net.tflite", "bad.tflite"), sweep.LocalScheduler(2))
    good, bad = record["cells"]
    assert (good["exit_code"], bad["exit_code"], record["exit_code"]) == (0, 4, 4)
    assert good["build"]["metrics"]["predicted_latency"]["threads_4"]["rate"] == 0.8
    assert (workplace / "out" / good["artifact"] / "manifest.json").is_file()
    assert "of no known kind" in bad["error"]["message"]
    assert json.loads((workplace / "out/sweep.json").read_text(encoding="utf-8")) == record
    reporting.show_sweep(record)
    assert "of no known kind" in capsys.readouterr().out


def test_a_parcel_keeps_to_its_folder(tmp_path: Path) -> None:
    """Files below the current folder keep their path, others get a place; equal content has one digest."""
    inside, outside, there = tmp_path / "here/sub/a.txt", tmp_path / "b.txt", tmp_path / "there"
    inside.parent.mkdir(parents=True)
    for path in (inside, outside):
        path.write_text(path.name, encoding="utf-8")
    parcels = [parcel.pack(path, tmp_path / "here") for path in (inside, outside)]
    os.utime(inside, (1, 1))
    assert parcel.pack(inside, tmp_path / "here") == parcels[0]
    parcel.unpack(parcels, there)
    assert sorted(p.name for p in there.rglob("*.txt")) == ["a.txt", "b.txt"]
    assert (there / "sub/a.txt").read_text(encoding="utf-8") == "a.txt"
    assert parcels[1].path.startswith("outside/")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Any]:
    """Return a Dask cluster on loopback with two workers in processes of their own, whose folder is another."""
    distributed = pytest.importorskip("distributed")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
        ) as made:
            yield made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_on_a_cluster_survives_the_loss_of_a_worker(
    workplace: Path, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files travel, artifacts come back; a worker that is killed in the middle is told and its cell runs again."""
    said: list[str] = []
    victim = next(iter(scheduler.workers.values()))
    threading.Timer(3.0, lambda: os.kill(victim.pid, signal.SIGKILL)).start()
    plan = _plan("net.tflite", "bad.tflite", "net.tflite")
    record = sweep.run(plan, cluster.DaskScheduler(scheduler.scheduler_address), lambda text, share: said.append(text))
    assert [c["exit_code"] for c in record["cells"]] == [0, 4, 0]
    for cell in (record["cells"][0], record["cells"][2]):
        assert (workplace / "out" / cell["artifact"] / "manifest.json").is_file()
        assert not cell["worker"].endswith(f":{os.getpid()}")
    assert "of no known kind" in record["cells"][1]["error"]["message"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_without_workers_is_told(workplace: Path) -> None:
    """No scheduler, no workers, and workers that all go away: each ends with its message."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as made:
        address = made.scheduler_address
        threading.Timer(2.0, lambda: made.scale(0)).start()
        plan = _plan("net.tflite", "net.tflite")
        ends = dict(cluster.DaskScheduler(address, no_worker_s=2.0).run(plan, no_progress))
        assert any("no worker was left" in (e["error"] or {}).get("message", "") for e in ends.values())
        assert all(e["exit_code"] in (0, 3) for e in ends.values())
        with pytest.raises(ToolError, match="has no workers"):
            list(cluster.DaskScheduler(address).run(plan, no_progress))


def test_an_address_without_a_scheduler_is_refused(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the address, the hint the commands that start a cluster."""
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 1)
    with pytest.raises(ToolError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9") as caught:
        list(cluster.DaskScheduler("tcp://127.0.0.1:9").run(_plan("net.tflite"), no_progress))
    assert "dask worker" in (caught.value.hint or "")
