"""`edgekit profile` and `edgekit compare --device`: the stopwatch, the controls that it restores, and the records."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from edge import profiling
from edge.cli.outcome import run as edgekit
from edge.devices import stopwatch
from edge.devices.programs import describe
from edge.errors import ConfigError, DeviceError
from edge.measure import trace
from edge.measure.trace import Reading
from edge.signature import Signature, TensorSpec
from tests import board_setup

ROOT = Path(__file__).resolve().parents[1]
GUARDED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import stopwatch
with stopwatch.controlled({"governor": True}, Path(sys.argv[2])) as done:
    print(done[0]["taken"], flush=True)
    time.sleep(float(sys.argv[3]))
"""
NET = """
import torch
def make():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    return net.eval(), (torch.zeros(1, 3, 8, 8),)
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the artifact of a small classifier."""
    return board_setup.built_artifact(tmp_path_factory.mktemp("profiled"), "linux")[0]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the lock of the local device to the test."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def governors(tmp_path: Path) -> Iterator[Path]:
    """Return a folder as cpufreq's with one policy on ondemand."""
    folder = tmp_path / "cpufreq" / "policy0"
    folder.mkdir(parents=True)
    (folder / "scaling_governor").write_text("ondemand")
    (folder / "scaling_available_governors").write_text("ondemand performance")
    yield folder.parent


def _governor(root: Path) -> str:
    return (root / "policy0" / "scaling_governor").read_text()


def _guarded(root: Path, seconds: float) -> subprocess.Popen[str]:
    folder = str(Path(stopwatch.__file__).parent)
    command = [sys.executable, "-c", GUARDED, folder, str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_governor_is_set_and_restored(governors: Path) -> None:
    """It is performance inside, ondemand before and after, and what was done is told."""
    with stopwatch.controlled({"governor": True}, governors) as done:
        assert _governor(governors) == "performance"
    assert _governor(governors) == "ondemand"
    assert done == [{"control": "governor policy0", "before": "ondemand", "set": "performance", "taken": True}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_governor_is_restored_when_the_process_is_killed(governors: Path, number: signal.Signals) -> None:
    """Ctrl-C, kill and kill -9: a process of its own restores it."""
    with _guarded(governors, 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert _governor(governors) == "performance"
        process.send_signal(number)
        process.wait(10)
    deadline = time.monotonic() + 5
    while _governor(governors) != "ondemand" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _governor(governors) == "ondemand"


def test_a_governor_that_may_not_be_set_is_told(governors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not take it, the measurement goes on and says so."""
    monkeypatch.setattr(stopwatch, "write", lambda *_: False)
    with stopwatch.controlled({"governor": True}, governors) as done:
        assert _governor(governors) == "ondemand"
    assert [d["taken"] for d in done] == [False]


def test_nothing_is_set_unasked(governors: Path) -> None:
    """Without controls no file is touched."""
    with stopwatch.controlled({"governor": False, "cpus": []}, governors) as done:
        assert _governor(governors) == "ondemand"
    assert done == []


def test_power_of_a_raspberry_pi_5_is_the_sum_over_its_rails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Current times voltage of each rail that has both; the 5 V input has a voltage only and does not count."""
    lines = (
        "  3V3_SYS_A current(1)=0.5A\\n VDD_CORE_A current(7)=2.0A\\n"
        "  3V3_SYS_V volt(9)=3.3V\\n VDD_CORE_V volt(15)=0.75V\\n EXT5V_V volt(24)=5.1V\\n"
    )
    tool = tmp_path / "vcgencmd"
    tool.write_text(f'#!/bin/sh\n[ "$1" = pmic_read_adc ] && printf "{lines}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert stopwatch.pmic_watts() == pytest.approx(0.5 * 3.3 + 2.0 * 0.75)
    assert stopwatch.Meter().source == "pmic"


def test_power_of_a_discharging_battery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Microamperes times microvolts; while it is charged it tells nothing of the phone's use."""
    battery = tmp_path / "battery"
    battery.mkdir()
    for name, text in (("type", "Battery"), ("current_now", "-500000"), ("voltage_now", "4000000")):
        (battery / name).write_text(text)
    monkeypatch.setattr(stopwatch, "POWER_SUPPLY", tmp_path)
    (battery / "status").write_text("Discharging")
    assert stopwatch.battery_watts() == pytest.approx(2.0)
    (battery / "status").write_text("Charging")
    assert stopwatch.battery_watts() is None


def test_energy_is_power_times_time() -> None:
    """4 W while running, 3 W idle, 10 ms: 40 mJ an inference, 10 of them above idle; without a source nothing."""
    readings = [Reading(at_s=0.0, power_w=9.0), Reading(at_s=1.0, power_w=3.5), Reading(at_s=2.0, power_w=4.5)]
    found = trace.energy(readings, "pmic", [3.0, 3.0], 10.0)
    assert found is not None
    assert (found.running_w, found.per_inference_mj, found.net_mj, found.readings) == (4.0, 40.0, 10.0, 2)
    assert trace.energy(readings, None, [], 10.0) is None


def test_throttling_in_the_middle_is_invalid() -> None:
    """A board that was throttled between two quiet ends is found by its trace."""
    readings = [Reading(at_s=float(s), throttled=0x4 if s == 30 else 0) for s in range(60)]
    (found,) = trace.reasons(readings, strict=False)
    assert (found.rule, found.severity) == ("THROTTLED_DURING", "invalid")
    assert "30 s after the start" in found.message


@pytest.mark.parametrize(("strict", "severity"), [(True, "invalid"), (False, "warning")])
def test_a_falling_frequency_is_told(strict: bool, severity: str) -> None:
    """From 1800 to 1200 MHz in the last third: a strict profile is invalid, a short one has a warning."""
    readings = [
        Reading(at_s=float(s), frequencies_khz={"policy0": 1_800_000 if s < 35 else 1_200_000}) for s in range(50)
    ]
    (found,) = trace.reasons(readings, strict=strict)
    assert (found.rule, found.severity) == ("FREQUENCY_FELL", severity)
    assert found.message == "the frequency of policy0 fell from 1800 to 1200 MHz"


def test_operators_are_merged_over_runs() -> None:
    """The middle half of the runs gives the time; a run with another list of operators does not count."""
    runs = [[("delegate", "Conv", us), ("builtin", "SOFTMAX", 1)] for us in (10, 11, 12, 900)]
    merged = stopwatch.merged([*runs, [("delegate", "Conv", 5)]])
    assert [(o["name"], o["mean_us"], o["runs"]) for o in merged] == [("Conv", 11.5, 4), ("SOFTMAX", 1.0, 4)]


def test_profile_of_an_artifact_here(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Latency with a verdict, cold start by phases, memory, time per operator, and the raw samples, in one record."""
    arguments = ["profile", str(artifact), "--profile", "smoke", "--per-op", "--json", "-q", "-o", str(tmp_path / "p")]
    assert edgekit(arguments, debug=False) in (0, 3)
    record = json.loads(capsys.readouterr().out)
    jsonschema.validate(record, json.loads((ROOT / "edge/report/schemas/profile.schema.json").read_text()))
    latency, cold = record["latency"], record["cold"]
    assert (record["device"], record["mode"], latency["verdict"] in ("valid", "valid_with_warnings", "invalid")) == (
        "local",
        "measured",
        True,
    )
    assert latency["median_low_ms"] <= latency["median_ms"] <= latency["median_high_ms"]
    assert cold["total_ms"] > cold["start_ms"] + cold["load_ms"] + cold["first_ms"]
    assert record["memory"]["peak_kib"] >= record["memory"]["loaded_kib"] > record["memory"]["before_kib"]
    assert [o["index"] for o in record["operators"]] == list(range(len(record["operators"])))
    assert "OPERATORS_TOO_SHORT" in [f["rule"] for f in record["findings"]]
    assert 0 < record["spans"]["run_ms"] < 2 * latency["median_ms"]
    samples = np.load(record["samples_file"])["samples_ns"]
    assert np.median(samples) / 1e6 == pytest.approx(latency["median_ms"])
    assert json.loads(Path(record["samples_file"]).with_suffix(".json").read_text()) == record


def test_an_artifact_is_no_slower_than_itself(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate passes, and the record fits its schema."""
    arguments = ["compare", str(artifact), str(artifact), "--device", "local", "--max-slowdown", "20%", "--json", "-q"]
    assert edgekit([*arguments, "-o", str(artifact.parent / "c")], debug=False) == 0
    record = json.loads(capsys.readouterr().out)
    jsonschema.validate(record, json.loads((ROOT / "edge/report/schemas/comparison.schema.json").read_text()))
    assert record["outcome"] in ("no slower", "undecided")
    assert record["threshold"] == 0.2
    assert np.load(record["samples_file"])["samples_ns"].shape[1] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "a", "b", "--max-slowdown", "5%"], "--max-slowdown is about a measurement."),
        (["compare", "a", "b", "c", "--device", "local"], "compare --device takes two artifacts; 3 were given."),
        (["compare", "a", "b", "--device", "local", "--max-slowdown", "x"], "--max-slowdown is"),
        (["profile", "a", "--profile", "long"], "profile 'long' is unknown; accepted: smoke, quick, standard,"),
        (["profile", "a", "--threads", "0"], "threads are 0; accepted: 1 to 256"),
        (["profile", "a", "--cpus", "big"], "--cpus is 'big'; accepted: numbers of processors, such as 2,3"),
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake has its message and exit code 2, before anything is measured."""
    assert edgekit(arguments, debug=False) == 2
    assert message in capsys.readouterr().err


def test_a_pattern_that_names_several_devices_is_no_place_to_measure(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement takes one device."""
    (tmp_path / "devices.toml").write_text('[a]\ndevice = "local"\n[b]\ndevice = "local"\n')
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.toml"))
    with pytest.raises(ConfigError, match="stands for 2 devices; a measurement takes one"):
        profiling.profile(artifact, profiling.Request(device="all-of:*", output=None))


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a device without Python: this host."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler is installed")
    (tmp_path / "devices.toml").write_text('[bare]\ndevice = "local"\npython = "/nowhere/python3"\n')
    monkeypatch.setenv("EDGEKIT_DEVICES", str(tmp_path / "devices.toml"))
    monkeypatch.setenv("EDGEKIT_CACHE", str(board_setup.PLACE))
    return "bare"


def test_a_device_without_python_is_timed_by_the_native_runner(artifact: Path, bare: str) -> None:
    """Latency with its verdict, its parts and the memory; what needs Python there is said not to be told."""
    record = profiling.profile(artifact, profiling.Request(device=bare, profile="smoke", per_op=True, output=None))
    assert record.latency is not None
    assert record.spans is not None
    assert (record.runner, record.mode, record.cold, record.energy) == ("native", "measured", None, None)
    assert record.latency["samples"] >= 64
    assert 0 < record.spans["run_ms"] <= record.latency["p90_ms"]
    assert {"NATIVE_RUNNER", "NO_OPERATOR_TIMES"} <= {f.rule for f in record.findings}
    with pytest.raises(DeviceError, match="takes no --cpus"):
        profiling.profile(artifact, profiling.Request(device=bare, cpus=(0,), output=None))


def test_a_device_without_python_compares(artifact: Path, bare: str) -> None:
    """The native runner lets two programs take turns too: a program is no slower than itself."""
    found = profiling.compare(artifact, artifact, profiling.Request(device=bare, threshold=0.2, output=None))
    assert found.runner == "native"
    assert found.outcome in ("no slower", "undecided")
    assert found.groups == 4 * found.launches


def test_programs_of_other_runtimes_are_refused(tmp_path: Path) -> None:
    """A .ptl or Core ML program is told what can measure it."""
    end = TensorSpec(name="x", shape=(1, 4), dtype="float32")
    signature = Signature(inputs=(end,), outputs=(end,))
    with pytest.raises(DeviceError, match=r"torch_mobile \(.ptl\) are not run on devices; accepted: .tflite") as caught:
        describe(tmp_path / "m.ptl", runtime="torch_mobile", kernels="builtin", threads=1, signature=signature)
    assert "edgekit check ARTIFACT --latency quick" in str(caught.value.hint)


@pytest.mark.frameworks
@pytest.mark.slow
def test_profile_of_a_pte_here(tmp_path: Path) -> None:
    """ExecuTorch's program starts cold, is timed, and has a time per operator of its backend."""
    (tmp_path / "net.py").write_text(NET)
    arguments = ["build", f"{tmp_path}/net.py:make", "--target", "linux", "--runtime", "executorch", "-q"]
    assert (
        edgekit([*arguments, "--recipe", "float32", "--latency", "none", "-o", str(tmp_path / "out")], debug=False) == 0
    )
    made = next((tmp_path / "out").glob("*/manifest.json"), tmp_path / "out/manifest.json").parent
    record = profiling.profile(made, profiling.Request(profile="smoke", per_op=True, output=None))
    assert (record.runtime, record.runner) == ("executorch", "python")
    assert record.cold is not None
    assert record.cold["total_ms"] > record.cold["import_ms"] > 0
    assert record.operators
    assert any("Convolution" in o.name and o.place == "XnnpackBackend" for o in record.operators)


@pytest.mark.slow
def test_an_emulated_board_compares_instructions(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio of a program to itself is exactly 1, and its profile has instructions and no latency."""
    with board_setup.emulated() as cache:
        monkeypatch.setenv("EDGEKIT_CACHE", str(cache))
        request = profiling.Request(device="emulator:rpi4", output=tmp_path)
        profile = profiling.profile(artifact, request)
        if profile.instructions is None:
            pytest.skip(profile.findings[-1].message)
        found = profiling.compare(artifact, artifact, request)
    assert (profile.mode, profile.latency, profile.samples_file) == ("emulated", None, None)
    assert found.ratio is not None
    assert (found.ratio.ratio, found.outcome, found.unit, found.mode) == (1.0, "no slower", "instructions", "emulated")
    assert found.reference_instructions == profile.instructions["total"]
