"""The runtimes' Android programs: what they print, in recorded words of several years, whole and cut off."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.devices import runners, tool_output
from edge.devices.base import Completed, DeviceFacts, DeviceSpec, parse
from edge.devices.check import check_on_device
from edge.devices.fake import FakeDevice
from edge.devices.programs import describe
from edge.devices.tools_agent import ToolsAgent
from edge.errors import ConfigError, DeviceError
from edge.measure.latency_record import PROFILES
from edge.targets.litert.session import open_program
from tests import board_setup
from tests.small_models import classifier, labelled_data

# Logs that users have published: tensorflow#42507 (2020), google/XNNPACK#999 (2021), ChromeOS' mlbenchmark (2023),
# and an older one of 2019.
BENCHMARK_2021 = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [yolo_best_recall_int8_static.tflite]
#threads used for CPU inference: [4]
Loaded model yolo_best_recall_int8_static.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
The input model file size (MB): 3.67827
Initialized session in 18.777ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=9 first=64791 curr=56295 min=54873 max=65831 avg=57758.2 std=4065

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=58154 curr=53809 min=53077 max=60727 avg=55043.2 std=1562

Inference timings in us: Init: 18777, First inference: 64791, Warmup (avg): 57758.2, Inference (avg): 55043.2
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory \
footprint of the model at runtime. Take the information at your discretion.
Memory footprint delta from the start of the tool (MB): init=8.97656 overall=18.7227
"""
BENCHMARK_2023 = """INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
VERBOSE: Replacing 58 out of 58 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions.
INFO: Initialized session in 3.337ms.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115
INFO: count=1061 first=56576 curr=56299 min=54669 max=60236 avg=56265.8 std=982
INFO: Inference timings in us: Init: 3337, First inference: 81913, Warmup (avg): 58984.7, Inference (avg): 56265.8
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
"""
BENCHMARK_2019 = """Loaded model /data/local/tmp/tflite/tfmodel/mobilenet_v1_1.0_224_quant.tflite
resolved reporter
Initialized session in 9.933ms
Running benchmark for at least 4 iterations and at least 0.5 seconds
count=7 first=127425 curr=66709 min=66709 max=127425 avg=76605.9 std=20944

Running benchmark for at least 10 iterations and at least 1 seconds
count=15 first=66753 curr=66800 min=66699 max=66838 avg=66767.6 std=39

Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6
"""
# google-ai-edge/LiteRT#2013 (2025).
RUN_MODEL = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1689520440.064678   15029 run_model.cc:150] Model: /data/local/tmp/w/efficientnet_b0_compiled.tflite
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
I0000 00:00:1689520440.503551   15029 run_model.cc:179] Signature index: 0
I0000 00:00:1689520440.503730   15029 run_model.cc:181] Prepare input buffers
I0000 00:00:1689520440.504714   15029 run_model.cc:208] Run model for 50 times
I0000 00:00:1689520440.561801   15029 run_model.cc:217] First run took 2719 microseconds
I0000 00:00:1689520440.562003   15029 run_model.cc:218] Slowest run took 2719 microseconds
I0000 00:00:1689520440.562056   15029 run_model.cc:221] Fastest run took 1075 microseconds
I0000 00:00:1689520440.562121   15029 run_model.cc:224] All runs took average 1134 microseconds
I0000 00:00:1689520440.562192   15029 run_model.cc:230] Model run completed
"""
# Written after executor_runner.cpp of 2026: no published log of this version was found.
EXECUTOR = """I 00:00:00.000961 executorch:executor_runner.cpp:350] Resetting threadpool with num threads = 1
I 00:00:00.004012 executorch:executor_runner.cpp:420] Model file /data/local/tmp/m.pte is loaded.
I 00:00:00.011000 executorch:executor_runner.cpp:560] Model loaded in 6.953125 ms.
I 00:00:00.019000 executorch:executor_runner.cpp:680] Iteration 1 of 3: 8.250000 ms
I 00:00:00.024000 executorch:executor_runner.cpp:680] Iteration 2 of 3: 5.000000 ms
I 00:00:00.029000 executorch:executor_runner.cpp:680] Iteration 3 of 3: 4.750000 ms
I 00:00:00.029500 executorch:executor_runner.cpp:690] Model executed successfully 3 time(s) in 18.000000 ms.
I 00:00:00.029600 executorch:executor_runner.cpp:700] 1 outputs:
OutputX 0: tensor(sizes=[1, 4], [-0.509859, 0.300644, 0.0953884, 0.147724])
"""


def test_benchmark_model_of_2021() -> None:
    """The second count line is of the measured runs; times become milliseconds."""
    told = tool_output.benchmark_model(BENCHMARK_2021)
    assert told == tool_output.ToolTiming(
        runs=50, mean_ms=55.0432, min_ms=53.077, max_ms=60.727, std_ms=1.562, first_ms=64.791, load_ms=18.777
    )


def test_benchmark_model_of_2023_and_2019() -> None:
    """Lines with a level in front, the peak of memory, and the older words for the averages are read too."""
    told, old = tool_output.benchmark_model(BENCHMARK_2023), tool_output.benchmark_model(BENCHMARK_2019)
    assert told is not None
    assert (told.runs, told.peak_kib) == (1061, 95476)
    assert told.mean_ms == pytest.approx(56.2658)
    assert old is not None
    assert (old.runs, old.mean_ms, old.min_ms, old.load_ms) == (15, 66.7676, 66.699, 9.933)


def test_benchmark_model_with_equal_runs() -> None:
    """A line of equal runs has no min and max; large numbers come with an exponent."""
    told = tool_output.benchmark_model(
        "count=2 curr=1500000 (all same)\nInference timings in us: Init: 5, First inference: 1500000, Warmup (avg): "
        "1.5e+06, Inference (avg): 1.5e+06\n"
    )
    assert told is not None
    assert (told.runs, told.mean_ms, told.min_ms, told.max_ms) == (2, 1500.0, 1500.0, 1500.0)


def test_run_model_and_executor_runner() -> None:
    """The average of run_model, and the single runs of executor_runner."""
    assert tool_output.run_model(RUN_MODEL) == tool_output.ToolTiming(
        runs=50, mean_ms=1.134, min_ms=1.075, max_ms=2.719, first_ms=2.719
    )
    told = tool_output.executor_runner(EXECUTOR)
    assert told is not None
    assert (told.runs, told.mean_ms, told.samples_ms, told.load_ms) == (3, 6.0, (8.25, 5.0, 4.75), 6.953125)


@pytest.mark.parametrize("name", sorted(tool_output.PARSERS))
@given(data=st.data())
def test_a_log_that_is_cut_off_is_no_measurement(name: str, data: st.DataObject) -> None:
    """Cut anywhere, a log gives nothing or the numbers of the whole log, never a part of a number."""
    whole = {"benchmark_model": BENCHMARK_2023, "run_model": RUN_MODEL, "executor_runner": EXECUTOR}[name]
    parser = tool_output.PARSERS[name]
    wanted, told = parser(whole), parser(whole[: data.draw(st.integers(0, len(whole)))])
    assert wanted is not None
    if told is not None:
        assert (told.runs, told.mean_ms, told.min_ms, told.max_ms) == (
            wanted.runs,
            wanted.mean_ms,
            wanted.min_ms,
            wanted.max_ms,
        )
        assert told.peak_kib in (None, wanted.peak_kib)


@given(st.text(max_size=300))
def test_foreign_text_is_no_measurement(text: str) -> None:
    """Whatever a shell prints instead, the parsers say that there is nothing."""
    assert [parser(text) for parser in tool_output.PARSERS.values()] == [None, None, None]


class _Phone(FakeDevice):
    """A phone whose benchmark_model computes with LiteRT of this host, and writes as the real one does."""

    def __init__(self, options: Mapping[str, str], model: Path | None = None, code: int = 0, log: str = "") -> None:
        super().__init__(lambda values: values, facts=DeviceFacts(model="Phone", machine="arm64-v8a"))
        self.spec = DeviceSpec(kind="adb", address="R58M", options=options)
        self._session = open_program(model, kernels="xnnpack", threads=1) if model else None
        self._code, self._log = code, log

    def run(self, command: Sequence[str], *, timeout_s: float = 0, stdin: bytes = b"") -> Completed:
        self.commands.append((tuple(command), timeout_s))
        if command[0] == "sha256sum":
            return Completed(
                code=0, stdout=f"{hashlib.sha256(b'tool').hexdigest()}  {command[1]}\n".encode(), stderr=b""
            )
        words = dict(word.removeprefix("--").split("=", 1) for word in command[1:])
        if self._session is not None and "output_filepath" in words:
            path = Path(words["input_layer_value_files"].partition(":")[2])
            (spec,) = self._session.signature.inputs
            shape = [int(d) for d in words["input_layer_shape"].split(",")]
            found = self._session.run({spec.name: np.frombuffer(path.read_bytes(), spec.dtype).reshape(shape)})
            Path(words["output_filepath"]).write_bytes(b"".join(v.tobytes() for v in found.values()))
        return Completed(code=self._code, stdout=b"", stderr=self._log.encode())


def test_outputs_come_back_from_benchmark_model(tmp_path: Path) -> None:
    """Inputs travel as raw files by the tensor's name, outputs come back as raw bytes and equal the host's."""
    model = tmp_path / "net.tflite"
    model.write_bytes(classifier())
    session = open_program(model, kernels="xnnpack", threads=1)
    program = describe(model, runtime="litert", kernels="xnnpack", threads=1, signature=session.signature)
    samples = [{"x": row[None]} for row in labelled_data()["x"][:3]]
    with _Phone({"benchmark_model": "/data/local/tmp/benchmark_model"}, model, log=BENCHMARK_2023) as phone:
        agent, facts = runners.choose(phone, "litert")
        found = list(agent.run(program, samples))
        assert isinstance(agent, ToolsAgent)
        told = agent.statistics(program, PROFILES["smoke"])
    assert (agent.runner, facts.model) == ("tools", "Phone")
    assert [o["y"].tolist() for o in found] == [session.run(s)["y"].tolist() for s in samples]
    assert (told["tool"], told["runs"], told["sha256"]) == (
        "benchmark_model",
        1061,
        hashlib.sha256(b"tool").hexdigest(),
    )


def test_a_check_by_run_model_says_what_was_not_checked(tmp_path: Path) -> None:
    """run_model gives no outputs: times are reported, golden vectors and accuracy are said to be unchecked."""
    path, data = board_setup.built_artifact(tmp_path)
    with _Phone({"run_model": "/data/local/tmp/run_model"}, log=RUN_MODEL) as phone:
        record: dict[str, Any] = check_on_device(path, phone, evaluation=str(data))
    assert [f["rule"] for f in record["findings"]] == ["NOT_CHECKED"]
    assert (record["golden"], record["accuracy"], record["latency"]) == (None, None, None)
    assert (record["tool"]["tool"], record["tool"]["mean_ms"]) == ("run_model", 1.134)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"benchmark_model": "/t/b", "benchmark_model_sha256": "0" * 64}, 0, "devices.toml declares 000"),
        ({"executor_runner": "/t/e"}, 0, "No program that runs litert models is named"),
        ({"benchmark_model": "/t/b"}, 139, "benchmark_model was ended by SIGSEGV on the device"),
        ({"benchmark_model": "/t/b"}, 126, "may not be run"),
        ({"benchmark_model": "/t/b"}, 1, "failed with exit code 1"),
        ({"benchmark_model": "/t/b"}, 0, "told no times"),
    ],
)
def test_what_can_go_wrong_with_a_tool(tmp_path: Path, options: dict[str, str], code: int, message: str) -> None:
    """A wrong digest, no program for the runtime, a crash, no permission, a failure and silence are told apart."""
    model = tmp_path / "net.tflite"
    model.write_bytes(classifier())
    signature = open_program(model, kernels="reference", threads=1).signature
    program = describe(model, runtime="litert", kernels="xnnpack", threads=1, signature=signature)
    with _Phone(options, code=code) as phone, pytest.raises(DeviceError, match=message):
        ToolsAgent(phone, "litert").statistics(program, PROFILES["smoke"])


def test_tools_are_named_in_devices_toml() -> None:
    """The paths and digests are keys of an entry; any other word is refused with the accepted ones."""
    spec = parse("phone", {"phone": {"device": "adb:R58M", "benchmark_model": "/data/local/tmp/b"}})
    assert spec.options["benchmark_model"] == "/data/local/tmp/b"
    with pytest.raises(ConfigError, match="benchmark: no such key"):
        parse("phone", {"phone": {"device": "adb:R58M", "benchmark": "/x"}})


def test_an_unknown_runner_is_refused() -> None:
    """The accepted runners are named."""
    with _Phone({}) as phone, pytest.raises(ConfigError, match="accepted: auto, python, native, tools"):
        runners.choose(phone, "litert", runner="fast")
