"""edge.artifact: whole or not at all, and what does not match its digest is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge import artifact, codec, errors
from edge.artifact import Manifest, Metrics, SourceRecord
from edge.signature import Signature, TensorSpec

SIGNATURE = Signature(inputs=(TensorSpec(name="x", shape=(1, 4)),), outputs=(TensorSpec(name="y", shape=(1, 2)),))


def manifest() -> Manifest:
    return Manifest(
        edgekit="0",
        created="2026-01-01T00:00:00Z",
        name="net",
        target="linux",
        runtime="litert",
        recipe={},
        recipe_name="int8",
        quantizer="none",
        source=SourceRecord(name="net.keras", kind="keras", digest="0" * 64),
        calibration=None,
        evaluation=None,
        tools={},
        source_signature=SIGNATURE,
        signature=SIGNATURE,
        metrics=Metrics(),
        budgets={},
        verdict="unchecked",
        reasons=(),
        findings=(),
    )


def write(folder: Path, content: bytes = b"program") -> None:
    with artifact.writing(folder) as work:
        (work / "model.tflite").write_bytes(content)
        artifact.write_manifest(work, manifest(), {"model.tflite": "program"})


def test_an_artifact_reads_back_as_written(tmp_path: Path) -> None:
    """What was written is what is read: manifest and files."""
    write(tmp_path / "a")
    opened = artifact.read(tmp_path / "a")
    assert opened.manifest.source_signature == SIGNATURE
    assert opened.program.read_bytes() == b"program"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """An exception while writing leaves neither the folder nor a temporary one."""
    with pytest.raises(RuntimeError), artifact.writing(tmp_path / "a") as work:
        (work / "model.tflite").write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_in_the_middle_keeps_the_old_artifact(tmp_path: Path) -> None:
    """Ctrl-C while an artifact is replaced leaves the old one as it was."""
    write(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), artifact.writing(tmp_path / "a") as work:
        (work / "model.tflite").write_bytes(b"new")
        raise KeyboardInterrupt
    assert artifact.read(tmp_path / "a").program.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_artifact_is_replaced_by_a_newer_one(tmp_path: Path) -> None:
    """A second build into the same folder takes its place."""
    write(tmp_path / "a", b"old")
    write(tmp_path / "a", b"new")
    assert artifact.read(tmp_path / "a").program.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    """A folder that is no artifact is never replaced."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(errors.OutputError, match="holds other files"):
        write(tmp_path / "a")
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """An output path that is a file is an OutputError."""
    (tmp_path / "a").write_text("")
    with pytest.raises(errors.OutputError, match="is a file"):
        artifact.check_destination(tmp_path / "a")


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path) -> None:
    """ENOSPC becomes DiskFullError (exit 3); /dev/full is a disk that is always full."""
    full = Path("/dev/full")
    with (
        pytest.raises(errors.DiskFullError, match="No space is left") as caught,
        artifact.translating_os_errors(tmp_path),
        full.open("wb", buffering=0) as stream,
    ):
        stream.write(b"x")
    assert caught.value.exit_code == 3


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    """A file that does not match its digest is an ArtifactError that names it."""
    write(tmp_path / "a")
    (tmp_path / "a" / "model.tflite").write_bytes(b"pr0gram")
    with pytest.raises(errors.ArtifactError, match=r"model\.tflite does not match its digest"):
        artifact.read(tmp_path / "a")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that the manifest names and that is gone is an ArtifactError."""
    write(tmp_path / "a")
    (tmp_path / "a" / "model.tflite").unlink()
    with pytest.raises(errors.ArtifactError, match="missing"):
        artifact.read(tmp_path / "a")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    """A manifest that names a file outside of its folder is refused before the file is opened."""
    write(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][0]["path"] = name
    path.write_text(json.dumps(data))
    with pytest.raises(errors.ArtifactError, match="outside of the artifact"):
        artifact.read(tmp_path / "a")


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path: Path) -> None:
    """A manifest may name anything: a name too long for the file system is refused in words."""
    write(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][0]["path"] = "a" * 5000
    path.write_text(json.dumps(data))
    with pytest.raises(errors.ArtifactError, match="is missing from the artifact"):
        artifact.read(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}', "[" * 100_000])
def test_a_broken_manifest_is_one_message(tmp_path: Path, text: str) -> None:
    """Whatever a manifest holds, reading it gives an ArtifactError."""
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(errors.ArtifactError):
        artifact.read(tmp_path)


def test_no_artifact_says_what_to_give(tmp_path: Path) -> None:
    """A folder without manifest is an ArtifactError with a hint."""
    with pytest.raises(errors.ArtifactError, match=r"no manifest\.json") as caught:
        artifact.read(tmp_path)
    assert "edgekit build" in str(caught.value.hint)


def test_equal_contents_give_equal_manifests() -> None:
    """The manifest's JSON depends on its values only."""
    one, two = (codec.dumps(codec.to_json(manifest())) for _ in range(2))
    assert one == two
    assert codec.from_json(Manifest, json.loads(one)) == manifest()
    assert codec.dumps(codec.to_json(replace(manifest(), name="other"))) != one
