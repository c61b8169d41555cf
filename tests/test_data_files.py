"""Samples from folders of images and WAV files, and from CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.calibration.data_folder import load_image, load_wav
from edge.signature import Preprocess
from tests.data_helpers import (
    RGB8,
    TWO,
    calibration,
    picture,
    refused,
    save,
    signature,
    table,
    values,
    write_wav,
)

# --- folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG"])
def test_lossless_images_keep_their_pixels(tmp_path: Path, suffix: str) -> None:
    """A file's RGB pixels arrive as they are."""
    assert np.array_equal(load_image(save(tmp_path / f"a{suffix}", picture())), picture())


def test_class_folders_give_labels(tmp_path: Path) -> None:
    """Subfolders in sorted order are classes; other files and hidden ones are ignored."""
    for number, name in enumerate(["dog/b.png", "cat/z.jpg", "dog/a.webp", "cat/deep/y.jpeg", ".hidden/x.png"]):
        save(tmp_path / name, picture(seed=number))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = calibration(tmp_path, RGB8)
    assert data.class_names == ("cat", "dog")
    assert [(s.id, s.label) for s in data] == [
        ("cat/deep/y.jpeg", 0),
        ("cat/z.jpg", 0),
        ("dog/a.webp", 1),
        ("dog/b.png", 1),
    ]
    assert data.first().inputs["image"].shape == (1, 8, 8, 3)


def test_class_folders_follow_the_models_labels(tmp_path: Path) -> None:
    """Where the signature knows the folders' names, its order counts."""
    for name in ("cat", "dog"):
        save(tmp_path / name / "a.png", picture())
    contract = signature(8, 8, 3, layout="NHWC", pre=Preprocess(resize="area"), labels=("dog", "bird", "cat"))
    data = calibration(tmp_path, contract)
    assert [s.label for s in data] == [2, 0]
    assert data.class_names == ("dog", "bird", "cat")


def test_numbered_class_folders_warn_of_their_order(tmp_path: Path) -> None:
    """Folders 2 and 10 sort as text, which is a finding."""
    for name in ("2", "10"):
        save(tmp_path / name / "a.png", picture())
    found = {f.rule: f for f in calibration(tmp_path, RGB8).findings()}
    assert "sorted as text (10, 2)" in found["CLASS_ORDER"].message


def test_loose_files_and_one_subfolder_are_unlabelled(tmp_path: Path) -> None:
    """A single subfolder says nothing of classes."""
    save(tmp_path / "images" / "a.png", picture())
    assert not calibration(tmp_path, RGB8).labelled
    save(tmp_path / "b.png", picture())
    assert "holds 1 files beside the subfolders images" in refused(tmp_path, RGB8)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    """An empty folder, a damaged image and a file that is none are named."""
    assert "no images and no WAV files in the folder; accepted: .png" in refused(tmp_path, RGB8)
    (tmp_path / "readme.txt").write_text("x")
    assert "no images and no WAV files" in refused(tmp_path, RGB8)
    whole = save(tmp_path / "a.jpg", picture(200, 200)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    assert "b.jpg: the image is damaged" in refused(tmp_path, RGB8)
    (tmp_path / "b.jpg").write_text("text")
    assert "b.jpg: not a readable image; accepted: PNG, JPEG, BMP, WebP" in refused(tmp_path, RGB8)
    assert "a folder feeds one input; the model has a, b" in refused(tmp_path, TWO)


def test_image_modes_are_converted_as_stated(tmp_path: Path) -> None:
    """Palettes resolve, transparency is dropped, gray stays gray, 16 bits lose the lower 8."""
    from PIL import Image

    image = picture()
    rgba = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
    assert np.array_equal(load_image(save(tmp_path / "rgba.png", rgba)), image)
    Image.fromarray(image).quantize(8).save(tmp_path / "p.png")
    expected = np.asarray(Image.fromarray(image).quantize(8).convert("RGB"))
    assert np.array_equal(load_image(tmp_path / "p.png"), expected)
    assert np.array_equal(load_image(save(tmp_path / "l.png", image[..., 0])), image[..., :1])
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    assert load_image(save(tmp_path / "deep.png", deep)).ravel().tolist() == [0, 0, 1, 255]
    Image.fromarray(image[..., 0] > 127).save(tmp_path / "bits.png")
    assert set(load_image(tmp_path / "bits.png").ravel().tolist()) == {0, 255}


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """A picture stored sideways comes upright."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16] = 255
    upright = load_image(save(tmp_path / "a.jpg", image, exif=exif, quality=95))
    assert upright.shape == (32, 16, 3)
    assert upright[:16].mean() > 250
    assert upright[16:].mean() < 5


def test_wav_folder(tmp_path: Path) -> None:
    """Float inputs receive value / 32768, int16 inputs the values themselves."""
    samples = np.array([-32768, 0, 16384, 32767], np.int16)
    for name in ("yes/a.wav", "no/b.wav"):
        write_wav(tmp_path / name, samples)
    data = calibration(tmp_path)
    assert (data.kind, data.class_names, [s.label for s in data]) == ("audio", ("no", "yes"), [0, 1])
    assert values(data)[0] == [-1, 0, 0.5, 32767 / 32768]
    assert values(calibration(tmp_path, signature(4, dtype="int16")))[0] == samples.tolist()
    stereo = np.stack([samples, samples], axis=1)
    assert load_wav(write_wav(tmp_path / "s.wav", stereo), "int16")[0].tolist() == stereo.tolist()


def test_wav_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Another width, another rate, another length and another format are named."""
    write_wav(tmp_path / "a.wav", np.zeros(4, np.int16))
    write_wav(tmp_path / "b.wav", np.zeros(4, np.uint8), width=1)
    assert "b.wav: 8 bits per sample; accepted: 16-bit PCM" in refused(tmp_path)
    write_wav(tmp_path / "b.wav", np.zeros(4, np.int16), rate=8000)
    assert "b.wav: recorded at 8000 Hz, a.wav at 16000 Hz" in refused(tmp_path)
    write_wav(tmp_path / "b.wav", np.zeros(5, np.int16))
    assert "b.wav: input 'image' received float32[5]; accepted: [1, 4]" in refused(tmp_path)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    assert "b.wav: not a readable WAV file of 16-bit PCM: it ends too early" in refused(tmp_path)


# --- csv ---------------------------------------------------------------------------------------------------------


def test_csv_of_numbers(tmp_path: Path) -> None:
    """All columns but the label's make the vector, in their order."""
    data = calibration(table(tmp_path, "f0,f1,label,f2,f3", "1,2,1,3,4.5", "0,0,0,-1,1e3"))
    assert values(data) == [[1, 2, 3, 4.5], [0, 0, -1, 1000]]
    assert [s.label for s in data] == [1, 0]
    assert data.count == 2


def test_csv_of_files_and_class_names(tmp_path: Path) -> None:
    """Cells are paths relative to the file; class names are numbered in sorted order."""
    save(tmp_path / "im" / "a.png", picture())
    np.save(tmp_path / "b.npy", picture(8, 8))
    data = calibration(table(tmp_path, "file,label", "im/a.png,dog", "b.npy,cat"), RGB8)
    assert [s.label for s in data] == [1, 0]
    assert data.class_names == ("cat", "dog")
    assert np.array_equal(list(data)[1].inputs["image"][0], picture(8, 8))


def test_csv_of_several_inputs_and_array_labels(tmp_path: Path) -> None:
    """Columns go by the inputs' names; a label may be a file."""
    for name, length in (("a", 2), ("b", 3), ("boxes", 5)):
        np.save(tmp_path / f"{name}.npy", np.full(length, length))
    (sample,) = calibration(table(tmp_path, "b,label,a", "b.npy,boxes.npy,a.npy"), TWO)
    assert sample.inputs["a"].tolist() == [[2, 2]]
    assert sample.inputs["b"].tolist() == [[3, 3, 3]]
    assert np.asarray(sample.label).tolist() == [5] * 5


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["f0,f1,f2,f3"], "no rows below the header"),
        (["f0,f1,f2,f3", "1,2,3"], "d.csv:2: 3 cells; the header has 4"),
        (["f0,f1,f2,f3", "1,2,3,4", "1,2,x,4"], "d.csv:3, column 'f2': 'x' is not a finite number"),
        (["f0,f1,f2,f3", "1,2,nan,4"], "d.csv:2, column 'f2': 'nan' is not a finite number"),
        (["image", "gone.npy"], "column 'image': no file 'gone.npy'; paths are relative to"),
        (["image", f"{'9' * 400}.npy"], "column 'image': no file '999"),
        (["image", "a.xyz"], "'a.xyz' is neither a number nor a file of .npy, .png"),
        (["p,q,label", "a.png,b.png,1"], "the columns p, q, label do not feed the inputs image"),
        (["f0,f1", "1,2"], "d.csv:2: input 'image' received int64[2]; accepted: [1, 4]"),
        (["f0,f0", "1,2"], "the header must name every column once"),
        (
            ["f0,f1,f2,f3,label", "1,2,3,4,cat", "1,2,3,4,5"],
            "column 'label' mixes class names, such as 'cat', with numbers",
        ),
    ],
)
def test_csv_that_cannot_be_used(tmp_path: Path, lines: list[str], text: str) -> None:
    """The message names line and column."""
    assert text in refused(table(tmp_path, *lines))
