"""A build end to end on small float flatbuffers: real converter-free source, real quantizer, real interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from edge import artifact, checkup, pipeline, project
from edge.errors import ArtifactError
from edge.report import machine
from tests.small_models import SAMPLES, classifier, labelled_data

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from edge.cli import main; main()"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with net.tflite and data.npz."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "net.tflite").write_bytes(classifier())
    np.savez(folder / "data.npz", **labelled_data())
    return folder


@pytest.fixture(scope="module")
def built(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[artifact.Artifact]:
    """Return artifacts for coral, rpi4 and linux from one build."""
    settings = {
        "source": str(inputs / "net.tflite"),
        "targets": ["coral", "rpi4", "linux"],
        "calibration": str(inputs / "data.npz"),
        "output": str(tmp_path_factory.mktemp("out")),
        "max_drop": "5%",
    }
    return pipeline.build(project.resolve(settings))


def edgekit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def build_arguments(inputs: Path, *more: str) -> list[str]:
    arguments = ["build", str(inputs / "net.tflite"), "--target", "rpi4", "--calibration", str(inputs / "data.npz")]
    return [*arguments, "-q", "--latency", "none", *more]


def test_each_target_gets_an_artifact(built: list[artifact.Artifact]) -> None:
    """One build writes one artifact per target, each with program, carrier, golden vectors, report."""
    assert [a.manifest.target for a in built] == ["coral", "rpi4", "linux"]
    for a in built:
        roles = {f.role for f in a.manifest.files}
        assert {"program", "carrier", "golden", "report"} <= roles
        assert a.manifest.verdict == "pass", a.manifest.reasons


def test_the_modes_are_right(built: list[artifact.Artifact]) -> None:
    """Only the target linux has measured numbers on this host; the others are emulated, boards' latencies predicted."""
    modes = {a.manifest.target: a.manifest.metrics for a in built}
    for target, mode in (("coral", "emulated"), ("rpi4", "emulated"), ("linux", "measured")):
        metrics = modes[target]
        assert metrics.accuracy is not None
        assert metrics.latency is not None
        assert (metrics.accuracy.mode, metrics.latency["mode"]) == (mode, mode)
    assert set(modes["coral"].predicted_latency or {}) == {"usb3", "usb2", "pcie"}
    assert set(modes["rpi4"].predicted_latency or {}) == {"threads_4", "threads_1"}
    assert modes["linux"].predicted_latency is None


def test_samples_that_calibrate_do_not_evaluate(built: list[artifact.Artifact]) -> None:
    """From 200 samples on the two sets are disjoint and together all."""
    m = built[1].manifest
    assert m.calibration is not None
    assert m.evaluation is not None
    assert m.calibration.samples + m.evaluation.samples == SAMPLES
    assert m.metrics.accuracy is not None
    assert m.metrics.accuracy.samples == m.evaluation.samples


def test_golden_vectors_repeat_bit_by_bit(built: list[artifact.Artifact]) -> None:
    """At least eight real inputs with outputs are in each artifact, and the program repeats them."""
    for a in built:
        with np.load(str(a.file("golden"))) as golden:
            assert len(golden["in/x"]) >= 8
            assert golden["in/x"].dtype == np.int8
        checked = checkup.check(a.path, checkup.Request(latency_profile="none"))
        assert not [f for f in checked.manifest.findings if f.rule == "GOLDEN_MISMATCH"]


def test_a_changed_program_is_refused(built: list[artifact.Artifact], tmp_path: Path) -> None:
    """`check` refuses an artifact with one flipped bit in its program."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(built[1].path), str(copy)], check=True)
    data = bytearray((copy / "model.tflite").read_bytes())
    data[-1] ^= 1
    (copy / "model.tflite").write_bytes(data)
    done = edgekit("check", str(copy), cwd=tmp_path)
    assert done.returncode == 4
    assert "does not match its digest" in done.stderr


def test_golden_vectors_of_another_program_are_noticed(built: list[artifact.Artifact]) -> None:
    """A program that computes something else fails its golden vectors."""
    from edge.stages.checking import compare_golden, read_golden
    from edge.targets import registry

    session = registry.runtime("litert").open(built[1].program, kernels="xnnpack", threads=1)
    golden = read_golden(Path(str(built[1].file("golden"))))
    golden["out"]["y"] = np.bitwise_xor(golden["out"]["y"], np.int8(8))
    assert [f.rule for f in compare_golden(session, golden, exact=False)] == ["GOLDEN_MISMATCH"]
    with pytest.raises(ArtifactError, match="other inputs"):
        compare_golden(session, {**golden, "in": {"z": golden["in"]["x"]}}, exact=True)


def test_equal_builds_give_equal_bytes(inputs: Path, tmp_path: Path) -> None:
    """Two builds of the same inputs have the same files and the same manifest but for its time."""
    manifests = []
    for name in ("one", "two"):
        done = edgekit(*build_arguments(inputs, "-o", name), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        data = json.loads((tmp_path / name / "net-rpi4" / "manifest.json").read_text())
        data.pop("created")
        manifests.append(data)
    assert manifests[0] == manifests[1]


def test_json_fits_the_published_schemas(inputs: Path, tmp_path: Path) -> None:
    """What `--json` prints, and the manifest, are valid under the published JSON Schemas, which match the code."""
    from edge import codec

    folder = ROOT / "edge/report/schemas"
    schemas = {name: json.loads((folder / f"{name}.schema.json").read_text()) for name in machine.SCHEMAS}
    for name, cls in machine.SCHEMAS.items():
        assert schemas[name] == codec.json_schema(cls), f"{name}: write the schema file again"
    done = edgekit(*build_arguments(inputs, "-t", "coral", "--json", "-o", "out"), cwd=tmp_path)
    records = json.loads(done.stdout)
    assert [r["target"] for r in records] == ["rpi4", "coral"]
    for record in records:
        jsonschema.validate(record, schemas["build"])
        jsonschema.validate(
            json.loads((Path(tmp_path / record["artifact"]) / "manifest.json").read_text()), schemas["manifest"]
        )
    accuracy = records[0]["metrics"]["accuracy"]
    for key in ("metric", "float", "carrier", "quantized", "drop", "drop_low", "drop_high", "samples", "mode"):
        assert accuracy[key] is not None
    program = str(tmp_path / "out/net-coral/model.tflite")
    done = edgekit("inspect", program, program, "--target", "coral", "--json", cwd=tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 2
    for line in lines:
        jsonschema.validate(line, schemas["inspect"])
        assert [o["index"] for o in line["operators"]] == list(range(len(line["operators"])))


def test_with_an_edgekit_toml_no_argument_is_needed(inputs: Path, tmp_path: Path) -> None:
    """`edgekit init` writes a file with the model's real tensors; with it `edgekit build` needs no argument."""
    assert edgekit("init", str(inputs / "net.tflite"), "-t", "rpi4", "-q", cwd=tmp_path).returncode == 0
    text = (tmp_path / "edgekit.toml").read_text()
    assert "[model.inputs.x]" in text
    assert 'outputs = ["y"]' in text
    data = json.dumps(str(inputs / "data.npz"))
    (tmp_path / "edgekit.toml").write_text(text.replace("[data]\n", f"[data]\ncalibration = {data}\n"))
    done = edgekit("build", "-q", "--latency", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert artifact.read(tmp_path / "edgekit-build" / "net-rpi4").manifest.verdict == "pass"


@pytest.mark.parametrize("recipe", ["float32", "float16", "dynamic", "weight-only", "weight-only-4", "int8", "int8x16"])
def test_every_recipe_builds_and_keeps_the_answers(inputs: Path, tmp_path: Path, recipe: str) -> None:
    """Each recipe gives a program that follows the float source on the evaluation samples."""
    settings = {
        "source": str(inputs / "net.tflite"),
        "targets": ["linux"],
        "calibration": str(inputs / "data.npz"),
        "recipe": recipe,
        "output": str(tmp_path),
        "latency": "none",
    }
    (made,) = pipeline.build(project.resolve(settings))
    accuracy = made.manifest.metrics.accuracy
    assert accuracy is not None
    assert accuracy.drop <= (0.06 if recipe == "weight-only-4" else 0.02)
    assert made.manifest.recipe_name == recipe


@pytest.mark.parametrize("io", ["int8", "uint8", "float32"])
def test_the_ends_have_the_dtype_that_was_asked_for(inputs: Path, tmp_path: Path, io: str) -> None:
    """--io decides the dtype at the program's ends, for Coral too."""
    settings = {
        "source": str(inputs / "net.tflite"),
        "targets": ["coral"],
        "calibration": str(inputs / "data.npz"),
        "io": io,
        "output": str(tmp_path),
        "latency": "none",
    }
    (made,) = pipeline.build(project.resolve(settings))
    signature = made.manifest.signature
    assert [t.dtype for t in (*signature.inputs, *signature.outputs)] == [io, io]
    assert made.manifest.metrics.accuracy is not None
    assert made.manifest.metrics.accuracy.drop <= 0.02


def bad_data(kind: str, folder: Path) -> str:
    data = labelled_data()
    match kind:
        case "shape":
            data["x"] = data["x"][:, :5]
        case "nan":
            data["x"][3, 2] = np.nan
        case "empty":
            (folder / "images").mkdir()
            return str(folder / "images")
        case "text":
            data["x"] = data["x"].astype("<U8")
    np.savez(folder / "bad.npz", **data)
    return str(folder / "bad.npz")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("shape", "accepted"), ("nan", "NaN"), ("empty", "no "), ("text", "dtype"), ("missing", "no such file")],
)
def test_bad_data_is_one_message(inputs: Path, tmp_path: Path, kind: str, message: str) -> None:
    """Data of the wrong shape or dtype, with NaN, empty or missing: exit 2, one message, nothing written."""
    data = "nowhere.npz" if kind == "missing" else bad_data(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = edgekit("build", str(inputs / "net.tflite"), "-t", "rpi4", "--calibration", data, "-q", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message.lower() in done.stderr.lower()
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_quantized_model_is_refused(built: list[artifact.Artifact], inputs: Path, tmp_path: Path) -> None:
    """A model that is int8 already is no source: exit 4 and the way out."""
    done = edgekit(
        "build", str(built[0].program), "-t", "rpi4", "--calibration", str(inputs / "data.npz"), "-q", cwd=tmp_path
    )
    assert done.returncode == 4
    assert "quantized already" in done.stderr or "already quantized" in done.stderr


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that refuses new folders")
def test_a_read_only_output_is_told_before_any_work(inputs: Path, tmp_path: Path) -> None:
    """An output folder that cannot be written is exit 2, before the model is read."""
    done = edgekit(*build_arguments(inputs, "-o", "/sys/kernel/edgekit-out"), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "read-only" in done.stderr


def _can_mount() -> bool:
    done = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="needs user namespaces to make a small disk")
def test_a_full_disk_leaves_nothing(inputs: Path, tmp_path: Path) -> None:
    """On a disk without room the build ends with exit 3 and a plain message, and the disk is as empty as before."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = " ".join(build_arguments(inputs, "-o", str(disk / "out")))
    command = f"{sys.executable} -c 'from edge.cli import main; main()' {arguments}"
    script = f"mount -t tmpfs -o size=8k none {disk} && {command}; code=$?; ls -A {disk}; exit $code"
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "No space is left" in done.stderr
    assert done.stdout == ""


def _children(pid: int) -> set[int]:
    done = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()[1:]]
    found, todo = set(), [pid]
    while todo:
        parent = todo.pop()
        for child, of in pairs:
            if of == parent and child not in found:
                found.add(child)
                todo.append(child)
    return found


@pytest.mark.parametrize("delay", [0.4, 1.2, 2.0])
def test_an_interrupt_leaves_nothing_behind(inputs: Path, tmp_path: Path, delay: float) -> None:
    """Ctrl-C in the middle of a build: exit 130, no output, no child process."""
    work = tmp_path / "tmp"
    work.mkdir()
    environment: dict[str, Any] = {**os.environ, "TMPDIR": str(work)}
    arguments = [*build_arguments(inputs, "-o", str(tmp_path / "out")), "--latency", "standard"]
    process = subprocess.Popen([*COMMAND, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
    # Python itself must have started: what it says of a Ctrl-C before that is not edgekit's.
    while not any(work.iterdir()) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay)
    children = _children(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert list(work.iterdir()) == []
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists() and _running(pid)]


def _running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
