"""Untrusted files run no code and write nothing outside: each kind crafted for real, on the commands that read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge import artifact
from edge.apps import aar
from edge.apps.bundle import ExportOptions
from edge.apps.export import export
from edge.errors import ArtifactError, DataError, SourceError
from edge.targets.torch_mobile.session import read_contract
from tests import hostile_files
from tests.fuzz import corpus
from tests.hostile_files import KINDS, MARKER, object_npz

ROOT = Path(__file__).resolve().parents[1]


def edgekit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with the marker set; no code of the file may make it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARKER: str(cwd / "executed")}
    command = [sys.executable, "-m", "edge", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


def refused(done: subprocess.CompletedProcess[str], cwd: Path) -> None:
    assert not (cwd / "executed").exists(), "the file's code was run"
    assert done.returncode in (2, 3, 4), done.stderr
    assert "Traceback" not in done.stderr
    assert "a bug of edgekit" not in done.stderr


def whole(folder: Path) -> Path:
    """Write an artifact that a command takes."""
    folder.mkdir()
    for name, data in corpus.artifact_files().items():
        (folder / name).write_bytes(data)
    return folder


def resealed(folder: Path, name: str) -> None:
    """Give a changed file's digest to the manifest, as an attacker would."""
    held = json.loads((folder / "manifest.json").read_text())
    for record in held["files"]:
        if record["path"] == name:
            record |= {"sha256": artifact.sha256(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(held))


def test_the_payload_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever unpickles the payload runs its code: the tests below would notice."""
    monkeypatch.setenv(MARKER, str(tmp_path / "executed"))
    hostile_files.believed(hostile_files.pickled())
    assert (tmp_path / "executed").exists()


def hostile(kind: str, folder: Path) -> str:
    """Write a hostile file in a process of its own, whose frameworks the test does not need."""
    command = [sys.executable, "-m", "tests.hostile_files", kind, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARKER: os.devnull}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return Path(done.stdout.splitlines()[-1]).name


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("kind", list(KINDS))
def test_no_command_runs_the_code_of_a_model(kind: str, tmp_path: Path) -> None:
    """build, inspect, init and diagnose refuse a hostile model in words, and its code is not run."""
    name = hostile(kind, tmp_path)
    object_npz(tmp_path / "data.npz")
    commands = (
        ("init", name, "--target", "rpi4", "-o", "made.toml"),
        ("inspect", name),
        ("build", name, "--target", "rpi4", "--calibration", "data.npz", "--shape", "x=1,4"),
        ("diagnose", name, "--target", "rpi4", "--calibration", "data.npz"),
    )
    for command in commands:
        refused(edgekit(*command, cwd=tmp_path), tmp_path)


def test_pickles_in_data_are_not_loaded(tmp_path: Path) -> None:
    """Arrays of objects are pickles: as calibration data and as evaluation data they are refused."""
    (tmp_path / "net.tflite").write_bytes(corpus.tflites()[0])
    object_npz(tmp_path / "data.npz")
    done = edgekit("build", "net.tflite", "--target", "rpi4", "--calibration", "data.npz", cwd=tmp_path)
    refused(done, tmp_path)
    assert "never unpickled" in done.stderr
    whole(tmp_path / "a")
    refused(edgekit("check", "a", "--evaluation", "data.npz", "--latency", "none", cwd=tmp_path), tmp_path)
    refused(edgekit("diagnose", "a", "--calibration", "data.npz", cwd=tmp_path), tmp_path)


def test_pickles_in_golden_vectors_are_not_loaded(tmp_path: Path) -> None:
    """Golden vectors of an artifact from elsewhere are untrusted as well: check and export refuse them."""
    folder = whole(tmp_path / "a")
    object_npz(folder / "golden.npz")
    resealed(folder, "golden.npz")
    refused(edgekit("check", "a", "--latency", "none", cwd=tmp_path), tmp_path)
    refused(edgekit("export", "a", "--platform", "android", "-o", "app", cwd=tmp_path), tmp_path)
    assert not (tmp_path / "app").exists()


def test_a_tampered_program_is_refused_before_an_interpreter_sees_it(tmp_path: Path) -> None:
    """A program with a wild offset and the right digest is refused by check, inspect, build and compare --device."""
    folder = whole(tmp_path / "a")
    data = bytearray((folder / "model.tflite").read_bytes())
    root = int.from_bytes(data[:4], "little")
    data[root : root + 4] = (2**31 - 1).to_bytes(4, "little")
    (folder / "model.tflite").write_bytes(bytes(data))
    resealed(folder, "model.tflite")
    for command in (
        ("check", "a", "--latency", "none"),
        ("inspect", "a"),
        ("inspect", "a/model.tflite", "--target", "coral"),
        ("build", "a/model.tflite", "--target", "rpi4", "--recipe", "float32"),
        ("compare", "a", "a", "--device", "local"),
    ):
        done = edgekit(*command, cwd=tmp_path)
        refused(done, tmp_path)
        assert "not a valid LiteRT flatbuffer" in done.stderr


# --- nothing is written outside ----------------------------------------------------------------------------------


def test_a_link_that_leads_out_of_an_artifact_is_refused(tmp_path: Path) -> None:
    """An artifact cannot name a file elsewhere by a link, be its digest right."""
    folder = whole(tmp_path / "a")
    outside = tmp_path / "secret"
    (folder / "model.tflite").rename(outside)
    (folder / "model.tflite").symlink_to(outside)
    with pytest.raises(ArtifactError, match="leads out of the artifact"):
        artifact.read(folder)


def test_names_from_models_stay_names(tmp_path: Path) -> None:
    """An export of a model whose names are paths writes below its folder only."""
    folder = whole(tmp_path / "a")
    text = (folder / "manifest.json").read_text()
    for name in ("net", "y", "x"):
        text = text.replace(f'"name": "{name}"', f'"name": "../../../escape_{name}"')
    (folder / "manifest.json").write_text(text)
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "app")}
    for platform in ("android", "ios", "cpp", "python", "web"):
        try:
            export(folder, tmp_path / "app" / platform, ExportOptions(platform=platform))
        except ArtifactError:
            continue
    after = {p for p in tmp_path.rglob("*") if not p.is_relative_to(tmp_path / "app")}
    assert before == after


def test_a_models_name_is_no_path_of_the_artifact(tmp_path: Path) -> None:
    """Names of a source's own outputs are never part of a path of the build."""
    from tests.tflite_builder import GraphBuilder, f32

    builder = GraphBuilder()
    x = builder.input("../../x", (1, 4))
    builder.output(builder.fully_connected(x, f32([[1, 2, 3, 4]]), name="/etc/y"), "/etc/y")
    (tmp_path / "net.tflite").write_bytes(builder.build())
    done = edgekit("build", "net.tflite", "--target", "linux", "--recipe", "float32", "--latency", "none", "-o", "out",
                   "-q", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"net.tflite", "out"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["net-linux"]


def test_an_archive_with_libraries_is_read_not_unpacked(tmp_path: Path) -> None:
    """`doctor aar` writes nothing, whatever an entry is called, and a bomb does not fill the memory."""
    path = tmp_path / "x.aar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("../../escape", b"x")
        made.writestr("jni/arm64-v8a/liba.so", corpus.elf() + bytes(1 << 28))
    assert [library.ok for library in aar.check(path)] == [True]
    assert [p.name for p in tmp_path.iterdir()] == ["x.aar"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError):
        aar.check(path)


def test_a_member_that_says_to_be_longer_than_the_archive_is_refused(tmp_path: Path) -> None:
    """A `.ptl` whose directory gives the contract more bytes than the file has ends in words, not at the file's end."""
    data = bytearray(corpus.torch_mobile_files()[0])
    entry = data.rindex(b"PK\x01\x02")  # the last member's, which is the contract: sizes at bytes 20 and 24
    data[entry + 20 : entry + 28] = 2 * (10**6).to_bytes(4, "little")
    (tmp_path / "m.ptl").write_bytes(data)
    with pytest.raises(SourceError, match=r"is no \.ptl file"):
        read_contract(tmp_path / "m.ptl")
