"""Every reader of edgekit in one line each: what it reads, how that is broken, and the call that a command makes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge import (
    anchors,
    artifact,
    checkup,
    history,
    inspection,
    isolate,
    jobs,
    parcel,
    postprocess_options,
    project,
    reproduction,
)
from edge.apps import aar, bundle, writer
from edge.apps.bundle import ExportOptions
from edge.artifact import Artifact
from edge.budgets import Budgets
from edge.cache import Store
from edge.calibration.data import open_dataset
from edge.cli import report
from edge.content import Digests
from edge.devices import attach, base, client, lock, native_agent, profiling, stopwatch_client, tool_output
from edge.devices.fake import FakeDevice
from edge.devices.programs import DeviceProgram
from edge.errors import EdgekitError
from edge.measure.latency_record import PROFILES
from edge.profiling import recorded
from edge.report import comparison, console
from edge.sources import keras_file, sniff
from edge.sources import registry as sources
from edge.targets import registry
from edge.targets.edgetpu import compiler_log, package
from edge.targets.torch_mobile import session as torch_mobile
from tests.fuzz import corpus, mutators, stage_readers
from tests.fuzz.harness import Reader
from tests.fuzz.stage_readers import ROOT, made
from tests.small_models import labelled_data

_target = functools.cache(registry.target)


def _inspect(target: str | None = None, **options: Any) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        found = _target(target) if target else None
        request = inspection.Request(target=found, options=options)
        return inspection.inspect(path, str(path), request, isolate.no_progress)

    return read


# --- artifacts ---------------------------------------------------------------------------------------------------


def _rest(path: Path, *, sealed: bool = True) -> Path:
    """Write the other files of the artifact; with `sealed` the manifest has the digest of the broken file."""
    files = {name: data for name, data in corpus.artifact_files().items() if name != path.name}
    if sealed and path.name != artifact.MANIFEST:
        held = json.loads(files[artifact.MANIFEST])
        for record in held["files"]:
            if record["path"] == path.name:
                record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        files[artifact.MANIFEST] = json.dumps(held).encode()
    for name, data in files.items():
        (path.parent / name).write_bytes(data)
    return path.parent


_ANSWER: dict[str, Any] = {"accuracy": None, "parity": None, "findings": []}


def _shown(opened: Artifact) -> None:
    """Show an artifact in every form; a form that refuses it leaves the others to be tried."""
    tasks: list[Callable[[], object]] = [
        *(lambda form=form: report.rendered([opened], [form]) for form in report.FORMS.values()),
        lambda: console.show(opened),
        lambda: comparison.show([opened, opened]),
        lambda: reproduction._project(opened, reproduction.Places(), opened.path),
        lambda: reproduction.compare(opened, opened),
        lambda: history._run(opened),
        lambda: checkup._checked(opened, _ANSWER, None, "emulated", Budgets(), checkup.target_of(opened.manifest)),
    ]
    refused = None
    for task in tasks:
        try:
            task()
        except EdgekitError as error:
            refused = error
    if refused:
        raise refused


def _exported(folder: Path) -> None:
    from edge.apps.export import export

    for platform in ("android", "python"):
        export(folder, folder.parent / "in" / "app", ExportOptions(platform=platform), force=True)


def _manifest(path: Path) -> None:
    _shown(artifact.read(_rest(path)))


def _manifest_export(path: Path) -> None:
    _exported(_rest(path))


def _placement(path: Path) -> None:
    _shown(artifact.read(_rest(path)))


def _golden(path: Path) -> None:
    bundle.make(artifact.read(_rest(path)), ExportOptions(platform="python"))


def _export_list(path: Path) -> None:
    writer.write(path.parent, {"a.txt": b"a"}, {})


def _answer_of_stage(path: Path) -> None:
    isolate._result("stage", 0, path, path.with_suffix(".log"))


def _cache_entry(path: Path) -> None:
    key = path.parent.name
    (path.parent / "files").mkdir()
    Store(path.parents[1]).load(key, path.parents[1] / "root", Digests())
    Store(path.parents[1].parent).entries()


def _entry() -> list[bytes]:
    from edge import cache

    key = "ab" + "0" * 62
    held = {"key": key, "stage": "s", "bytes": 3, "result": {"path": "@root@/x"}, "files": {}, "opened": {}}
    return [cache._sealed(held).encode()]


# --- data --------------------------------------------------------------------------------------------------------


def _data(path: Path) -> None:
    for sample in open_dataset(str(path), corpus.SIGNATURE, role="evaluation"):
        sample.inputs["x"].sum()


def _anchors(path: Path) -> None:
    anchors.read_file(path)


def _postprocess(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        postprocess_options.from_table(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError):
        postprocess_options.from_text(text.replace("\n", ",").replace('"', "").replace(" ", ""))


def _labels(path: Path) -> None:
    bundle._labels(path, ())
    project.resolve({"source": "m.tflite", "targets": ["rpi4"], "labels": path.name})


def _parcel(path: Path) -> None:
    content = path.read_bytes()
    place = path.parent / "unpacked"
    place.mkdir()
    parcel.unpack([parcel.Parcel(path="a", digest="", content=content)], place)


def _packed() -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "net"
        folder.mkdir()
        (folder / "model.tflite").write_bytes(bytes(700))
        (folder / "manifest.json").write_text("{}")
        return [parcel.pack(folder, Path(place)).content]


def _image(path: Path) -> None:
    from edge.calibration.data_folder import load_image

    load_image(path)


def _sound(path: Path) -> None:
    from edge.calibration.data_folder import load_wav

    load_wav(path)


# --- settings ----------------------------------------------------------------------------------------------------


def _project(path: Path) -> None:
    project.resolve(project.flat(project.read_file(path)))


def _devices(path: Path) -> None:
    os.environ["EDGEKIT_DEVICES"] = str(path)
    for name in attach.named():
        try:
            base.parse(name, attach.named())
        except EdgekitError:
            continue
    attach.resolve("all-of:*")


# --- devices -----------------------------------------------------------------------------------------------------


class _Odd(FakeDevice):
    """A device that answers with the bytes of a file, whatever it is asked, and sends that file back."""

    def __init__(self, answer: bytes, sent: Path) -> None:
        super().__init__(lambda inputs: inputs)
        self._answer = answer
        self._sent = sent

    def run(self, command: Any, *, timeout_s: float = 0.0, stdin: bytes = b"") -> base.Completed:
        """Answer."""
        asked = json.loads(stdin)["id"] if stdin else 1
        return base.Completed(code=0, stdout=self._answer.replace(b'"id": 1,', b'"id": %d,' % asked), stderr=b"")

    def pull(self, remote: str, local: Path) -> None:
        """Send the file."""
        local.write_bytes(self._sent.read_bytes())


ENVIRONMENT = {"temperature_c": 40.0, "frequency_mhz": 1500.0}
TOLD = {
    "load_ms": 1.0,
    "first_ms": 2.0,
    "runs": 3,
    "duration_s": 0.1,
    "warm_up_runs": 1,
    "warm_up_stable": True,
    "clock": "fake",
    "timer_overhead_ns": 10,
    "before": {},
    "after": {},
    "shapes": [[1, 4]],
    "samples": 1,
    "before_kib": 1,
    "loaded_kib": 2,
    "peak_kib": 3,
    "starts": [{"total": 1.0}],
    "operators": [{"name": "x", "place": "CPU", "mean_us": 1.0, "runs": 3}],
    "trace": [
        {
            "at_s": 0.1 * i,
            "frequencies_khz": {"0": 1500000},
            "temperatures_c": {"cpu": 40.0},
            "throttled": 0,
            "power_w": 3.0,
        }
        for i in range(4)
    ],
    "power_source": "sensor",
    "idle_w": [2.0, 2.1],
    "spans": {"copy_in_ms": 0.1, "run_ms": 1.0, "read_back_ms": 0.1},
    "memory": {"before_kib": 1, "loaded_kib": 2, "peak_kib": 3},
    "controls": [],
    "model": "Pi",
    "machine": "aarch64",
    "cpus": 4,
    "runtimes": {"ai_edge_litert": "2.3.0"},
}


def _line(head: str) -> bytes:
    return json.dumps({head: 1, "id": 1, "ok": True, "result": TOLD}).encode() + b"\n"


def _agent_answers() -> list[bytes]:
    wrong = {"edgekit": 1, "id": 1, "ok": False, "error": {"kind": "crash", "message": "it crashed", "tail": "words"}}
    return [_line("edgekit"), json.dumps(wrong).encode() + b"\n"]


def _profile_answers() -> list[bytes]:
    return [_line("edgekit")]


def _job_answers() -> list[bytes]:
    return [b'{"verdict": "pass"}', b'{"error": {"message": "m", "hint": null}}', b'[{"artifact": "a"}]']


def _native_answers() -> list[bytes]:
    return [_line("edgekit-native")]


def _profile(path: Path) -> None:
    """Make and show the record of a profile from what a device answers, as `edgekit profile` does."""
    opened = Artifact(path=path.parent, manifest=corpus.manifest())
    sample = {"x": np.zeros((1, 16), np.float32)}
    subject = profiling.Subject(artifact=opened, program=_program(path.parent), sample=sample)
    sent = path.parent / "sent"
    sent.write_bytes(_sent_back()[0])
    with _Odd(path.read_bytes(), sent) as device:
        told, _ = profiling.profile_on_device(subject, device, profiling.Settings(profile="smoke", per_op=True))
    recorded(subject, told, name="x", stands_in=False, samples_file=None)


def _lock(path: Path) -> None:
    with path.open("r", errors="replace") as stream:
        assert lock._told(stream).startswith(("process", "an unknown"))


def _job(path: Path) -> None:
    done = jobs._done(jobs.Job(name="j", arguments=()), 0, path.read_text(errors="replace"), [])
    assert done.record is not None or done.error is not None


def _program(folder: Path) -> DeviceProgram:
    path = folder / "model.tflite"
    path.write_bytes(b"program")
    return DeviceProgram(path=path, runtime="litert", kernels="xnnpack", threads=1, signature=corpus.SIGNATURE)


def _asked(agent: client.Agent, folder: Path) -> None:
    sample = {"x": np.zeros((1, 16), np.float32)}
    program = _program(folder)
    tasks: list[Callable[[], object]] = [
        agent.facts,
        lambda: list(agent.run(program, [sample])),
        lambda: agent.measure(program, sample, PROFILES["smoke"]),
        lambda: agent.memory(program, sample),
    ]
    if isinstance(agent, stopwatch_client.Stopwatch):
        watch = agent
        tasks = [
            lambda: watch.profile(program, sample, PROFILES["smoke"], {}),
            lambda: watch.cold(program, sample, 1),
            lambda: watch.operators(program, sample, 1),
            lambda: watch.blocks([program, program], [sample, sample]),
        ]
    refused: EdgekitError | None = None
    for task in tasks:
        try:
            task()
        except EdgekitError as error:
            refused = error
    if refused:
        raise refused


def _agent(make: Callable[[_Odd], client.Agent], *, file: bool = False) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        sent, answer = path.parent / "sent", path.read_bytes()
        sent.write_bytes(bytes(16) if make is _native else _sent_back()[0])
        if file:
            sent, answer = path, _line("edgekit-native" if make is _native else "edgekit")
        with _Odd(answer, sent) as device:
            _asked(make(device), path.parent)

    return read


def _native(device: _Odd) -> client.Agent:
    agent = native_agent.NativeAgent.__new__(native_agent.NativeAgent)
    client.Agent.__init__(agent, device)
    agent._sent_runner = ["runner"]

    class _Made:
        version, distribution = "2.3.0", "ai-edge-litert"

    agent._bundle = _Made()  # type: ignore[assignment]
    return agent


def _sent_back() -> list[bytes]:
    y = np.zeros((1, 1, 4), np.float32)
    times = np.arange(3, dtype=np.int64)
    return [corpus.npz(**{"0": y, "durations": times, "starts": times, "rows": np.zeros((8, 5), np.int64)})]


def _tool_output(path: Path) -> None:
    for parse in tool_output.PARSERS.values():
        parse(path.read_text(errors="replace"))


def _compiler_log(path: Path) -> None:
    compiler_log.parse(path.read_text(errors="replace"))


# --- sources -----------------------------------------------------------------------------------------------------


def _detect(path: Path) -> None:
    sniff.sniff(str(path))
    sources.detect(str(path))


def _cli(*arguments: str) -> Callable[[Path], None]:
    """Run a command on the file, as a user does; only exit codes of edgekit's own errors are right."""

    def read(path: Path) -> None:
        command = [sys.executable, "-m", "edge", *(a.replace("FILE", path.name) for a in arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEKIT_CACHE": str(path.parent / "cache")}
        environment |= {"TMPDIR": str(path.parent)}
        done = subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1, 2, 3, 4) or "Traceback" in done.stderr:
            raise AssertionError(f"exit {done.returncode}: {done.stderr[-2000:]}")
        if done.returncode:
            raise EdgekitError(done.stderr)

    return read


_INIT = ("init", "FILE", "--target", "rpi4", "-o", "made.toml")
_M = mutators
_ALL = (
    Reader(name="tflite", corpus=corpus.tflites, mutate=_M.flatbuffer, read=_inspect(), file="m.tflite"),
    Reader(name="tflite-rpi4", corpus=corpus.tflites, mutate=_M.flatbuffer, read=_inspect("rpi4"), file="m.tflite"),
    Reader(name="tflite-coral", corpus=corpus.tflites, mutate=_M.flatbuffer, read=_inspect("coral"), file="m.tflite"),
    Reader(name="edgetpu", corpus=corpus.compiled_models, mutate=_M.flatbuffer, read=_inspect(), file="m.tflite"),
    Reader(name="edgetpu-package", corpus=corpus.compiled_models, mutate=_M.raw, read=package.read, file="m.tflite"),
    Reader(name="sniff", corpus=corpus.model_files, mutate=_M.raw, read=_detect, accepts=False),
    Reader(name="sniff-archives", corpus=corpus.keras_files, mutate=_M.archive, read=_detect, file="m.keras"),
    Reader(name="keras-config", corpus=corpus.keras_files, mutate=_M.archive, read=keras_file.read_config),
    Reader(name="ptl-contract", corpus=corpus.torch_mobile_files, mutate=_M.archive, read=torch_mobile.read_contract),
    Reader(
        name="manifest",
        corpus=lambda: [corpus.artifact_files()["manifest.json"]],
        mutate=_M.json_text,
        read=_manifest,
        file="manifest.json",
    ),
    Reader(
        name="manifest-export",
        corpus=lambda: [corpus.artifact_files()["manifest.json"]],
        mutate=_M.json_text,
        read=_manifest_export,
        file="manifest.json",
    ),
    Reader(
        name="placement",
        corpus=lambda: [corpus.artifact_files()["placement.json"]],
        mutate=_M.json_text,
        read=_placement,
        file="placement.json",
    ),
    Reader(
        name="golden",
        corpus=lambda: [corpus.artifact_files()["golden.npz"]],
        mutate=_M.archive,
        read=_golden,
        file="golden.npz",
    ),
    Reader(
        name="export-list",
        corpus=lambda: [b'{"schema_version": 1, "files": {"a.txt": "00", "b.txt": "11"}}'],
        mutate=_M.json_text,
        read=_export_list,
        file=".edgekit-export.json",
    ),
    Reader(
        name="stage-answer",
        corpus=lambda: [b'{"result": {"a": 1}}', b'{"error": {"error": "ToolError", "message": "x"}}'],
        mutate=_M.json_text,
        read=_answer_of_stage,
        file="x.json",
        accepts=False,
    ),
    Reader(
        name="cache-entry",
        corpus=_entry,
        mutate=_M.raw,
        read=_cache_entry,
        file="stages/ab/" + "ab" + "0" * 62 + "/entry.json",
    ),
    Reader(name="npz", corpus=corpus.samples, mutate=_M.archive, read=_data, file="d.npz"),
    Reader(
        name="npy",
        corpus=lambda: [corpus.npy(labelled_data()["x"][:5])],
        mutate=_M.raw,
        read=_data,
        file="d.npy",
    ),
    Reader(
        name="anchors-npy",
        corpus=lambda: [corpus.npy(np.ones((6, 4), np.float32))],
        mutate=_M.raw,
        read=_anchors,
        file="a.npy",
    ),
    Reader(name="anchors-text", corpus=lambda: [b"0.5,0.5,1,1\n0.25,0.5,1,2\n"], mutate=_M.text, read=_anchors),
    Reader(name="postprocess", corpus=lambda: [corpus.POSTPROCESS], mutate=_M.text, read=_postprocess),
    Reader(name="labels", corpus=lambda: ["cat\nd\u00f6g\n".encode()], mutate=_M.text, read=_labels),
    Reader(name="parcel", corpus=_packed, mutate=_M.tar, read=_parcel, file="p.tar"),
    Reader(name="job-answer", corpus=_job_answers, mutate=_M.json_text, read=_job),
    Reader(
        name="lock-file",
        corpus=lambda: [b'{"pid": 12, "since": "10:00:00", "command": "check a"}'],
        mutate=_M.json_text,
        read=_lock,
    ),
    Reader(name="csv", corpus=corpus.table, mutate=_M.text, read=_data, file="d.csv", accepts=False),
    Reader(name="image", corpus=corpus.pictures, mutate=_M.raw, read=_image, file="i.png"),
    Reader(name="wav", corpus=lambda: [corpus.sound()], mutate=_M.raw, read=_sound, file="s.wav"),
    Reader(name="aar", corpus=corpus.android, mutate=_M.archive, read=aar.check, file="x.aar"),
    Reader(name="project-toml", corpus=lambda: [corpus.PROJECT], mutate=_M.text, read=_project, file="edgekit.toml"),
    Reader(
        name="target-toml",
        corpus=corpus.target_files,
        mutate=_M.text,
        read=lambda path: registry.target(str(path)),
        file="t.toml",
    ),
    Reader(name="devices-toml", corpus=lambda: [corpus.DEVICES], mutate=_M.text, read=_devices, file="devices.toml"),
    Reader(name="compiler-log", corpus=lambda: [corpus.COMPILER_LOG], mutate=_M.text, read=_compiler_log),
    Reader(name="tool-output", corpus=lambda: [corpus.TOOL_OUTPUT], mutate=_M.text, read=_tool_output),
    Reader(name="agent-answer", corpus=_agent_answers, mutate=_M.json_text, read=_agent(client.Agent), accepts=False),
    Reader(name="native-answer", corpus=_native_answers, mutate=_M.json_text, read=_agent(_native)),
    Reader(
        name="stopwatch-answer",
        corpus=_agent_answers,
        mutate=_M.json_text,
        read=_agent(stopwatch_client.Stopwatch),
        accepts=False,
    ),
    Reader(name="profile-answer", corpus=_profile_answers, mutate=_M.json_text, read=_profile),
    Reader(name="agent-file", corpus=_sent_back, mutate=_M.archive, read=_agent(client.Agent, file=True)),
    Reader(name="native-file", corpus=lambda: [bytes(16)], mutate=_M.raw, read=_agent(_native, file=True)),
    Reader(
        name="stopwatch-file", corpus=_sent_back, mutate=_M.archive, read=_agent(stopwatch_client.Stopwatch, file=True)
    ),
    Reader(
        name="cli-tflite",
        corpus=lambda: corpus.tflites()[:1],  # a build starts from a float model
        mutate=_M.flatbuffer,
        read=_cli(*_INIT),
        file="m.tflite",
        isolated=True,
    ),
    Reader(name="cli-keras", corpus=made("keras"), mutate=_M.archive, read=_cli(*_INIT), file="m.keras", isolated=True),
    Reader(name="cli-h5", corpus=made("h5"), mutate=_M.raw, read=_cli(*_INIT), file="m.h5", isolated=True),
    Reader(name="cli-onnx", corpus=made("onnx"), mutate=_M.raw, read=_cli(*_INIT), file="m.onnx", isolated=True),
    Reader(name="cli-pt2", corpus=made("pt2"), mutate=_M.archive, read=_cli(*_INIT), file="m.pt2", isolated=True),
    Reader(
        name="cli-torchscript",
        corpus=made("torchscript"),
        mutate=_M.archive,
        read=_cli(*_INIT, "--shape", "input=1,8"),
        file="m.pt",
        isolated=True,
    ),
    Reader(
        name="cli-pte", corpus=made("pte"), mutate=_M.raw, read=_cli("inspect", "FILE"), file="m.pte", isolated=True
    ),
    Reader(
        name="cli-ptl",
        corpus=made("ptl"),
        mutate=_M.archive,
        read=_cli("inspect", "FILE"),
        file="m.ptl",
        isolated=True,
    ),
)
READERS = {reader.name: reader for reader in (*_ALL, *stage_readers.READERS)}
