"""Anchors and the decoding of boxes: worked numbers, LiteRT's own detection operator, edgekit.toml, and the export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge import anchors, postprocess_options, project
from edge.anchors import Grid
from edge.apps import naming
from edge.apps.bundle import ExportOptions
from edge.apps.export import export
from edge.errors import ConfigError
from edge.postprocess import Postprocess, detect
from edge.targets.litert import flatbuffer
from tests import apps_artifacts
from tests.tflite_builder import GraphBuilder


def test_anchors_of_worked_numbers() -> None:
    """Stride 2 of 4 x 2 pixels: two places, centres a quarter in; ratio 4 is twice as wide as high at scale 0.5."""
    grid = Grid(strides=(2,), min_scale=0.4, max_scale=0.6, ratios=(4.0,), interpolated_ratio=0)
    assert anchors.generate(grid, 4, 2) == (0.25, 0.5, 0.25, 1.0, 0.75, 0.5, 0.25, 1.0)


def test_anchors_of_blazeface_and_mobilenet_ssd_have_their_published_numbers() -> None:
    """BlazeFace has 896 anchors of size 1; SSD MobileNet 300 has 1917, the first of scale 0.1, then 0.2 in ratio 2."""
    face = Grid(strides=(8, 16, 16, 16), min_scale=0.1484375, max_scale=0.75, fixed_size=True)
    found = np.reshape(anchors.generate(face, 128, 128), (-1, 4))
    assert (len(found), found[0].tolist(), found[-1].tolist()) == (
        896,
        [0.03125, 0.03125, 1, 1],
        [0.9375, 0.9375, 1, 1],
    )
    ratios = (1.0, 2.0, 0.5, 3.0, 0.3333)
    ssd = Grid(strides=(16, 32, 64, 128, 256, 512), ratios=ratios, reduced_lowest=True)
    found = np.reshape(anchors.generate(ssd, 300, 300), (-1, 4))
    assert len(found) == 1917
    np.testing.assert_allclose(found[:2, 2:], [[0.1, 0.1], [0.2 / 2**0.5, 0.2 * 2**0.5]], rtol=1e-6)


def _operator(anchor: NDArray[np.float32], classes: int, options: dict[str, Any]) -> bytes:
    """Return a program of one operator, TFLite_Detection_PostProcess, over boxes and scores."""
    from flatbuffers import flexbuffers

    g = GraphBuilder()
    rows = len(anchor)
    boxes, scores = g.input("boxes", (1, rows, 4)), g.input("scores", (1, rows, classes + 1))
    g.output(g.op("ADD", [boxes, g.const("anchors", anchor)], (1, rows, 4)), "sum")
    g.output(g.op("ABS", [scores], (1, rows, classes + 1)), "abs")
    model, schema = flatbuffer.load(g.build()), flatbuffer.schema()
    graph = model.subgraphs[0]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = flatbuffer.code_of("CUSTOM")
    code.customCode, code.version = b"TFLite_Detection_PostProcess", 1
    model.operatorCodes = [code]
    operator = graph.operators[0]
    names = {flatbuffer.text(t.name): i for i, t in enumerate(graph.tensors)}
    most = options["max_detections"]
    places = []
    for name, shape in (("found", (1, most, 4)), ("classes", (1, most)), ("best", (1, most)), ("count", (1,))):
        tensor = copy.deepcopy(graph.tensors[names["boxes"]])
        tensor.name, tensor.shape, tensor.shapeSignature = name.encode(), np.array(shape, np.int32), None
        places.append(len(graph.tensors))
        graph.tensors.append(tensor)
    operator.opcodeIndex, operator.builtinOptions, operator.builtinOptionsType = 0, None, 0
    operator.inputs = np.array([names[n] for n in ("boxes", "scores", "anchors")], np.int32)
    operator.outputs = np.array(places, np.int32)
    operator.customOptions = np.frombuffer(bytes(flexbuffers.Dumps(options)), np.uint8)
    graph.operators, graph.outputs, model.signatureDefs = [operator], np.array(places, np.int32), None
    return flatbuffer.dump(model)


@pytest.mark.parametrize("seed", range(3))
def test_decoding_equals_litert_s_detection_operator(seed: int) -> None:
    """Boxes, classes and scores are those of TFLite_Detection_PostProcess with these anchors and fast suppression."""
    from ai_edge_litert.interpreter import Interpreter

    grid = Grid(strides=(8, 16), min_scale=0.2, max_scale=0.6, ratios=(1.0, 2.0, 0.5))
    table = np.reshape(anchors.generate(grid, 48, 64), (-1, 4)).astype(np.float32)
    rng = np.random.default_rng(seed)
    boxes = rng.normal(0, 1, (1, len(table), 4)).astype(np.float32)
    scores = rng.uniform(0, 1, (1, len(table), 4)).astype(np.float32) ** 3
    options = {
        "max_detections": 40,
        "max_classes_per_detection": 1,
        "detections_per_class": 100,
        "num_classes": 3,
        "use_regular_nms": False,
        "nms_score_threshold": 0.4,
        "nms_iou_threshold": 0.45,
        "y_scale": 10.0,
        "x_scale": 10.0,
        "h_scale": 5.0,
        "w_scale": 5.0,
    }
    runner = Interpreter(model_content=_operator(table, 3, options))
    runner.allocate_tensors()
    for detail, values in zip(runner.get_input_details(), (boxes, scores), strict=True):
        runner.set_tensor(detail["index"], values)
    runner.invoke()
    corners, classes, best, count = (runner.get_tensor(d["index"])[0] for d in runner.get_output_details())
    post = Postprocess(
        kind="detection",
        boxes=0,
        scores=1,
        first_class=1,
        score_threshold=0.4,
        iou_threshold=0.45,
        max_detections=40,
        class_agnostic=True,
        anchors=tuple(map(float, table.ravel())),
    )
    found = detect([boxes, scores], post, ())
    assert len(found) == int(count) > 10
    assert [d.index - 1 for d in found] == classes[: len(found)].astype(int).tolist()
    np.testing.assert_allclose([d.score for d in found], best[: len(found)])
    ours = [(d.top, d.left, d.bottom, d.right) for d in found]
    np.testing.assert_allclose(ours, corners[: len(found)], atol=1e-5)


def test_sizes_are_decoded_linearly_where_said_and_never_overflow() -> None:
    """Linear: 5 / 5 * 0.5 = 0.5 high; an exponent of 1e9 is limited, so that all languages give a number."""
    boxes, scores = np.array([[[0, 0, 5, 5]]], np.float32), np.ones((1, 1, 1), np.float32)
    common: dict[str, Any] = {"kind": "detection", "boxes": 0, "scores": 1, "anchors": (0.5, 0.5, 0.5, 0.5)}
    (found,) = detect([boxes, scores], Postprocess(**common, size_decoding="linear"), ())
    assert (found.top, found.left, found.bottom, found.right) == (0.25, 0.25, 0.75, 0.75)
    tiny = {**common, "anchors": (0.5, 0.5, 0.0, 0.0)}
    (limited,) = detect([boxes * np.float32(1e9), scores], Postprocess(**tiny), ())
    assert limited.top == 0.5


# --- declared ---------------------------------------------------------------------------------------

_TOML = """
[model]
source = "m.tflite"
[model.postprocess]
boxes = "boxes"
scores = 1
activation = "sigmoid"
box_scales = [128, 128, 128, 128]
ANCHORS
[build]
targets = ["rpi4"]
"""


def _declared(folder: Path, text: str) -> dict[str, Any]:
    (folder / "edgekit.toml").write_text(_TOML.replace("ANCHORS", text))
    found = project.resolve(project.flat(project.read_file(folder / "edgekit.toml")))
    return dict(found.declaration.postprocess)


def test_edgekit_toml_declares_the_postprocessing(tmp_path: Path) -> None:
    """Table, file beside edgekit.toml, and .toml file give the same; the declaration is plain data for the manifest."""
    (tmp_path / "a.csv").write_text("0.5,0.5,1,1\n0.25,0.5,0.5,1\n")
    found = _declared(tmp_path, 'anchors = "a.csv"')
    assert found["anchors"] == [0.5, 0.5, 1, 1, 0.25, 0.5, 0.5, 1]
    assert (found["boxes"], found["scores"], found["box_scales"]) == ("boxes", 1, [128.0] * 4)
    assert json.loads(json.dumps(found)) == found
    (tmp_path / "grid.toml").write_text("strides = [8]\nfixed_size = true\n")
    assert _declared(tmp_path, 'anchors = "grid.toml"')["anchors"] == {"strides": [8], "fixed_size": True}
    table = _declared(tmp_path, "anchors = { strides = [8], fixed_size = true }")
    assert table["anchors"] == {"strides": [8], "fixed_size": True}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('anchors = "none.csv"', "none.csv cannot be read as anchors"),
        ("anchors = { strides = [] }", "strides from 1 on"),
        ("anchors = { stride = [8] }", "no such key stride"),
        ("anchors = { ratios = [1.0] }", "anchors need their strides"),
        ("anchors = 7", "a file (.npy, .csv or .toml), or a table"),
        ('nms = "yes"', "nms is 'yes'; accepted: true, false"),
        ("top_k = -1", "top_k is -1"),
        ("input_height = 4", "'input_height=4' is not one of"),
    ],
)
def test_wrong_declarations_are_refused_in_words(tmp_path: Path, text: str, part: str) -> None:
    """The message of edgekit.toml's problems says what was received and what is accepted."""
    with pytest.raises(ConfigError) as caught:
        _declared(tmp_path, text)
    assert part in caught.value.message


def test_command_line_is_over_what_the_artifact_declares(tmp_path: Path) -> None:
    """The manifest's postprocessing goes into the contract; --postprocess replaces single keys of it."""
    artifact = apps_artifacts.ssd(tmp_path / "a")
    plain = export(artifact, tmp_path / "1", ExportOptions(platform="python")).contract.postprocess
    assert (plain.activation, plain.class_agnostic, len(plain.anchors), plain.box_values) == ("sigmoid", True, 256, 6)
    given = ExportOptions(platform="python", postprocess="class_agnostic=false,box_scales=1:2:3:4")
    other = export(artifact, tmp_path / "2", given).contract.postprocess
    assert (other.activation, other.class_agnostic, other.box_scales) == ("sigmoid", False, (1.0, 2.0, 3.0, 4.0))


def test_anchors_that_do_not_fit_the_boxes_are_refused(tmp_path: Path) -> None:
    """The message has both numbers."""
    (tmp_path / "a.csv").write_text("0.5,0.5,1,1\n")
    options = ExportOptions(platform="python", postprocess=f"anchors={tmp_path / 'a.csv'}")
    with pytest.raises(ConfigError, match="There are 1 anchors; the model has 16 boxes"):
        export(apps_artifacts.detector(tmp_path / "a"), tmp_path / "out", options)


def test_text_and_table_mean_the_same() -> None:
    """Both ways of writing give one value."""
    text = "kind=detection,boxes=b,scores=1,nms=false,top_k=3,iou_threshold=0.5,box_scales=10:10:5:5"
    table = {"kind": "detection", "boxes": "b", "scores": 1, "nms": False, "top_k": 3, "iou_threshold": 0.5}
    assert postprocess_options.from_text(text) == postprocess_options.from_table(
        {**table, "box_scales": [10, 10, 5, 5]}
    )


@pytest.mark.parametrize("where", ["iou_threshold", "box_scales", "anchors"])
def test_numbers_that_no_float_holds_are_refused(where: str) -> None:
    """A whole number beyond all floats is a mistake in the table, named by its key."""
    value: Any = {"iou_threshold": 10**400, "box_scales": [1, 1, 1, 10**400], "anchors": [10**400] * 4}[where]
    with pytest.raises(ConfigError, match=f"{where} is beyond all numbers"):
        postprocess_options.from_table({"kind": "detection", where: value})


def test_many_anchors_stay_below_the_limits_of_a_class_file(tmp_path: Path) -> None:
    """Kotlin's arrays of numbers are split into objects of 2000; every number is there once."""
    export(apps_artifacts.ssd(tmp_path / "a"), tmp_path / "out", ExportOptions(platform="android"))
    text = next((tmp_path / "out").rglob("Contract.kt")).read_text()
    assert (text.count("object Anchors"), naming.snake("Ssd")) == (1, "ssd")
    from edge.apps.android import _anchors

    many = _anchors(tuple(float(v) for v in range(9000)))
    assert many["ANCHOR_OBJECTS"].count("object Anchors") == 5
    assert many["ANCHOR_OBJECTS"].count("f,") == 9000
