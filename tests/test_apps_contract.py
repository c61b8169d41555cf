"""The contract, names and literals, postprocessing, golden files and idempotent writing of `edgekit export`."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import codec
from edge.apps import contract, golden, naming, tasks, writer
from edge.apps.bundle import ExportOptions
from edge.apps.contract import Contract
from edge.apps.export import export
from edge.apps.render import render
from edge.errors import ArtifactError, ConfigError, DataError, OutputError
from edge.postprocess import Postprocess, activate, classify, detect, embed, segment
from tests import apps_artifacts

TEXTS = st.text(max_size=300) | st.sampled_from(apps_artifacts.NASTY)


def _export(artifact: Path, folder: Path, **options: object) -> Contract:
    return export(artifact, folder, ExportOptions(platform="python", **options)).contract  # type: ignore[arg-type]


def test_contract_states_model_tensors_and_preprocessing(tmp_path: Path) -> None:
    """Digest, runtime, quantized input with its preprocessing and labels stand in model_contract.json."""
    made = _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out", licence="MIT")
    data = json.loads((tmp_path / "out" / contract.FILE).read_text())
    assert data["model"]["sha256"] == writer.digest((tmp_path / "a/four-classes/model.tflite").read_bytes())
    assert data["inputs"][0]["quantization"] == {"scale": [0.05], "zero_point": [-3], "axis": None}
    assert data["inputs"][0]["preprocess"]["fit"] == "crop"
    assert (data["inputs"][0]["sample_dtype"], data["inputs"][0]["dtype"]) == ("float32", "int8")
    assert data["labels"] == ["ant", "bee", "cat", "dog"]
    assert data["licence"] == "MIT"
    assert made.runtime.tested == "2.3.0"


def test_contract_keeps_its_published_schema(tmp_path: Path) -> None:
    """The written contract is valid by the schema beside it, and reads back as the same value."""
    made = _export(apps_artifacts.detector(tmp_path / "a"), tmp_path / "out")
    data = json.loads((tmp_path / "out" / contract.FILE).read_text())
    jsonschema.validate(data, json.loads((tmp_path / "out" / contract.SCHEMA_FILE).read_text()))
    del data["$schema"]
    assert codec.from_json(Contract, data) == made


def test_operators_decide_the_minimum_runtime() -> None:
    """CAST 7 is known from TensorFlow Lite 2.17 on (its versioning code); what is old counts as 2.5.0."""
    assert contract.needed_tflite({"CAST": [1, 7], "ADD": [1]}) == "2.17.0"
    assert contract.needed_tflite({"CONV_2D": [1]}) == "2.5.0"


def test_operators_newer_than_the_pinned_runtime_are_refused(tmp_path: Path) -> None:
    """A model for TensorFlow Lite 2.21 is not exported for a pod or library that ends at 2.17."""
    artifact = apps_artifacts.classifier(tmp_path / "a", details={"operator_versions": {"CAST": [8]}})
    with pytest.raises(
        ConfigError, match=r"need TensorFlow Lite 2\.21\.0; org\.tensorflow:tensorflow-lite ends at 2\.17"
    ):
        export(artifact, tmp_path / "out", ExportOptions(platform="android", runtime="tflite"))


def test_runtime_must_fit_program_and_platform(tmp_path: Path) -> None:
    """A .tflite program is refused for ExecuTorch, and an unknown runtime with the list of known ones."""
    artifact = apps_artifacts.classifier(tmp_path / "a")
    with pytest.raises(ConfigError, match="'litert' cannot be exported for android with executorch"):
        export(artifact, tmp_path / "out", ExportOptions(platform="android", runtime="executorch"))
    with pytest.raises(ConfigError, match="accepted for android: litert, tflite, executorch, pytorch-mobile"):
        export(artifact, tmp_path / "out", ExportOptions(platform="android", runtime="onnx"))
    assert not (tmp_path / "out").exists()


def test_artifact_without_golden_vectors_is_refused(tmp_path: Path) -> None:
    """Without vectors nothing could be proved on the device."""
    from edge import artifact as artifacts

    root = apps_artifacts.classifier(tmp_path / "a")
    manifest = artifacts.read(root).manifest
    artifacts.write_manifest(root, manifest, {"model.tflite": "program"})
    with pytest.raises(ArtifactError, match="has no golden vectors"):
        _export(root, tmp_path / "out")


# --- names and literals ---------------------------------------------------------------------------


@given(TEXTS)
def test_python_literal_means_the_text(text: str) -> None:
    """Python's own parser reads the literal back as the text, which is plain ASCII."""
    literal = naming.python(text)
    assert literal.isascii()
    assert ast.literal_eval(literal) == text


@given(TEXTS)
def test_typescript_literal_means_the_text(text: str) -> None:
    """A JSON parser reads the literal back; it holds no character outside of ASCII."""
    literal = naming.typescript(text)
    assert literal.isascii()
    assert json.loads(literal) == text


def _unescaped(body: str, *, single: dict[str, str]) -> str:
    """Read Kotlin's or Swift's escapes as their language definitions say."""
    found, i = [], 0
    while i < len(body):
        if body[i] != "\\":
            assert body[i] not in '"$\n\r', "a bare delimiter"
            found.append(body[i])
            i += 1
        elif body[i + 1] == "u" and body[i + 2] == "{":
            end = body.index("}", i)
            found.append(chr(int(body[i + 3 : end], 16)))
            i = end + 1
        elif body[i + 1] == "u":
            found.append(chr(int(body[i + 2 : i + 6], 16)))
            i += 6
        else:
            found.append(single[body[i + 1]])
            i += 2
    return "".join(found).encode("utf-16", "surrogatepass").decode("utf-16")


@given(TEXTS)
def test_kotlin_literal_means_the_text(text: str) -> None:
    """Read by Kotlin's escape rules the literal is the text: no template, no delimiter, no invisible character."""
    literal = naming.kotlin(text[:8000])
    assert _unescaped(literal[1:-1], single={'"': '"', "\\": "\\", "$": "$"}) == text[:8000]
    assert "\u202e" not in literal


@given(TEXTS)
def test_swift_literal_means_the_text(text: str) -> None:
    """Read by Swift's escape rules the literal is the text: no interpolation can begin."""
    body = naming.swift(text)[1:-1]
    assert _unescaped(body.replace("$", "\\$"), single={'"': '"', "\\": "\\", "$": "$"}) == text


@given(TEXTS)
def test_cpp_literal_means_the_text(text: str) -> None:
    """Octal escapes of three digits give the UTF-8 of the text; its length is stated, so that NUL is kept."""
    literal = naming.cpp(text)
    body, size = literal.removeprefix('std::string("').removesuffix(")").rsplit('", ', 1)
    data, i = bytearray(), 0
    while i < len(body):
        data.append(int(body[i + 1 : i + 4], 8) if body[i] == "\\" else ord(body[i]))
        i += 4 if body[i] == "\\" else 1
    assert bytes(data) == text.encode()
    assert int(size) == len(data)


@given(st.lists(st.text(max_size=20), max_size=8))
def test_identifiers_are_valid_unique_and_no_keywords(names: list[str]) -> None:
    """Whatever the tensors are called, the parameters are plain identifiers."""
    made = naming.identifiers(names, "input")
    assert len(set(made)) == len(names)
    assert all(n.isascii() and n.isidentifier() and n not in naming._KEYWORDS | naming._LOCAL for n in made)


@given(st.text(max_size=40))
def test_class_name_is_always_an_identifier(text: str) -> None:
    """A name made of any text is one that --name would accept."""
    made = naming.class_name(None, text)
    assert naming.class_name(made, "") == made


@pytest.mark.parametrize("given_name", ["lower", "A-B", "Class", "String", "Import", "A" * 65, "Ä", ""])
def test_bad_class_names_are_refused(given_name: str) -> None:
    """A name that the user gives is taken as it is, or refused with what is accepted."""
    with pytest.raises(ConfigError, match="--name is"):
        naming.class_name(given_name, "x")


@pytest.mark.parametrize("package", ["single", "com.class", "Com.x", "com..x", "com.1x", 'com.x";'])
def test_bad_packages_are_refused(package: str) -> None:
    """A package that no compiler takes, or that would break out of a file, is refused."""
    with pytest.raises(ConfigError, match="--package is"):
        naming.package_name(package, "X")


def test_lone_surrogates_are_refused() -> None:
    """Half of a surrogate pair has no UTF-8 and is refused in words."""
    with pytest.raises(ConfigError, match="surrogate"):
        naming.kotlin("\ud800")


def test_values_are_never_read_as_templates() -> None:
    """A value that looks like a place or a condition stays as it is."""
    assert (
        render("a @@X@@\n//#if !Y\nb\n//#else\nc\n//#end\n", {"X": "@@Y@@\n//#end", "Y": True})
        == "a @@Y@@\n//#end\nc\n"
    )
    with pytest.raises(KeyError):
        render("@@UNKNOWN@@", {})


# --- postprocessing -------------------------------------------------------------------------------


def test_softmax_and_sigmoid_of_worked_numbers() -> None:
    """softmax(0, ln 3) = (0.25, 0.75); sigmoid(0) = 0.5; huge numbers do not overflow."""
    np.testing.assert_allclose(activate(np.array([0, np.log(3)], np.float32), "softmax"), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(activate(np.array([0, -1e4, 1e4], np.float32), "sigmoid"), [0.5, 0, 1])
    np.testing.assert_allclose(activate(np.array([1e30, 1e30], np.float32), "softmax"), [0.5, 0.5])


def test_classes_are_best_first_and_ties_keep_order() -> None:
    """Of equal scores the lower index comes first; a missing label is empty."""
    found = classify([np.array([[0.2, 0.4, 0.4]], np.float32)], Postprocess(kind="classification", top_k=2), ["a", "b"])
    assert [(c.index, c.label) for c in found] == [(1, "b"), (2, "")]


BOXES = np.array([[[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.45], [0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5]]], np.float32)


def test_overlapping_boxes_of_one_class_are_suppressed() -> None:
    """IoU 0.9 with a better box of the same class hides a box; another class is kept; low scores are left out."""
    scores = np.array([[[0.9, 0.1], [0.8, 0.1], [0.1, 0.2], [0.1, 0.7]]], np.float32)
    found = detect([BOXES, scores], Postprocess(kind="detection", boxes=0, scores=1), ())
    assert [(d.index, round(d.score, 1), round(d.bottom, 2)) for d in found] == [(0, 0.9, 0.5), (1, 0.7, 0.5)]


@pytest.mark.parametrize("transposed", [False, True])
def test_boxes_and_scores_in_one_output(transposed: bool) -> None:
    """Centre and size in pixels with two classes per row: (x 4, y 2, w 4, h 2) in 8 x 8 is top 1/8, left 2/8."""
    rows = np.array([[4, 2, 4, 2, 0.1, 0.6], [1, 1, 2, 2, 0, 0]], np.float32)
    output = (rows.T if transposed else rows)[None]
    post = Postprocess(
        kind="detection",
        boxes=0,
        scores=0,
        transposed=transposed,
        box_format="cxcywh",
        box_pixels=True,
        input_height=8,
        input_width=8,
    )
    (found,) = detect([np.ascontiguousarray(output)], post, ["x", "y"])
    assert (found.index, found.top, found.left, found.bottom, found.right) == (1, 0.125, 0.25, 0.375, 0.75)


def test_finished_detections_use_classes_and_count() -> None:
    """Four outputs as of TFLite_Detection_PostProcess: the class output and the count are used."""
    outputs = [
        BOXES,
        np.array([[3, 1, 2, 0]], np.float32),
        np.array([[0.9, 0.8, 0.7, 0.6]], np.float32),
        np.array([2], np.float32),
    ]
    found = detect(outputs, Postprocess(kind="detection", boxes=0, classes=1, scores=2, count=3, nms=False), ())
    assert [(d.index, round(d.score, 1)) for d in found] == [(3, 0.9), (1, 0.8)]


@pytest.mark.parametrize(("axis", "shape"), [(3, (1, 1, 2, 3)), (1, (1, 3, 1, 2))])
def test_mask_is_the_largest_score(axis: int, shape: tuple[int, ...]) -> None:
    """Scores in either layout; of equal ones the lower class."""
    scores = np.array([[0, 1, 1], [2, 0, 5]], np.float32)
    values = scores.reshape(shape) if axis == 3 else scores.T.reshape(shape)
    assert segment([values], Postprocess(kind="segmentation", class_axis=axis)).tolist() == [[1, 2]]


def test_embedding_has_length_one() -> None:
    """(3, 4) becomes (0.6, 0.8); zeros stay zeros."""
    assert embed([np.array([[3, 4]], np.float32)], Postprocess(kind="embedding")).tolist() == [
        np.float32(0.6),
        np.float32(0.8),
    ]
    assert embed([np.zeros((1, 2), np.float32)], Postprocess(kind="embedding")).tolist() == [0, 0]


def test_softmax_is_added_only_to_logits(tmp_path: Path) -> None:
    """Golden outputs that are shares get no second softmax; the option wins over both."""
    assert _export(apps_artifacts.classifier(tmp_path / "a"), tmp_path / "1").postprocess.activation == "softmax"
    shares = apps_artifacts.keywords(tmp_path / "a")
    assert _export(shares, tmp_path / "2").postprocess.activation == "none"
    given_text = _export(shares, tmp_path / "3", postprocess="activation=softmax,top_k=2").postprocess
    assert (given_text.activation, given_text.top_k) == ("softmax", 2)


@pytest.mark.parametrize(("metric", "task"), [("top1", "classification"), ("miou", "segmentation"), ("mae", "other")])
def test_task_is_told_by_the_metric_where_it_is_not_declared(tmp_path: Path, metric: str, task: str) -> None:
    """A .tflite file states no task; that it was checked by top-1 says that it classifies."""
    from dataclasses import replace

    from edge import artifact as artifacts
    from edge.artifact import Accuracy, Metrics

    manifest = artifacts.read(apps_artifacts.two_inputs(tmp_path)).manifest
    assert tasks.task_of(manifest) == "other"
    numbers: dict[str, Any] = dict.fromkeys(("float", "carrier", "quantized", "drop"), 0.0)
    accuracy = Accuracy(
        metric=metric, drop_low=None, drop_high=None, samples=1, mode="emulated", kernels="xnnpack", **numbers
    )
    assert tasks.task_of(replace(manifest, metrics=Metrics(accuracy=accuracy))) == task


def test_postprocess_option_lists_every_problem(tmp_path: Path) -> None:
    """Unknown keys and wrong values are named together; an output that the model does not have too."""
    with pytest.raises(ConfigError) as caught:
        tasks.given_by({}, "kind=magic,colour=red,nms=maybe,top_k=x,box_scales=1:2", ())
    parts = ("kind is 'magic'", "'colour=red' is not one of", "nms is 'maybe'", "top_k is 'x'", "box_scales is [1, 2]")
    for part in parts:
        assert part in caught.value.message
    with pytest.raises(ConfigError, match=r"output is 7; .* boxes is 'nowhere'"):
        tasks.given_by({"boxes": "nowhere"}, "output=7", ())


# --- golden files and writing ---------------------------------------------------------------------


@given(st.dictionaries(st.text(st.characters(codec="ascii"), max_size=12), st.binary(max_size=40), max_size=6))
def test_golden_file_reads_back(entries: dict[str, bytes]) -> None:
    """Names and bytes survive; what does not begin with the mark is refused."""
    assert golden.unpack(golden.pack(entries)) == entries
    with pytest.raises(DataError):
        golden.unpack(b"PK\x03\x04 something")


def test_export_again_changes_nothing_and_keeps_user_files(tmp_path: Path) -> None:
    """A second export writes no file; a file of the user's in the folder stays."""
    artifact, out = apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out"
    options = ExportOptions(platform="python")
    first = export(artifact, out, options)
    (out / "src" / "mine.py").write_text("x = 1\n")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != writer.LIST}
    second = export(artifact, out, options)
    assert (second.files.written, second.files.unchanged) == ((), first.files.written)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_edited_generated_file_is_never_overwritten_silently(tmp_path: Path) -> None:
    """The error names the file and nothing is written; --force replaces it."""
    artifact, out = apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out"
    export(artifact, out, ExportOptions(platform="python"))
    (out / "README.md").write_text("mine\n")
    with pytest.raises(OutputError, match=r"1 file\(s\) in .* were changed .*: README\.md"):
        export(artifact, out, ExportOptions(platform="python", licence="MIT"))
    assert json.loads((out / contract.FILE).read_text())["licence"] is None
    done = export(artifact, out, ExportOptions(platform="python", licence="MIT"), force=True)
    assert "README.md" in done.files.written
    assert json.loads((out / contract.FILE).read_text())["licence"] == "MIT"


def test_export_into_a_strangers_folder_is_refused(tmp_path: Path) -> None:
    """Files that are not from an export are not overwritten either, and unrelated ones do not matter."""
    (tmp_path / "README.md").write_text("other project\n")
    with pytest.raises(OutputError, match=r"README\.md"):
        export(apps_artifacts.classifier(tmp_path / "a"), tmp_path, ExportOptions(platform="python"))


def test_files_of_another_name_are_removed(tmp_path: Path) -> None:
    """Renaming the class removes the old files; an edited old file is kept and reported."""
    artifact, out = apps_artifacts.classifier(tmp_path / "a"), tmp_path / "out"
    export(artifact, out, ExportOptions(platform="python", name="First"))
    (out / "src/first/golden.py").write_text("mine\n")
    done = export(artifact, out, ExportOptions(platform="python", name="Second"))
    assert done.files.kept == ("src/first/golden.py",)
    assert sorted(p.name for p in (out / "src/first").rglob("*")) == ["golden.py"]


@settings(max_examples=20)
@given(st.sampled_from(["../evil", "/etc/passwd", "a/../../b"]))
def test_list_cannot_name_files_outside(path: str) -> None:
    """A tampered list cannot make an export remove files elsewhere."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / writer.LIST).write_text(json.dumps({"files": {path: "0"}}))
        assert writer.read_list(Path(folder)) == {}
