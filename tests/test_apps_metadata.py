"""Metadata in exported models: TensorFlow Lite's and Core ML's, read back by readers of their own."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.apps import coreml_metadata
from edge.apps.bundle import ExportOptions
from edge.apps.contract import Contract
from edge.apps.export import export
from edge.errors import ArtifactError
from edge.postprocess import Postprocess
from edge.targets.litert import flatbuffer
from tests import apps_artifacts, apps_programs


def _exported(artifact: Path, folder: Path, **options: Any) -> tuple[Contract, bytes]:
    made = export(artifact, folder, ExportOptions(platform="android", **options)).contract
    return made, next(folder.rglob("model.tflite")).read_bytes()


class _Table:
    """A table of a flatbuffer, read by slot as the format's description says, without generated code."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data, self.place = data, place

    def _field(self, slot: int) -> int | None:
        vtable = self.place - int.from_bytes(self.data[self.place : self.place + 4], "little", signed=True)
        size = int.from_bytes(self.data[vtable : vtable + 2], "little")
        if 4 + 2 * slot >= size:
            return None
        offset = int.from_bytes(self.data[vtable + 4 + 2 * slot : vtable + 6 + 2 * slot], "little")
        return self.place + offset if offset else None

    def _far(self, place: int) -> int:
        return place + int.from_bytes(self.data[place : place + 4], "little")

    def number(self, slot: int, kind: str) -> float:
        place = self._field(slot)
        return 0 if place is None else np.frombuffer(self.data, kind, 1, place)[0].item()

    def table(self, slot: int) -> _Table:
        place = self._field(slot)
        assert place is not None
        return _Table(self.data, self._far(place))

    def text(self, slot: int) -> str:
        place = self._field(slot)
        if place is None:
            return ""
        start = self._far(place)
        size = int.from_bytes(self.data[start : start + 4], "little")
        return self.data[start + 4 : start + 4 + size].decode()

    def tables(self, slot: int) -> list[_Table]:
        place = self._field(slot)
        if place is None:
            return []
        start = self._far(place)
        count = int.from_bytes(self.data[start : start + 4], "little")
        return [_Table(self.data, self._far(start + 4 + 4 * i)) for i in range(count)]

    def numbers(self, slot: int, kind: str) -> list[float]:
        place = self._field(slot)
        assert place is not None
        start = self._far(place)
        found = np.frombuffer(self.data, kind, int.from_bytes(self.data[start : start + 4], "little"), start + 4)
        return [float(v) for v in found]


def _metadata(program: bytes) -> _Table:
    model = flatbuffer.load(program)
    (entry,) = [m for m in model.metadata if flatbuffer.text(m.name) == "TFLITE_METADATA"]
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    return _Table(data, int.from_bytes(data[:4], "little"))


def test_tflite_metadata_state_normalisation_and_labels(tmp_path: Path) -> None:
    """(raw / 127.5 - 0.9) / 0.8 is mean 114.75 and std 102; labels follow the model in a stored zip entry."""
    artifact = apps_artifacts.classifier(tmp_path / "a")
    made, program = _exported(artifact, tmp_path / "out", author="A. Uthor", licence="MIT")
    found = _metadata(program)
    assert [found.text(slot) for slot in (0, 4, 5, 7)] == ["four-classes", "A. Uthor", "MIT", "1.0.0"]
    (subgraph,) = found.tables(3)
    (image,), (scores,) = subgraph.tables(2), subgraph.tables(3)
    assert (image.text(0), scores.text(0)) == ("image", "scores")
    content = image.table(3)
    assert (content.number(0, "<i1"), content.table(1).number(0, "<i1")) == (2, 1)  # ImageProperties, RGB
    size = content.table(1).table(1)
    assert (size.number(0, "<u4"), size.number(1, "<u4")) == (10, 12)
    (unit,) = image.tables(4)
    assert unit.number(0, "<i1") == 1  # NormalizationOptions
    np.testing.assert_allclose(unit.table(1).numbers(0, "<f4"), [127.5, 114.75, 140.25], rtol=1e-6)
    np.testing.assert_allclose(unit.table(1).numbers(1, "<f4"), [127.5, 102.0, 153.0], rtol=1e-6)
    (labels,) = scores.tables(6)
    assert (labels.text(0), labels.number(2, "<i1")) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED
        assert archive.read("labels.txt").decode() == "ant\nbee\ncat\ndog\n"
    assert made.model.sha256 == hashlib.sha256(program).hexdigest()
    built = (artifact / "model.tflite").read_bytes()
    assert made.model.built_sha256 == hashlib.sha256(built).hexdigest() != made.model.sha256


def test_metadata_follow_the_order_of_the_graph(tmp_path: Path) -> None:
    """The two-input model's graph takes `state` first, its contract `image`: the tables follow the graph."""
    _, program = _exported(apps_artifacts.two_inputs(tmp_path / "a"), tmp_path / "out")
    (subgraph,) = _metadata(program).tables(3)
    assert [t.text(0) for t in subgraph.tables(2)] == ["state", "image"]


@pytest.mark.parametrize("kind", sorted(apps_artifacts.MAKERS))
def test_metadata_change_no_output(kind: str, tmp_path: Path) -> None:
    """LiteRT runs the packed model, zip behind it included, to the golden bytes."""
    from edge.apps import golden
    from edge.targets.litert.session import LiteRTSession

    made, program = _exported(apps_artifacts.MAKERS[kind](tmp_path / "a"), tmp_path / "out")
    entries = golden.unpack(next((tmp_path / "out").rglob("golden.bin")).read_bytes())
    session = LiteRTSession(program, kernels="xnnpack", threads=1)
    fed = {t.name: np.frombuffer(entries[f"input/{i}/0"], t.dtype).reshape(t.shape) for i, t in enumerate(made.inputs)}
    for o, tensor in enumerate(made.outputs):
        assert session.run(fed)[tensor.name].tobytes() == entries[f"output/{o}/0"]


def test_metadata_are_the_same_again_and_can_be_left_out(tmp_path: Path) -> None:
    """The same export writes the same bytes; --no-metadata packs the program as it was built."""
    artifact = apps_artifacts.detector(tmp_path / "a")
    _, first = _exported(artifact, tmp_path / "1")
    _, second = _exported(artifact, tmp_path / "2")
    assert first == second
    made, plain = _exported(artifact, tmp_path / "3", metadata=False)
    assert plain == (artifact / "model.tflite").read_bytes()
    assert made.model.sha256 == made.model.built_sha256


def test_hostile_texts_survive_in_metadata(tmp_path: Path) -> None:
    """Names arrive unchanged; a label keeps its line, as its breaks become spaces."""
    _, program = _exported(apps_artifacts.nasty(tmp_path / "a"), tmp_path / "out")
    (subgraph,) = _metadata(program).tables(3)
    assert subgraph.tables(2)[0].text(0) == apps_artifacts.NASTY_NAMES[0]
    with zipfile.ZipFile(io.BytesIO(program)) as archive:
        lines = archive.read("labels.txt").decode().split("\n")
    assert lines[:-1] == [" ".join(label.splitlines()) for label in apps_artifacts.NASTY]


# --- Core ML ----------------------------------------------------------------------------------------


def _field(number: int, body: bytes) -> bytes:
    return coreml_metadata._field(number, body)


def _package() -> bytes:
    """A Model with version 9, one input, one output, metadata with an author and a key, and weights of 300 bytes."""
    feature = _field(1, b"image") + _field(3, b"type")
    entry = _field(1, b"kept") + _field(2, b"yes")
    description = _field(1, feature) + _field(10, _field(1, b"out"))
    description += _field(100, _field(3, b"old") + _field(100, entry))
    return b"\x08\x09" + _field(2, description) + _field(502, bytes(300))


def test_core_ml_fields_are_set_and_others_kept() -> None:
    """Author, licence, an input's description and the preview are written; other fields and bytes stay."""
    about = coreml_metadata.Described(
        author="new", licence="MIT", description="d", features={"image": "pixels"}, user={"preview": "x"}
    )
    made = {n: body for n, _, body in coreml_metadata._fields(coreml_metadata.describe(_package(), about))}
    assert made[502] == bytes(300)
    description = list(coreml_metadata._fields(made[2]))
    inputs = {n: body for n, _, body in coreml_metadata._fields(description[0][2])}
    assert inputs == {1: b"image", 2: b"pixels", 3: b"type"}
    fields = [(n, body) for n, _, body in coreml_metadata._fields(description[-1][2])]
    assert {(1, b"d"), (3, b"new"), (4, b"MIT")} <= set(fields)
    keys = sorted(coreml_metadata._key(body) for n, body in fields if n == 100)
    assert keys == [b"kept", b"preview"]
    again = coreml_metadata.describe(coreml_metadata.describe(_package(), about), about)
    assert again == coreml_metadata.describe(_package(), about)


@given(st.binary(max_size=80))
def test_damaged_core_ml_models_are_refused_in_words(data: bytes) -> None:
    """Whatever the bytes are, the answer is a model or an ArtifactError."""
    try:
        assert coreml_metadata.describe(data, coreml_metadata.Described(features={}, user={})) is not None
    except ArtifactError as error:
        assert error.message


def test_previews_are_those_that_xcode_has() -> None:
    """A classifier and a segmentation of images have one, a detector and an audio classifier none."""
    segmentation = Postprocess(kind="segmentation", class_axis=1)
    found = coreml_metadata.preview(segmentation, ("sky", "road"), classifier=False, image=True)
    assert found["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    parameters = json.loads(found["com.apple.coreml.model.preview.parameters"])
    assert (parameters["labels"], len(parameters["colors"])) == (["sky", "road"], 2)
    classification = Postprocess(kind="classification")
    assert coreml_metadata.preview(classification, (), classifier=True, image=True) == {
        "com.apple.coreml.model.preview.type": "imageClassifier"
    }
    assert coreml_metadata.preview(classification, (), classifier=True, image=False) == {}
    assert coreml_metadata.preview(Postprocess(kind="detection"), (), classifier=False, image=True) == {}


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("kind", sorted(apps_artifacts.MAKERS))
def test_coremltools_reads_the_exported_package(kind: str, tmp_path: Path) -> None:
    """The protocol buffer of coremltools has author, licence and the features' texts; the weights are the build's."""
    artifact = apps_programs.folder() / "coreml" / kind
    made = export(artifact, tmp_path / "out", ExportOptions(platform="ios", author="A. Uthor", licence="MIT"))
    package = next((tmp_path / "out").rglob("model.mlpackage"))
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model.FromString((package / coreml_metadata.MODEL).read_bytes())
    before = Model_pb2.Model.FromString((artifact / "model.mlpackage" / coreml_metadata.MODEL).read_bytes())
    fields = spec.description.metadata
    assert (fields.author, fields.license) == ("A. Uthor", "MIT")
    assert fields.userDefined["edgekit.json"] == before.description.metadata.userDefined["edgekit.json"]
    assert {f.name for f in spec.description.input} == {t.feature for t in made.contract.inputs}
    assert spec.mlProgram == before.mlProgram
    engine = next((tmp_path / "out").rglob("Engine.swift")).read_text()
    assert ("CVPixelBuffer" in engine) == any(f.type.HasField("imageType") for f in spec.description.input)
    dictionaries = [f.name for f in spec.description.output if f.type.HasField("dictionaryType")]
    assert all(f'"{name}"' in engine for name in dictionaries)
