"""Where samples come from, and what is refused."""

from __future__ import annotations

import contextlib
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.calibration.data import inspect_samples, open_dataset, split, spread
from edge.calibration.data_types import Role, Sample
from edge.errors import DataError
from edge.signature import Preprocess, Task
from tests.data_helpers import (
    MODELS,
    RGB8,
    ROWS,
    TWO,
    VECTOR,
    Array,
    calibration,
    needs_models,
    picture,
    refused,
    save,
    signature,
    table,
    values,
    write_wav,
)

# --- choosing samples --------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers(1, 400))
def test_split_parts_all_samples(count: int, chosen: int) -> None:
    """Both parts are ascending, disjoint and complete, and the chosen ones lie in equal stretches."""
    first, rest = split(count, chosen)
    assert sorted([*first, *rest]) == list(range(count))
    assert list(first) == sorted(first)
    assert len(first) == min(chosen, count)
    if chosen < count:
        assert all(i * count // chosen <= index < (i + 1) * count // chosen for i, index in enumerate(first))


@pytest.mark.parametrize("period", [2, 4, 10])
def test_spread_hits_every_class_of_periodic_data(period: int) -> None:
    """Where classes come in turn, equal steps would draw one class only; these are within a third of even."""
    chosen = np.array(spread(1000, 100)) % period
    counts = np.bincount(chosen, minlength=period)
    assert counts.min() >= 100 / period * 2 / 3


# --- npz and npy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "role", "expected"),
    [
        (("x_train", "y_train", "x_test", "y_test"), "calibration", "x_train"),
        (("x_train", "y_train", "x_test", "y_test"), "evaluation", "x_test"),
        (("image", "label"), "evaluation", "image"),
        (("x", "targets", "name"), "calibration", "x"),
        (("X", "Y"), "calibration", "X"),
        (("arr_0",), "calibration", "arr_0"),
        (("x_test", "y_test"), "calibration", "x_test"),
    ],
)
def test_npz_members_are_found(tmp_path: Path, names: tuple[str, ...], role: Role, expected: str) -> None:
    """Inputs go by name or `x`, with the suffix of the role; labels by their usual names."""
    arrays: dict[str, Array] = {}
    for number, name in enumerate(names):
        is_label = name.lower()[0] in "ylt"
        arrays[name] = np.arange(10) if is_label else np.array(["n"] * 10) if name == "name" else ROWS + 100 * number
    np.savez(tmp_path / "d.npz", allow_pickle=False, **arrays)
    data = open_dataset(str(tmp_path / "d.npz"), VECTOR, role=role)
    assert values(data) == arrays[expected].tolist()
    assert data.labelled == (len(names) > 1)
    if data.labelled:
        assert [sample.label for sample in data] == list(range(10))


def test_npz_of_the_other_split_is_a_finding(tmp_path: Path) -> None:
    """Calibrating with the test split is done, and said."""
    np.savez(tmp_path / "d.npz", x_test=ROWS)
    assert "OTHER_SPLIT" in [f.rule for f in calibration(tmp_path / "d.npz").findings()]


def test_npz_members_are_chosen(tmp_path: Path) -> None:
    """`file.npz:ARRAY,LABELS` names inputs in order, then labels."""
    np.savez(tmp_path / "d.npz", p=ROWS, q=ROWS + 1, r=np.arange(10))
    assert values(calibration(f"{tmp_path}/d.npz:q"))[0] == [1, 2, 3, 4]
    assert [s.label for s in calibration(f"{tmp_path}/d.npz:p,r")] == list(range(10))
    assert "no array 'z'; it has p, q, r" in refused(f"{tmp_path}/d.npz:z")
    assert "3 arrays chosen (p,q,r); accepted: one per input (image), and one more" in refused(
        f"{tmp_path}/d.npz:p,q,r"
    )


def test_npz_of_several_inputs_goes_by_name(tmp_path: Path) -> None:
    """Each input takes the member of its name."""
    np.savez_compressed(tmp_path / "d.npz", b=np.ones((5, 3)), a=np.zeros((5, 2)), y=np.linspace(0, 1, 5))
    first = calibration(tmp_path / "d.npz", TWO).first()
    assert {name: v.shape for name, v in first.inputs.items()} == {"a": (1, 2), "b": (1, 3)}
    assert isinstance(first.label, np.ndarray)


def test_npz_in_fortran_order(tmp_path: Path) -> None:
    """Arrays stored column by column give the same rows."""
    np.savez_compressed(tmp_path / "d.npz", x=np.asfortranarray(ROWS))
    assert values(calibration(tmp_path / "d.npz").select([1, 9])) == ROWS[[1, 9]].tolist()


def test_npy_rows_are_samples(tmp_path: Path) -> None:
    """A `.npy` file has samples without labels for one input."""
    np.save(tmp_path / "d.npy", ROWS)
    data = calibration(tmp_path / "d.npy")
    assert values(data) == ROWS.tolist()
    assert (data.kind, data.count, data.labelled) == ("npy", 10, False)
    assert "one array for a model of 2 inputs (a, b)" in refused(tmp_path / "d.npy", TWO)


def objects() -> Array:
    """Return an array that only unpickling could read."""
    return np.array([{"a": 1}, None], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": objects()}, "array 'x' holds Python objects, which are never unpickled"),
        ({"x": np.zeros((3, 5))}, "d.npz[0]: input 'image' received float64[5]; accepted: [1, 4]"),
        ({"x": np.zeros((0, 4))}, "array 'x' has no samples; its shape is (0, 4)"),
        (
            {"x": np.zeros((3, 4)), "y": np.zeros(2)},
            "one sample per index of the first axis; received x (3, 4), y (2,)",
        ),
        ({"x": np.array([[0.0] * 4, [np.nan] * 4])}, "d.npz[1]: the values for input 'image' contain NaN"),
        ({"x": np.zeros((3, 4)), "y": np.array([0, 1, np.nan])}, "d.npz[2]: the label contains NaN"),
        ({"p": np.zeros((3, 4)), "q": np.zeros((3, 4))}, "no arrays for the inputs image; it has p, q"),
        ({"x": np.zeros((3, 4), "M8[s]")}, "array 'x' holds dtype datetime64[s]"),
        ({"x": np.float32(3)}, "one sample per index of the first axis; received x ()"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, arrays: dict[str, Any], text: str) -> None:
    """The message names the member or sample."""
    np.savez(tmp_path / "d.npz", **arrays)
    assert text in refused(tmp_path / "d.npz")


def test_damaged_npz(tmp_path: Path) -> None:
    """What is no archive, and an archive whose member ends early, are told apart from good ones."""
    np.savez_compressed(tmp_path / "good.npz", x=np.random.default_rng(0).random((5000, 4)))
    data = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(data[:2000] + bytes(1000) + data[3000:])
    assert "array 'x' is damaged" in refused(tmp_path / "bad.npz")
    (tmp_path / "none.npz").write_bytes(b"hello")
    assert "not a readable .npz archive" in refused(tmp_path / "none.npz")
    with zipfile.ZipFile(tmp_path / "good.npz") as archive, zipfile.ZipFile(tmp_path / "short.npz", "w") as short:
        short.writestr("x.npy", archive.read("x.npy")[:-8])
    assert "it ends within samples" in refused(tmp_path / "short.npz")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["d.npz", "d.npy", "d.csv", "d.wav"]), st.data())
def test_damaged_bytes_are_refused_or_read(name: str, data: st.DataObject) -> None:
    """Whatever bytes are changed or cut off, the data are read or refused with a DataError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        np.savez(path, x=ROWS) if name == "d.npz" else np.save(Path(folder) / "d.npy", ROWS)
        if name == "d.csv":
            table(path.parent, "f0,f1,f2,f3,y", "1,2,3,4,0", "5,6,7,8,1")
        if name == "d.wav":
            write_wav(path, np.zeros(4, np.int16))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, min(len(content), 250) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
        with contextlib.suppress(DataError):
            assert list(calibration(folder if name == "d.wav" else path))


def test_npy_that_cannot_be_used(tmp_path: Path) -> None:
    """Objects are not unpickled, other formats not guessed, and emptiness is said."""
    np.save(tmp_path / "o.npy", objects(), allow_pickle=True)
    assert "not a readable .npy file of numbers" in refused(tmp_path / "o.npy")
    np.save(tmp_path / "e.npy", np.zeros((0, 4)))
    assert "has no samples; its shape is (0, 4)" in refused(tmp_path / "e.npy")
    (tmp_path / "t.npy").write_text("text")
    assert "it has no .npy header" in refused(tmp_path / "t.npy")


def test_streaming_ten_thousand_samples_keeps_memory_bounded(tmp_path: Path) -> None:
    """Of 23 MB in a compressed member, at most 6 MB are in memory at a time."""
    np.savez_compressed(tmp_path / "d.npz", x=np.ones((10_000, 24, 24), np.float32), y=np.zeros(10_000, np.uint8))
    data = calibration(tmp_path / "d.npz", signature(24, 24, 1, layout="NHWC"))
    tracemalloc.start()
    total = sum(float(sample.inputs["image"][0, 0, 0, 0]) for sample in data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 10_000
    assert peak < 6e6


# --- callables ---------------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> Path:
    """Write the user's file."""
    path = folder / "mine.py"
    path.write_text("import numpy as np\n" + text)
    return path


@pytest.mark.parametrize(
    ("body", "label", "count"),
    [
        ("def data():\n    for i in range(3): yield np.full(4, i)", None, None),
        ("def data():\n    return [(np.full(4, i), i) for i in range(3)]", 2, 3),
        ("def data():\n    for i in range(3): yield {'image': np.full((1, 4), i)}, [i, i, i, i]", [2] * 4, None),
        ("data = [[i] * 4 for i in range(3)]", None, 3),
        ("def data():\n    for i in range(3): yield [np.full((1, 4), i), np.array([i])]", 2, None),
        (
            "class data:\n    def __len__(self): return 3\n"
            "    def __getitem__(self, i): return np.full(4, i % 3), 'abc'[i % 3]",
            2,
            3,
        ),
    ],
)
def test_what_a_callable_may_yield(tmp_path: Path, body: str, label: object, count: int | None) -> None:
    """Arrays, dicts and pairs; generators, lists and map-style data sets; each can be read twice."""
    data = calibration(f"{script(tmp_path, body)}:data", signature(4, labels=("a", "b", "c")))
    assert data.count == count
    for _ in range(2):
        samples = list(data)
        assert [s.inputs["image"].tolist() for s in samples] == [[[i] * 4] for i in range(3)]
        last = samples[-1].label
        assert (last.tolist() if isinstance(last, np.ndarray) else last) == label


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("def data():\n    yield np.zeros(4)\n    raise KeyError('k')", "raised KeyError: 'k' (mine.py, line 4)"),
        ("def data():\n    return 1 / 0", "mine.py:data raised ZeroDivisionError: division by zero (mine.py, line 3)"),
        ("def data(:", "cannot be imported: invalid syntax (mine.py, line 2)"),
        ("import no_such_module", "No module named 'no_such_module' (mine.py, line 2)"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3 (mine.py, line 2)"),
        ("def other(): pass", "has no 'data'; its functions are other"),
        ("def data(): return 3", "raised TypeError: 'int' object is not iterable"),
        ("def data(): return []", "mine.py:data: yields no samples"),
        ("it = iter([np.zeros(4)] * 9)\ndef data(): return it", "returns the same iterator again"),
        ("def data(): yield {'b': 1}", "mine.py:data[0]: yields b; accepted: the inputs image"),
        ("def data(): yield 1, 2, 3", "yields a tuple of 3; accepted: an array, a dict, or (inputs, label)"),
        ("def data(): yield 'text'", "mine.py:data[0] holds dtype <U4; accepted: integers"),
        ("def data(): yield [[1], [2, 3]]", "mine.py:data[0]: yields list, which is no array of numbers"),
        ("def data(): yield object()", "holds Python objects"),
        ("def data(): yield np.zeros((7, 4))", "received float64[7, 4]; accepted: [1, 4] This is a batch of 7"),
        ("def data():\n    yield np.zeros(4), 1\n    yield np.zeros(4)", "mine.py:data[1]: no label, unlike the first"),
        ("def data(): yield np.zeros(4), 'cat'", "label 'cat'; accepted: a number or an array"),
    ],
)
def test_callables_that_cannot_be_used(tmp_path: Path, body: str, text: str) -> None:
    """The user's exception comes with file and line; a wrong yield with what is accepted."""
    assert text in refused(f"{script(tmp_path, body)}:data")


def test_a_users_file_shadows_no_package(tmp_path: Path) -> None:
    """Its folder comes last on the path: helpers beside it are found, installed packages stay."""
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    (tmp_path / "my_own_helper.py").write_text("FOUR = 4")
    body = (
        "import importlib, json, my_own_helper\nimportlib.reload(json)\ndef data(): yield np.zeros(my_own_helper.FOUR)"
    )
    assert len(list(calibration(f"{script(tmp_path, body)}:data"))) == 1


def test_unseeded_callables_are_a_finding(tmp_path: Path) -> None:
    """Passes that differ are noticed by their digests."""
    path = script(tmp_path, "def data():\n    for i in range(40): yield np.random.default_rng().random(4)")
    data = calibration(f"{path}:data")
    data.digest()
    assert "DATA_NOT_REPEATABLE" in [f.rule for f in data.findings()]


# --- any source --------------------------------------------------------------------------------------------------


def test_unknown_locations_list_what_is_accepted(tmp_path: Path) -> None:
    """A missing file and a file of an unknown kind get the list of forms."""
    assert "no such file or folder Accepted: FILE.npz" in refused(tmp_path / "gone")
    (tmp_path / "a.xyz").write_text("")
    assert "data of an unknown kind Accepted: FILE.npz" in refused(tmp_path / "a.xyz")
    assert "mine.py: no such file" in refused(tmp_path / "mine.py:data")


def test_limit_spreads_over_known_lengths(tmp_path: Path) -> None:
    """With a known length a limit takes spread samples, else the first ones."""
    np.save(tmp_path / "d.npy", np.repeat(np.arange(100.0)[:, None], 4, 1))
    data = calibration(tmp_path / "d.npy", limit=10)
    assert [row[0] // 10 for row in values(data)] == list(range(10))
    path = script(tmp_path, "def data():\n    for i in range(9): yield np.full(4, i)")
    assert [row[0] for row in values(calibration(f"{path}:data", limit=3))] == [0, 1, 2]
    with pytest.raises(DataError, match="a limit of 0 samples; accepted: 1 or more"):
        calibration(tmp_path / "d.npy", limit=0)


def test_split_and_select(tmp_path: Path) -> None:
    """Parts of a data set are data sets; positions count within the part."""
    np.savez(tmp_path / "d.npz", x=np.repeat(np.arange(100.0)[:, None], 4, 1))
    data = calibration(tmp_path / "d.npz")
    first, rest = data.split(30)
    assert (first.role, first.count, rest.role, rest.count) == ("calibration", 30, "evaluation", 70)
    assert sorted(values(first) + values(rest)) == values(data)
    assert values(rest.select([0, 69])) == [values(rest)[0], values(rest)[69]]
    with pytest.raises(DataError, match="samples 0 to 70 selected; accepted: 0 to 69"):
        rest.select([70, 0])
    with pytest.raises(DataError, match="100 of 100 samples to calibrate with; accepted: 1 to 99"):
        data.split(100)


def test_callables_of_unknown_length(tmp_path: Path) -> None:
    """They cannot be split; selecting beyond their end is noticed while reading."""
    path = script(tmp_path, "def data():\n    for i in range(9): yield np.full(4, i)")
    data = calibration(f"{path}:data")
    assert [row[0] for row in values(data.select([2, 7]))] == [2, 7]
    with pytest.raises(DataError, match="callable data of unknown length cannot be split"):
        data.split(3)
    with pytest.raises(DataError, match="gave 1 samples; expected 2, up to index 9"):
        list(data.select([2, 9]))


def test_digest_is_of_content_and_choice(tmp_path: Path) -> None:
    """Equal content in another place has an equal digest; other content or another choice has not."""
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        save(tmp_path / folder / "a.png", picture(seed=seed))
        save(tmp_path / folder / "b.png", picture(seed=5))
    digests = [calibration(tmp_path / name, RGB8).digest() for name in ("one", "two", "three")]
    assert digests[0] == digests[1] != digests[2]
    assert calibration(tmp_path / "one", RGB8).select([0]).digest() != digests[0]
    path = script(tmp_path, "def data():\n    for i in range(9): yield np.full(4, i), i")
    data = calibration(f"{path}:data")
    assert data.digest() == data.digest() == calibration(f"{path}:data").digest()
    script(tmp_path, "def data():\n    for i in range(9): yield np.full(4, i), 8 - i")
    assert calibration(f"{path}:data").digest() != data.digest()


@pytest.mark.parametrize(
    ("label", "task", "expected"),
    [
        (np.int64(3), "other", 3),
        (np.array([3]), "other", 3),
        (np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), "classification", 2),
        (np.float32(4), "classification", 4),
        (np.float32(4), "regression", 4.0),
        (np.array([[1, 2], [3, 4]]), "segmentation", [[1, 2], [3, 4]]),
    ],
)
def test_label_types(tmp_path: Path, label: Array, task: Task, expected: object) -> None:
    """Whole scalars are indices, one-hot rows too for a classifier; the rest stays an array."""
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4)), y=np.stack([label] * 2))
    got = calibration(tmp_path / "d.npz", signature(4, task=task)).first().label
    assert (got.tolist() if isinstance(got, np.ndarray) else got) == expected
    assert isinstance(got, int if isinstance(expected, int) else np.ndarray)


def test_class_beyond_the_models_is_refused(tmp_path: Path) -> None:
    """A classifier of 10 classes cannot have label 10."""
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4)), y=[3, 10])
    text = refused(tmp_path / "d.npz", signature(4, task="classification"))
    assert "d.npz[1]: label 10; the model has 10 classes: accepted are 0 to 9" in text


def samples(rows: Array, labels: list[int] | None = None) -> list[Sample]:
    """Return prepared samples of the input `image`."""
    return [Sample(id=str(i), inputs={"image": r[None]}, label=labels and labels[i]) for i, r in enumerate(rows)]


NOISE = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
BYTES = np.random.default_rng(0).integers(0, 256, (40, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "role", "pre", "rules"),
    [
        (NOISE, "calibration", None, []),
        (BYTES, "calibration", None, ["RAW_RANGE"]),
        (BYTES, "calibration", Preprocess(scale=1 / 255), []),
        (BYTES - 128, "calibration", None, ["RAW_RANGE"]),
        (BYTES * 9, "calibration", None, []),
        (NOISE[:31], "calibration", None, ["FEW_SAMPLES"]),
        (NOISE[:31], "evaluation", None, []),
        (np.zeros((40, 4), np.float32), "calibration", None, ["CONSTANT_INPUT", "DUPLICATE_SAMPLES"]),
        (np.concatenate([NOISE, NOISE[:1]]), "evaluation", None, ["DUPLICATE_SAMPLES"]),
    ],
)
def test_findings_on_samples(rows: Array, role: Role, pre: Preprocess | None, rules: list[str]) -> None:
    """Each rule fires on its case and on no other."""
    assert [f.rule for f in inspect_samples(samples(rows), signature(4, pre=pre), role=role)] == rules


def test_finding_of_one_class() -> None:
    """Evaluation data of a single class is told."""
    found = inspect_samples(samples(NOISE, [3] * 40), VECTOR, role="evaluation")
    assert [f.message for f in found] == ["all 40 evaluation samples have the label 3"]


@pytest.mark.parametrize(
    ("labels", "role", "missing"),
    [
        ([0, 1, 2, 3] * 10, "calibration", "none is of class 4, 5, 6, 7, 8, 9"),
        ([0, 1, 2, 3] * 10, "evaluation", "none is of class 4, 5, 6, 7, 8, 9"),
        (list(range(10)) * 4, "calibration", ""),
        ([0, 1, 2, 3, 10] * 8, "calibration", ""),
        ([0] * 40, "calibration", "none is of class 1, 2, 3, 4, 5, 6, 7, 8, ..."),
    ],
)
def test_finding_of_missing_classes(labels: list[int], role: Role, missing: str) -> None:
    """Classes of the model without a sample are named; labels that are no classes of it tell nothing."""
    found = [f for f in inspect_samples(samples(NOISE, labels), VECTOR, role=role) if f.rule == "MISSING_CLASSES"]
    assert len(found) == bool(missing)
    assert all(missing in f.message for f in found)


def test_as_many_classes_as_chance_leaves_out_are_not_missing() -> None:
    """40 samples cannot hold all of 1,000 classes."""
    many = signature(4, classes=1000)
    labels = [int(i) for i in np.random.default_rng(0).integers(0, 1000, 40)]
    assert inspect_samples(samples(NOISE, labels), many, role="calibration") == ()


# --- real data ---------------------------------------------------------------------------------------------------


@needs_models
def test_mnist() -> None:
    """Images of 28 x 28 feed both layouts, and raw bytes are noticed."""
    path = MODELS / "data-mnist/mnist_t10k_balanced_1000.npz"
    last = open_dataset(str(path), signature(28, 28, 1, layout="NHWC"), role="evaluation")
    first = open_dataset(str(path), signature(1, 28, 28, layout="NCHW"), role="evaluation")
    with np.load(path) as stored:
        assert np.array_equal(last.first().inputs["image"][0, ..., 0], stored["x"][0])
        assert np.array_equal(first.first().inputs["image"][0, 0], stored["x"][0])
        assert [s.label for s in last] == stored["y"].tolist()
    assert [f.rule for f in last.findings()] == ["RAW_RANGE"]


@needs_models
def test_hand_gestures() -> None:
    """The archive's train part calibrates, its test part evaluates."""
    path = str(MODELS / "keras-hand-gesture/keypoint_split_rs42.npz")
    contract = signature(42, task="classification", classes=4)
    assert open_dataset(path, contract, role="calibration").count == 3590
    assert open_dataset(path, contract, role="evaluation").count == 1197


@needs_models
def test_wake_words_from_files_and_arrays() -> None:
    """60 photographs are resized to the input; the archive of the same photographs needs no resizing."""
    pre = Preprocess(scale=1 / 255, resize="antialias")
    contract = signature(96, 96, 3, layout="NHWC", pre=pre, task="classification", classes=2)
    arrays = open_dataset(str(MODELS / "data-coco-permissive/vww_u8_96.npz"), contract, role="evaluation")
    files = open_dataset(str(MODELS / "data-coco-permissive/images"), contract, role="evaluation")
    assert arrays.count == files.count == 60
    assert {s.label for s in arrays} == {0, 1}
    assert all(s.inputs["image"].max() <= 1 for s in files.select(range(0, 60, 20)))


@needs_models
def test_keyword_spotting_is_dequantized() -> None:
    """The stored int8 MFCC become (q - 83) * 0.5847029 by scale and mean."""
    path = MODELS / "data-kws01/kws01_mfcc_int8_1000.npz"
    pre = Preprocess(scale=0.5847029, mean=(83 * 0.5847029,))
    data = open_dataset(
        str(path), signature(49, 10, 1, layout="NHWC", pre=pre, classes=12), role="evaluation", limit=20
    )
    with np.load(path) as stored:
        expected = (stored["x"][list(data.indices or ())].astype(np.float64) - 83) * 0.5847029
    assert np.allclose(np.concatenate([s.inputs["image"] for s in data]), expected, atol=2e-5)
