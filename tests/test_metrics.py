"""Metrics by name and by default, their values on worked examples, and their paired comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError, DataError
from edge.measure.classification import area_under_curve, rank_of
from edge.measure.detection import AveragePrecision, box_overlaps
from edge.measure.metric import Metric
from edge.measure.metrics import compare, default_metric, metric_named
from edge.signature import Signature, Task, TensorSpec


def _value(metric: Metric, outputs: Iterable[Any], labels: Iterable[Any]) -> float:
    for output, label in zip(outputs, labels, strict=True):
        metric.update(output if isinstance(output, dict) else {"y": np.asarray(output)}, label)
    return metric.value()


def test_top1_counts_the_highest_class() -> None:
    """Two of three right, whatever wraps the label: int, NumPy scalar, array of one, one-hot."""
    outputs = [[[0.1, 0.7, 0.2]], [[0.5, 0.3, 0.2]], [[0.2, 0.3, 0.5]]]
    metric = metric_named("top1")
    assert _value(metric, outputs, [1, np.int64(0), np.array([1])]) == pytest.approx(2 / 3)
    metric.update({"y": np.array([[0.1, 0.7, 0.2]])}, np.array([0.0, 1.0, 0.0]))
    assert metric.scores is not None
    assert metric.scores.tolist() == [1, 1, 0, 1]


def test_top5_looks_at_five_classes() -> None:
    """The fifth highest counts, the sixth does not."""
    scores = [[9.0, 8, 7, 6, 5, 4, 3]]
    assert _value(metric_named("top5"), [scores, scores], [4, 5]) == 0.5


def test_equal_scores_go_to_the_lower_class() -> None:
    """As argmax does, the first of equal int8 scores is the answer."""
    assert _value(metric_named("top1"), [[[127, 127]], [[127, 127]]], [0, 1]) == 0.5


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=8))
def test_rank_is_the_place_in_a_stable_sort(values: list[int]) -> None:
    """For any scores with ties the rank of a class is its place in the stable descending order."""
    scores = np.array(values, np.float32)
    order = np.argsort(-scores, kind="stable").tolist()
    assert [rank_of(scores, index) for index in range(scores.size)] == [order.index(i) for i in range(scores.size)]


def test_nan_scores_are_wrong() -> None:
    """A program that answers NaN is never right, whichever class is NaN."""
    outputs = [[[np.nan, np.nan]], [[np.nan, 0.5]], [[0.5, np.nan]]]
    assert _value(metric_named("top1"), outputs, [0, 1, 0]) == 0.0
    assert _value(metric_named("binary"), [[[np.nan]], [[np.nan]]], [0, 1]) == 0.0


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "sample 0: the label is 3; accepted: 0 to 2, as the output has 3 classes"),
        (-1, "the label is -1; accepted: 0 to 2"),
        (0.5, "the label has shape () and dtype float64; accepted: a class number"),
        ([1, 1, 0], r"the label has shape (3,) and dtype int64; accepted: a class number, or a one-hot vector of 3"),
        ("cat", "accepted: a class number"),
    ],
)
def test_labels_that_name_no_class_are_refused(label: Any, message: str) -> None:
    """The message has the value received and what is accepted."""
    with pytest.raises(DataError) as caught:
        metric_named("top1").update({"y": np.zeros((1, 3))}, label)
    assert message in caught.value.message


def test_an_output_that_is_no_vector_has_no_classes() -> None:
    """A segmentation map given to top1 is refused."""
    with pytest.raises(DataError, match=r"the output has shape \(1, 4, 4, 3\); accepted: \(1, classes\)"):
        metric_named("top1").update({"y": np.zeros((1, 4, 4, 3))}, 0)


def test_several_outputs_need_a_choice() -> None:
    """The error names the outputs and the way to choose; NAME@OUTPUT chooses; a wrong name is told."""
    outputs = {"a": np.array([[0.0, 1.0]]), "b": np.array([[1.0, 0.0]])}
    with pytest.raises(DataError, match="the model has 2: a, b") as caught:
        metric_named("top1").update(outputs, 1)
    assert caught.value.hint == "Name the output that counts: top1@a"
    assert _value(metric_named("top1@a"), [outputs], [1]) == 1.0
    assert _value(metric_named("top1@b"), [outputs], [{"a": 1, "b": 1}]) == 0.0
    with pytest.raises(DataError, match="asks for output 'c'; the model has: a, b"):
        metric_named("top1@c").update(outputs, 1)


def test_binary_splits_probabilities_at_a_half() -> None:
    """0.5 and above is class 1; a value that dequantizes a rounding beyond 1 is still a probability."""
    assert _value(metric_named("binary"), [[[0.5]], [[0.49]], [[1.004]], [[0.1]]], [1, 0, 1, 1]) == 0.75


def test_binary_tells_a_logit_from_a_probability() -> None:
    """Without a threshold 3.2 is refused with the way out; binary0 takes it."""
    with pytest.raises(DataError, match=r"the output is 3\.2; accepted: a probability") as caught:
        metric_named("binary").update({"y": np.array([[3.2]])}, 1)
    assert caught.value.hint == "For a logit use metric binary0."
    assert _value(metric_named("binary0"), [[[3.2]], [[-0.1]]], [1, 0]) == 1.0


def test_mean_absolute_error_of_one_and_of_several_outputs() -> None:
    """The mean over elements, then over outputs, then over samples; lower is better."""
    metric = metric_named("mae")
    assert _value(metric, [[[1.0, 3.0]], [[0.0, 0.0]]], [[0.0, 0.0], [[1.0, 0.0]]]) == pytest.approx((2 + 0.5) / 2)
    assert not metric.higher_is_better
    outputs = {"a": np.array([[1.0]]), "b": np.array([[4.0, 0.0]])}
    assert _value(metric_named("mae"), [outputs], [{"a": 0.0, "b": [0.0, 0.0]}]) == pytest.approx((1 + 2) / 2)
    with pytest.raises(DataError, match=r"labels for unknown outputs \['c'\]"):
        metric_named("mae").update(outputs, {"a": 0.0, "c": 1.0})


def test_a_label_of_another_shape_is_refused() -> None:
    """Broadcasting would hide it."""
    with pytest.raises(DataError, match=r"the label has shape \(2,\); accepted: \(1, 3\), as the output has"):
        metric_named("mae").update({"y": np.zeros((1, 3))}, np.zeros(2))


def test_psnr_of_bytes_and_of_shares() -> None:
    """An error of 1 of 255 everywhere is 48.13 dB, an error of 0.1 of 1 is 20 dB, no error counts as 100."""
    black = np.zeros((4, 4), np.uint8)
    assert _value(metric_named("psnr"), [np.ones((1, 4, 4))], [black]) == pytest.approx(48.1308, abs=1e-4)
    assert _value(metric_named("psnr"), [np.full((1, 4), 0.1)], [np.zeros(4)]) == pytest.approx(20.0)
    assert _value(metric_named("psnr"), [np.zeros((1, 4))], [np.zeros(4)]) == 100.0


def test_psnr_asks_for_the_peak_it_cannot_know() -> None:
    """Float labels from -1 to 1 may have a peak of 1 or 2: the user says psnr2."""
    label = np.array([-1.0, 1.0])
    with pytest.raises(DataError, match="the label ranges from -1 to 1") as caught:
        metric_named("psnr").update({"y": np.zeros((1, 2))}, label)
    assert "psnr2" in (caught.value.hint or "")
    assert _value(metric_named("psnr2"), [np.array([[-0.8, 0.8]])], [label]) == pytest.approx(20.0)


def test_agreement_and_snr_take_the_references_outputs() -> None:
    """For unlabelled data the label is what the float source gave: the mapping, or one array of it."""
    reference = {"y": np.array([[3.0, 4.0]])}
    assert _value(metric_named("agreement"), [[[0.1, 0.2]], [[0.2, 0.1]]], [reference, reference["y"]]) == 0.5
    assert _value(metric_named("snr"), [[[3.0, 4.5]]], [reference]) == pytest.approx(20.0)
    assert _value(metric_named("snr"), [[[3.0, 4.0]]], [reference]) == 100.0
    assert _value(metric_named("snr"), [[[np.nan, 4.0]]], [reference]) == -100.0


def test_snr_of_several_outputs_is_that_of_the_worst() -> None:
    """An exact output does not hide a noisy one."""
    reference = {"a": np.array([[1.0]]), "b": np.array([[3.0, 4.0]])}
    outputs = {"a": np.array([[1.0]]), "b": np.array([[3.0, 4.5]])}
    assert _value(metric_named("snr"), [outputs], [reference]) == pytest.approx(20.0)


def test_mean_iou_of_a_worked_example() -> None:
    """Class 0: 1 of 2 pixels, class 1: 2 of 3, one pixel void; class 2, seen by neither, does not count."""
    label = np.array([[0, 0], [1, 255]], np.uint8)
    label = np.concatenate([label, [[1, 255]]]).astype(np.uint8)
    predicted = np.array([[0, 1], [1, 0], [1, 1]])
    channels_last = np.eye(3)[predicted][None]
    expected = (1 / 2 + 2 / 3) / 2
    assert _value(metric_named("miou"), [channels_last], [label]) == pytest.approx(expected)
    assert _value(metric_named("miou"), [channels_last.transpose(0, 3, 1, 2)], [label]) == pytest.approx(expected)
    assert _value(metric_named("miou"), [predicted[None]], [label]) == pytest.approx(expected)
    assert _value(metric_named("miou"), [predicted[None, :, :, None] * 0.9], [label]) == pytest.approx(expected)


def test_mean_iou_counts_over_the_whole_data_set() -> None:
    """Two images of different content give the ratio of sums, not the mean of ratios; a resample repeats images."""
    first, second = np.zeros((2, 2), np.int64), np.array([[1, 1], [1, 0]])
    metric = metric_named("miou")
    assert _value(metric, [first[None], second[None]], [first, np.ones((2, 2), np.int64)]) == pytest.approx(
        (4 / 5 + 3 / 4) / 2
    )
    assert metric.scores is None
    assert metric.resample(np.array([1, 1])) == pytest.approx((0 + 3 / 4) / 2)


def test_masks_that_do_not_fit_are_refused() -> None:
    """Another size, or a class beyond the output's."""
    with pytest.raises(DataError, match=r"the output has shape \(1, 4, 4, 3\) and the mask \(2, 2\)"):
        metric_named("miou").update({"y": np.zeros((1, 4, 4, 3))}, np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match="the mask has values 0 to 7; accepted: 0 to 2"):
        metric_named("miou").update({"y": np.zeros((1, 1, 2, 3))}, np.array([[0, 7]]))
    void = metric_named("miou")
    void.update({"y": np.zeros((1, 1, 2, 3))}, np.array([[255, 255]]))
    with pytest.raises(DataError, match="no pixel of any mask counts"):
        void.value()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_chance_that_a_positive_ranks_higher(samples: list[tuple[int, bool]]) -> None:
    """Over all pairs of a positive and a negative, ties counting half."""
    scores, labels = np.array([s for s, _ in samples], float), np.array([int(b) for _, b in samples])
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    area = area_under_curve(scores, labels)
    assert area == pytest.approx(np.mean(pairs)) if pairs else np.isnan(area)


def test_auc_takes_one_score_or_that_of_the_second_class() -> None:
    """Three of four pairs in order; both forms agree; one class alone is an error that says so."""
    scores, labels = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    assert _value(metric_named("auc"), [[[s]] for s in scores], labels) == 0.75
    assert _value(metric_named("auc"), [[[1 - s, s]] for s in scores], labels) == 0.75
    lonely = metric_named("auc")
    lonely.update({"y": np.array([[0.3]])}, 1)
    with pytest.raises(DataError, match="auc needs samples of both classes; all 1 labels are 1"):
        lonely.value()


def _detections(boxes: Sequence[Any], scores: Sequence[float], classes: Sequence[int]) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([boxes], float).reshape(1, -1, 4),
        "scores": np.array([scores], float),
        "classes": np.array([classes], float),
    }


def test_average_precision_of_a_worked_example() -> None:
    """Right, wrong, right for two objects: precision 1 to recall 0.5, then 2/3: (51 + 50 * 2/3) / 101."""
    near, far = [0, 0, 10, 10], [20, 20, 30, 30]
    outputs = _detections([near, [50, 50, 60, 60], far], [0.9, 0.8, 0.7], [1, 1, 1])
    label = {"boxes": [near, far], "classes": [1, 1]}
    assert _value(metric_named("ap50"), [outputs], [label]) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_average_precision_over_thresholds() -> None:
    """A box of IoU 0.62 is right at 0.50, 0.55 and 0.60: three of ten thresholds."""
    outputs = _detections([[0, 0, 10, 6.2]], [0.9], [0])
    label = {"boxes": [[0, 0, 10, 10]], "classes": [0]}
    assert _value(metric_named("ap50"), [outputs], [label]) == 1.0
    assert _value(metric_named("ap50-95"), [outputs], [label]) == pytest.approx(0.3)


def test_detections_are_found_by_order_and_cut_by_their_count() -> None:
    """TFLite_Detection_PostProcess: boxes, classes, scores, count; what is beyond the count does not exist."""
    outputs = {
        "TFLite_Detection_PostProcess": np.array([[[0, 0, 1, 1], [0, 0, 1, 1]]], np.float32),
        "TFLite_Detection_PostProcess:1": np.array([[2, 3]], np.float32),
        "TFLite_Detection_PostProcess:2": np.array([[0.5, 0.9]], np.float32),
        "TFLite_Detection_PostProcess:3": np.array([1], np.float32),
    }
    label = {"boxes": [[0, 0, 1, 1], [0, 0, 1, 1]], "classes": [2, 3]}
    assert _value(metric_named("ap50"), [outputs], [label]) == 0.5


def test_crowd_regions_neither_help_nor_harm() -> None:
    """A detection inside a crowd is left out, and its region is no object."""
    outputs = _detections([[0, 0, 4, 4], [20, 20, 24, 24]], [0.9, 0.8], [1, 1])
    label = {"boxes": [[0, 0, 10, 10], [20, 20, 24, 24]], "classes": [1, 1], "crowd": [1, 0]}
    assert _value(metric_named("ap50"), [outputs], [label]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("outputs", "label", "message"),
    [
        ({"y": np.zeros((1, 3))}, {"boxes": [], "classes": []}, r"the outputs are y \(1, 3\)"),
        (_detections([], [], []), 3, "the label is a int; accepted: a mapping with boxes and classes"),
        (_detections([], [], []), {"boxes": [[5, 5, 2, 2]], "classes": [0]}, "second corner before its first"),
        (_detections([], [], []), {"boxes": [[1, 1, 2, 2]], "classes": [0, 1]}, r"boxes \(1, 4\), classes \(2,\)"),
        (_detections([[0, 0, 1, 1]], [0.5, 0.4], [1]), {"boxes": [], "classes": []}, "1 boxes, 2 scores, 1 classes"),
    ],
)
def test_detection_arrays_that_do_not_fit_are_refused(outputs: Any, label: Any, message: str) -> None:
    """Each message says what is there."""
    with pytest.raises(DataError, match=message):
        metric_named("ap50").update(outputs, label)


def _scene(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return random objects of three classes and detections near them, with strays."""
    objects = int(rng.integers(0, 6))
    corner = rng.uniform(0, 80, (objects, 2))
    boxes = np.hstack([corner, corner + rng.uniform(5, 20, (objects, 2))])
    classes = rng.integers(0, 3, objects)
    found = np.vstack([boxes + rng.normal(0, 2, boxes.shape), boxes + rng.normal(0, 1, boxes.shape), [[1, 1, 9, 9]]])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    guessed = np.where(rng.random(2 * objects + 1) < 0.8, np.r_[classes, classes, 0], 1)
    outputs = _detections(found.tolist(), rng.random(2 * objects + 1).tolist(), guessed.tolist())
    return outputs, {"boxes": boxes, "classes": classes, "crowd": rng.random(objects) < 0.15}


def _plain_average_precision(scenes: Sequence[Any], threshold: float) -> float:
    """Return COCO's average precision by loops, straight from its definition, for one threshold."""
    values = []
    for number in range(3):
        marked: list[tuple[float, bool]] = []
        objects = 0
        for outputs, label in scenes:
            mine = label["classes"] == number
            boxes, crowd = label["boxes"][mine], label["crowd"][mine]
            objects += int((~crowd).sum())
            taken: set[int] = set()
            chosen = np.flatnonzero(outputs["classes"][0] == number)
            for index in sorted(chosen, key=lambda i: -outputs["scores"][0][i]):
                overlaps = box_overlaps(outputs["boxes"][0][[index]], boxes, crowd)[0]
                free = [g for g in range(len(boxes)) if g not in taken and overlaps[g] >= threshold and not crowd[g]]
                if free:
                    taken.add(max(free, key=lambda g: overlaps[g]))
                    marked.append((outputs["scores"][0][index], True))
                elif not any(overlaps[g] >= threshold for g in range(len(boxes)) if crowd[g]):
                    marked.append((outputs["scores"][0][index], False))
        if objects:
            marks = [right for _, right in sorted(marked, key=lambda mark: -mark[0])]
            points = [(sum(marks[: k + 1]) / objects, sum(marks[: k + 1]) / (k + 1)) for k in range(len(marks))]
            values.append(
                np.mean([max((p for r, p in points if r >= level), default=0) for level in np.linspace(0, 1, 101)])
            )
    return float(np.mean(values))


def test_average_precision_agrees_with_loops_over_the_definition() -> None:
    """On 40 random scenes with crowds both thresholds' lists give what plain loops give."""
    rng = np.random.default_rng(4)
    scenes = [_scene(rng) for _ in range(40)]
    outputs, labels = zip(*scenes, strict=True)
    assert _value(metric_named("ap50"), outputs, labels) == pytest.approx(_plain_average_precision(scenes, 0.5))
    expected = np.mean([_plain_average_precision(scenes, 0.5 + 0.05 * step) for step in range(10)])
    assert _value(metric_named("ap50-95"), outputs, labels) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["top1", "mae", "auc", "miou", "ap50-95"])
def test_resampling_is_collecting_the_same_samples_again(name: str) -> None:
    """For every kind of metric resample(indices) is the value of a fresh metric over those samples."""
    rng = np.random.default_rng(6)
    makers: dict[str, Callable[[], tuple[Any, Any]]] = {
        "top1": lambda: ({"y": rng.random((1, 3))}, int(rng.integers(3))),
        "mae": lambda: ({"y": rng.random((1, 3))}, rng.random(3)),
        "auc": lambda: ({"y": rng.random((1, 1))}, int(rng.integers(2))),
        "miou": lambda: ({"y": rng.random((1, 4, 4, 3))}, rng.integers(0, 3, (4, 4))),
        "ap50-95": lambda: _scene(rng),
    }
    samples = [makers[name]() for _ in range(30)]
    metric = metric_named(name)
    _value(metric, *zip(*samples, strict=True))
    indices = rng.integers(30, size=30)
    fresh = _value(metric_named(name), *zip(*[samples[i] for i in indices], strict=True))
    assert metric.resample(indices) == pytest.approx(fresh, abs=1e-9)
    assert metric.resample(np.arange(30)) == pytest.approx(metric.value())


@pytest.mark.parametrize("name", ["top1", "auc", "miou", "ap50", "mae"])
def test_a_metric_without_samples_has_no_value(name: str) -> None:
    """The message says what is missing and the hint how to give it."""
    with pytest.raises(DataError, match=f"metric {name} has seen no samples"):
        metric_named(name).value()


@pytest.mark.parametrize("text", ["top0", "top1.5", "psnr0", "accuracy", "", "@y", "mae5", "top"])
def test_unknown_metrics_are_refused(text: str) -> None:
    """The message lists what there is."""
    with pytest.raises(ConfigError, match="is unknown; accepted: top1, top5, mae"):
        metric_named(text)


def test_names_come_back() -> None:
    """A metric's name is the one it was asked for."""
    for text in (
        "top1",
        "top3",
        "binary",
        "binary0.3",
        "psnr",
        "psnr255",
        "mae",
        "snr",
        "miou",
        "auc",
        "ap50",
        "ap50-95",
    ):
        assert metric_named(text).name == text


_METRIC_FILE = """
from helper_beside_the_metric import OFFSET

def distance(outputs, label):
    return abs(float(outputs["y"][0]) - label) + OFFSET
distance.higher_is_better = False

def raises(outputs, label):
    return outputs["nothing"]

def text(outputs, label):
    return "good"

def nan(outputs, label):
    return float("nan")
"""


@pytest.fixture
def metric_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's file that imports its neighbour."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "helper_beside_the_metric", raising=False)
    (tmp_path / "helper_beside_the_metric.py").write_text("OFFSET = 1.0\n")
    path = tmp_path / "my.metric.py"
    path.write_text(_METRIC_FILE)
    return path


def test_a_metric_of_the_users_own(metric_file: Path) -> None:
    """The mean over samples, with the direction that the function declares."""
    metric = metric_named(f"{metric_file}:distance")
    assert _value(metric, [[3.0], [5.0]], [1.0, 5.0]) == 2.0
    assert not metric.higher_is_better
    assert metric.name == f"{metric_file}:distance"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", r"sample 0: KeyError: 'nothing' \(.*my\.metric\.py:9\)"),
        ("text", "sample 0: the function returned str 'good'; accepted: a number"),
        ("nan", "sample 0: the function returned nan; accepted: a finite number"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_failures_of_the_users_metric_name_file_and_line(metric_file: Path, function: str, message: str) -> None:
    """What the user's code does wrong is an error about the user's code."""
    with pytest.raises(DataError, match=message):
        metric_named(f"{metric_file}:{function}").update({"y": np.zeros(1)}, 0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef broken(:\n", r"SyntaxError: .*bad\.py:2\)"),
        ("x = 1\n\n1 / 0\n", r"ZeroDivisionError: division by zero \(.*bad\.py:3\)"),
        ("import sys\nsys.exit(3)\n", r"SystemExit: 3 \(.*bad\.py:2\)"),
    ],
)
def test_a_metric_file_that_does_not_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """A file with an error is refused with the line, and cannot end the program."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(DataError, match=message):
        metric_named(f"{tmp_path}/bad.py:metric")


def test_a_metric_file_that_is_not_there() -> None:
    """The path is in the message."""
    with pytest.raises(DataError, match=r"metric file nowhere/m\.py does not exist"):
        metric_named("nowhere/m.py:metric")


def _signature(*shapes: tuple[int, ...], task: Task = "other") -> Signature:
    outputs = tuple(TensorSpec(name=f"y{i}", shape=shape) for i, shape in enumerate(shapes))
    return Signature(inputs=(TensorSpec(name="x", shape=(1, 8)),), outputs=outputs, task=task)


@pytest.mark.parametrize(
    ("shape", "label", "task", "name"),
    [
        ((1, 10), 3, "other", "top1"),
        ((1, 1, 1, 10), np.int32(3), "other", "top1"),
        ((1, 10), np.array([3]), "classification", "top1"),
        ((1, 3), np.array([0, 1, 0]), "other", "top1"),
        ((1, 3), np.array([0.0, 1.0, 0.0]), "other", "top1"),
        ((1, 3), np.array([0.0, 1.0, 0.0]), "regression", "mae"),
        ((1, 1), 1, "other", "binary"),
        ((1, 1), 1, "regression", "mae"),
        ((1, 1), 37, "other", "mae"),
        ((1, 1), 0.7, "other", "mae"),
        ((1, 1), 1.0, "classification", "binary"),
        ((1, 4), np.array([0.1, 0.2, 0.3, 0.4]), "other", "mae"),
        ((1, 8, 8, 3), np.zeros((8, 8, 3), np.float32), "other", "mae"),
        ((1, 8, 8, 3), np.zeros((8, 8, 3), np.uint8), "other", "mae"),
        ((1, 8, 8, 5), np.zeros((8, 8), np.uint8), "other", "miou"),
        ((1, 5, 8, 8), np.zeros((8, 8), np.uint8), "other", "miou"),
        ((1, 8, 8, 1), np.zeros((8, 8), np.bool_), "other", "miou"),
        ((1, 8, 8), np.zeros((1, 8, 8), np.int64), "other", "miou"),
        ((1, 10), None, "other", "agreement"),
        ((1, 10), None, "regression", "snr"),
        ((1, 8, 8, 3), None, "other", "snr"),
        ((1, 10, 4), {"boxes": [], "classes": []}, "other", "ap50"),
    ],
)
def test_default_metric_of_one_output(shape: tuple[int, ...], label: Any, task: Task, name: str) -> None:
    """Shape of the output, kind of the label and the declared task decide."""
    assert default_metric(_signature(shape, task=task), label).name == name


def test_default_metric_of_several_outputs() -> None:
    """The output that the label fits is taken; several labels are compared together; doubt is an error."""
    metric = default_metric(_signature((1, 10), (1, 8, 8, 3)), 3)
    assert (metric.name, metric.output) == ("top1", "y0")
    assert default_metric(_signature((1, 10), (1, 4)), {"y1": 3}).output == "y1"
    assert default_metric(_signature((1, 2), (1, 4)), {"y0": [0.0, 1], "y1": [0.0, 1, 2, 3]}).name == "mae"
    with pytest.raises(DataError, match="could belong to any of the outputs y0, y1") as caught:
        default_metric(_signature((1, 10), (1, 10)), 3)
    assert caught.value.hint == "Choose one with --metric NAME@OUTPUT, such as top1@y0"


def test_no_default_metric_fits_a_label_of_another_shape() -> None:
    """The message has both shapes, the hint the names."""
    with pytest.raises(
        DataError, match=r"no metric fits a label of shape \(7,\) and dtype float64 with output y0: float32"
    ):
        default_metric(_signature((1, 10)), np.zeros(7))


def test_compare_uses_the_paired_method_of_the_metric() -> None:
    """0/1 scores: Tango; real scores: BCa; a ranking: resampling. The worse program has a drop above 0 in each."""
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, 200)
    good = labels + rng.normal(0, 0.3, 200)
    poor = labels + rng.normal(0, 1.0, 200)
    for name, method in (("binary0.5", "tango-score"), ("mae", "bootstrap-bca"), ("auc", "bootstrap-percentile")):
        reference, candidate = metric_named(name), metric_named(name)
        _value(reference, good[:, None, None], labels)
        _value(candidate, poor[:, None, None], labels)
        result = compare(reference, candidate)
        assert result.method == method
        assert result.low is not None
        assert result.high is not None
        assert 0 < result.low <= result.drop <= result.high
        assert result.reference == pytest.approx(reference.value())
        same = compare(reference, reference)
        assert same.drop == 0


def test_compare_refuses_what_is_no_pair() -> None:
    """Other metrics or other sample counts are a mistake of the caller."""
    first, second = metric_named("mae"), metric_named("mae")
    first.update({"y": np.zeros(1)}, 0.0)
    with pytest.raises(ValueError, match="mae of 1 samples and mae of 0 are no pair"):
        compare(first, second)


def test_average_precision_keeps_a_hundred_detections_of_a_class() -> None:
    """The 101st best detection of an image is not looked at."""
    boxes = [[0, 0, 1, 1]] * 100 + [[5, 5, 9, 9]]
    outputs = _detections(boxes, np.linspace(1, 0.1, 101).tolist(), [0] * 101)
    metric = AveragePrecision()
    assert _value(metric, [outputs], [{"boxes": [[5, 5, 9, 9]], "classes": [0]}]) == 0.0
