"""The arithmetic from a raw sample to the model's input."""

from __future__ import annotations

from fractions import Fraction
from importlib.metadata import version
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.errors import ConfigError, DataError
from edge.preprocess import apply, describe, luma, parse_preprocess, place, resize
from edge.signature import Colour, Fit, Preprocess, Resize, TensorSpec

Array = NDArray[Any]
SIDES = st.integers(1, 90)
NHWC = TensorSpec(name="image", shape=(1, 8, 8, 3), layout="NHWC")
NCHW = TensorSpec(name="image", shape=(1, 3, 8, 8), layout="NCHW")


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Array:
    """Return a random image."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def pillow(image: Array, size: tuple[int, int]) -> Array:
    """Return what Pillow makes of an image."""
    from PIL import Image

    made = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    resized = np.asarray(made.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized.reshape(*size, image.shape[2])


# --- kernels -----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3]), st.integers(0, 99))
def test_antialias_is_pillows_bilinear(h: int, w: int, height: int, width: int, channels: int, seed: int) -> None:
    """The integer weights give Pillow's bytes along each axis, so for both where Pillow goes horizontally first."""
    image = picture(h, w, channels, seed)
    expected = pillow(pillow(image, (h, width)), (height, width))
    actual = resize(image, (height, width), "antialias")
    assert np.array_equal(expected, actual)
    whole = pillow(image, (height, width))
    tolerance = 0 if int(version("pillow").split(".")[0]) < 13 else 1
    assert np.abs(whole.astype(int) - actual).max() <= tolerance


@pytest.mark.parametrize(
    ("raw", "size"), [((480, 640), (96, 96)), ((1080, 1920), (224, 224)), ((333, 500), (300, 300))]
)
def test_antialias_of_photo_sizes(raw: tuple[int, int], size: tuple[int, int]) -> None:
    """At sizes of real pictures the result is Pillow's, byte for byte."""
    image = picture(*raw)
    assert np.array_equal(pillow(image, size), resize(image, size, "antialias"))


def interpolated(line: list[int], m: int) -> list[Fraction]:
    """Half-pixel-centre linear interpolation in exact fractions."""
    n, result = len(line), []
    for d in range(m):
        position = Fraction((2 * d + 1) * n, 2 * m) - Fraction(1, 2)
        first = position.__floor__()
        weight = position - first
        left, right = (line[min(max(i, 0), n - 1)] for i in (first, first + 1))
        result.append(left * (1 - weight) + right * weight)
    return result


@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.integers(1, 60))
def test_bilinear_is_linear_interpolation(line: list[int], m: int) -> None:
    """Weights of 11 bits keep the result within rounding (0.5 + 255/4096) of exact interpolation."""
    actual = resize(np.array(line, np.uint8)[None, :, None], (1, m), "bilinear")[0, :, 0]
    for expected, value in zip(interpolated(line, m), actual.tolist(), strict=True):
        assert abs(expected - value) <= 0.5 + 255 / 4096


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_area_is_the_exact_mean(h: int, w: int, height: int, width: int) -> None:
    """A result pixel is the mean over its part of the raw image, rounded half up."""
    image = picture(h, w, 1)
    fine = np.repeat(np.repeat(image[..., 0].astype(np.int64), height, 0), width, 1)
    sums = fine.reshape(height, h, width, w).sum(axis=(1, 3))
    assert np.array_equal((2 * sums + h * w) // (2 * h * w), resize(image, (height, width), "area")[..., 0])


def test_nearest_takes_the_pixel_under_the_centre() -> None:
    """Three pixels from eight: centres 1.33, 4 and 6.67."""
    line = np.arange(8, dtype=np.uint8)[None, :, None]
    assert resize(line, (1, 3), "nearest")[0, :, 0].tolist() == [1, 4, 6]


@pytest.mark.parametrize("kernel", [k for k in get_args(Resize) if k != "none"])
def test_kernels_keep_a_flat_image(kernel: Resize) -> None:
    """Weights sum to one: a white image stays white at any size."""
    for size in ((1, 1), (7, 13), (64, 3), (200, 200)):
        assert resize(np.full((37, 53, 3), 255, np.uint8), size, kernel).min() == 255


@given(st.integers(0, 2**24 - 1))
def test_luma_is_pillows(rgb: int) -> None:
    """Gray values are those of Pillow's conversion to L."""
    from PIL import Image

    image = np.array([[[rgb >> 16, rgb >> 8 & 255, rgb & 255]]], np.uint8)
    assert np.asarray(Image.fromarray(image).convert("L")).tolist() == luma(image)[..., 0].tolist()


# --- fit ---------------------------------------------------------------------------------------------------------


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(get_args(Fit)))
def test_placements_lie_inside(h: int, w: int, height: int, width: int, fit: Fit) -> None:
    """Box and result lie inside their images, and every fit but stretch keeps the aspect ratio within a pixel."""
    placed = place((h, w), (height, width), fit)
    top, left, box_h, box_w = placed.box
    assert 0 <= top <= top + box_h <= h
    assert 0 <= left <= left + box_w <= w
    assert all(0 <= o <= o + s <= full for o, s, full in zip(placed.offset, placed.size, (height, width), strict=True))
    if fit == "crop":
        assert box_h == h or box_w == w
        short, exact = (box_w, h * width / height) if box_h == h else (box_h, w * height / width)
        assert short == 1 or abs(short - exact) <= 0.5
    if fit in ("letterbox", "corner"):
        assert placed.size[0] == height or placed.size[1] == width


def test_letterbox_pads_with_the_declared_value() -> None:
    """A 4 x 8 image lies in the middle rows of an 8 x 8 input; the rest is pad_value, before scaling."""
    pre = Preprocess(resize="nearest", fit="letterbox", pad_value=114, scale=2)
    result = apply(np.full((4, 8, 3), 10, np.uint8), NHWC, pre)
    assert result[0, :, 0, 0].tolist() == [228, 228, 20, 20, 20, 20, 228, 228]


def test_corner_pads_below_and_to_the_right() -> None:
    """A 4 x 8 image lies in the first rows of an 8 x 8 input, as YOLOX wants it; the rest is pad_value."""
    result = apply(np.full((4, 8, 3), 10, np.uint8), NHWC, Preprocess(resize="nearest", fit="corner", pad_value=114))
    assert result[0, :, 0, 0].tolist() == [10, 10, 10, 10, 114, 114, 114, 114]


def test_crop_takes_the_centre() -> None:
    """Of 8 x 12 pixels the middle 8 columns remain."""
    image = np.broadcast_to(np.arange(12, dtype=np.uint8)[None, :, None], (8, 12, 3))
    result = apply(image, NHWC, Preprocess(resize="bilinear", fit="crop"))
    assert result[0, 0, :, 0].tolist() == list(range(2, 10))


def test_pad_value_must_be_a_byte() -> None:
    """Padding is in raw units of an image."""
    with pytest.raises(ConfigError, match=r"pad_value is 0\.5; accepted for images: a whole number from 0 to 255"):
        apply(picture(4, 8), NHWC, Preprocess(resize="area", fit="letterbox", pad_value=0.5))


# --- colour, numbers, layout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [NHWC, NCHW])
@pytest.mark.parametrize("colour", get_args(Colour))
def test_colour_and_layout(spec: TensorSpec, colour: Colour) -> None:
    """Both layouts hold the same values in the declared channel order."""
    image = picture(8, 8)
    result = apply(image, spec, Preprocess(colour=colour))
    expected = {"rgb": image, "bgr": image[..., ::-1], "gray": np.repeat(luma(image), 3, axis=2)}[colour]
    assert result.shape == spec.shape
    assert result.dtype == np.float32
    last = result[0] if spec.layout == "NHWC" else result[0].transpose(1, 2, 0)
    assert np.array_equal(expected, last)


def test_one_channel_takes_gray() -> None:
    """A gray input accepts colour images, and a colour input gray ones."""
    gray = TensorSpec(name="x", shape=(1, 8, 8, 1), layout="NHWC")
    image = picture(8, 8)
    assert np.array_equal(apply(image, gray, Preprocess())[0], luma(image))
    assert np.array_equal(apply(image[..., :1], NHWC, Preprocess())[0, ..., 2], image[..., 0])


def test_numbers_follow_the_stated_order() -> None:
    """A number becomes x * scale, then - mean, then / std, per channel, each rounded to float32."""
    pre = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    image = picture(8, 8)
    x = image.astype(np.float32) * np.float32(1 / 255)
    expected = (x - np.array(pre.mean, np.float32)) / np.array(pre.std, np.float32)
    assert np.array_equal(expected, apply(image, NHWC, pre)[0])
    assert np.array_equal(expected, apply(image, NCHW, pre)[0].transpose(1, 2, 0))


@given(st.integers(-128, 127))
def test_a_dequantization_is_expressible(q: int) -> None:
    """The formula real = s * (q - z) is scale s and mean s * z, here of a keyword-spotting model's MFCC."""
    spec = TensorSpec(name="mfcc", shape=(1, 49, 10, 1), layout="NHWC")
    scale, zero_point = 0.5847029, 83
    pre = Preprocess(scale=scale, mean=(scale * zero_point,))
    result = apply(np.full((49, 10, 1), q, np.int8), spec, pre)
    assert result[0, 0, 0, 0] == pytest.approx((q - zero_point) * scale, abs=1e-5)


def test_mean_needs_one_value_per_channel() -> None:
    """Two means for three channels are refused."""
    with pytest.raises(ConfigError, match="mean has 2 values; input 'image' has 3 channels: give 1 or 3"):
        apply(picture(8, 8), NHWC, Preprocess(mean=(1, 2)))


@pytest.mark.parametrize(
    ("raw", "spec", "layout", "shape"),
    [
        ((28, 28), (1, 28, 28, 1), "NHWC", (1, 28, 28, 1)),
        ((28, 28), (1, 1, 28, 28), "NCHW", (1, 1, 28, 28)),
        ((1, 28, 28), (1, 28, 28, 1), "NHWC", (1, 28, 28, 1)),
        ((28, 28, 1), (1, 28, 28), "other", (1, 28, 28)),
        ((42,), (1, 42), "other", (1, 42)),
        ((1, 42), (-1, 42), "other", (1, 42)),
        ((16000,), (1, 16000, 1), "NLC", (1, 16000, 1)),
        ((15600,), (15600,), "other", (15600,)),
        ((2, 1, 128), (2, 1, 128), "other", (2, 1, 128)),
        ((7, 5), (-1, -1, 5), "other", (1, 7, 5)),
        ((), (1, 1), "other", (1, 1)),
        ((49, 10), (1, 49, 10, 1), "NHWC", (1, 49, 10, 1)),
    ],
)
def test_arrays_gain_and_lose_dimensions_of_one(
    raw: tuple[int, ...], spec: tuple[int, ...], layout: Any, shape: tuple[int, ...]
) -> None:
    """Values keep their order; only dimensions of 1 come and go."""
    values = np.arange(np.prod(raw), dtype=np.float64).reshape(raw)
    result = apply(values, TensorSpec(name="x", shape=spec, layout=layout), Preprocess())
    assert result.shape == shape
    assert result.dtype == np.float32
    assert np.array_equal(result.ravel(), values.ravel())


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_move_where_one_reading_fits(dtype: type[np.generic]) -> None:
    """Channels-last data suit a channels-first input and the other way about."""
    image = picture(8, 8).astype(dtype)
    first = image.transpose(2, 0, 1)
    assert np.array_equal(apply(image, NCHW, Preprocess())[0], first)
    assert np.array_equal(apply(first, NHWC, Preprocess())[0], image)
    assert np.array_equal(apply(first, NCHW, Preprocess())[0], first)
    assert np.array_equal(apply(image[None], NHWC, Preprocess())[0], image)


def test_result_is_a_fresh_contiguous_array() -> None:
    """A kept result does not keep its raw sample's memory."""
    for spec, raw in ((NCHW, picture(8, 8)), (NHWC, picture(8, 8).astype(np.float32))):
        result = apply(raw, spec, Preprocess())
        assert result.flags.c_contiguous
        assert result.flags.owndata or not np.shares_memory(result, raw)


# --- refusals ----------------------------------------------------------------------------------------------------

INTS = TensorSpec(name="ids", shape=(1, 4), dtype="int32")
VECTOR = TensorSpec(name="x", shape=(1, 4))


@pytest.mark.parametrize(
    ("raw", "spec", "text"),
    [
        (
            np.zeros((30, 30), np.float32),
            NHWC,
            r"s1: input 'image' received float32\[30, 30\]; accepted: \[1, 8, 8, 3\]",
        ),
        (np.zeros((9, 9, 3), np.uint8), NHWC, r"s1: the image is 9 x 9 .*takes 8 x 8 .* resize=none"),
        (np.array([1, np.nan, 0, 0]), VECTOR, "s1: the values for input 'x' contain NaN"),
        (np.array([1, np.inf, 0, 0]), VECTOR, "s1: the values for input 'x' contain an infinity"),
        (np.array([1e39, 0, 0, 0]), VECTOR, "s1: values for input 'x' are beyond the range of float32"),
        (np.array(["a"] * 4), VECTOR, "received dtype <U1; accepted: integers, floats, booleans"),
        (np.zeros((0, 4)), VECTOR, r"received float64\[0, 4\]"),
        (np.array([1, 2.5, 3, 4]), INTS, r"takes int32; received 2\.5, which is not a whole number"),
        (np.array([1, 2, 3, 2**31]), INTS, r"takes int32, from -2147483648 to 2147483647; received .* to 2147483648"),
    ],
)
def test_what_does_not_fit_is_refused(raw: Array, spec: TensorSpec, text: str) -> None:
    """The message names the sample, what was received and what is accepted."""
    with pytest.raises(DataError, match=text):
        apply(raw, spec, Preprocess(), sample="s1")


@pytest.mark.parametrize(
    ("raw", "pre", "hint"),
    [
        (picture(9, 9), Preprocess(), "Declare how to resize, such as resize=antialias"),
        (picture(9, 9).astype(np.float32), Preprocess(resize="area"), "Only uint8 images"),
        (np.zeros((192,)), Preprocess(), "The number of values agrees, but not their arrangement"),
        (np.zeros((5, 8, 8, 3)), Preprocess(), "This is a batch of 5: give one sample at a time"),
    ],
)
def test_refusals_say_what_to_do(raw: Array, pre: Preprocess, hint: str) -> None:
    """A shape that does not fit comes with the likely remedy."""
    with pytest.raises(DataError) as caught:
        apply(raw, NHWC, pre)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_whole_numbers_reach_integer_inputs() -> None:
    """int64 and whole floats become int32 exactly; numbers beyond 2^24 are not rounded by float32."""
    assert apply(np.array([1, 2, 3, 2**24 + 1]), INTS, Preprocess()).tolist() == [[1, 2, 3, 2**24 + 1]]
    assert apply(np.array([1.0, -2.0, 3.0, 4.0]), INTS, Preprocess()).dtype == np.int32
    flags = TensorSpec(name="m", shape=(1, 2), dtype="bool")
    assert apply(np.array([0, 1]), flags, Preprocess()).tolist() == [[False, True]]


# --- text --------------------------------------------------------------------------------------------------------


def test_parsing_the_command_line_form() -> None:
    """Fractions, values per channel and choices are read; `color` and `pad` are accepted spellings."""
    assert parse_preprocess("scale=1/255") == Preprocess(scale=1 / 255)
    assert parse_preprocess("scale=1/127.5,mean=1") == Preprocess(scale=1 / 127.5, mean=(1.0,))
    text = "mean=123.7:116.3:103.5, std=58.4:57.1:57.4, resize=bilinear, fit=letterbox, color=bgr, pad=114"
    assert parse_preprocess(text) == Preprocess(
        mean=(123.7, 116.3, 103.5),
        std=(58.4, 57.1, 57.4),
        resize="bilinear",
        fit="letterbox",
        colour="bgr",
        pad_value=114,
    )


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("scael=1", ["'scael=1' is not one of resize=, fit=, pad_value=, colour=, scale=, mean=, std="]),
        (
            "scale=x,resize=cubic",
            ["scale is 'x'; accepted: a finite number", "resize is 'cubic'; accepted: none, nearest"],
        ),
        ("scale=1/0", ["scale is '1/0'"]),
        ("scale=1:2", ["scale is '1:2'"]),
        ("scale=nan", ["scale is 'nan'"]),
        ("scale=0", ["must be finite and not 0"]),
        ("scale=1,scale=2", ["scale is given twice"]),
        ("", ["'' is not one of"]),
    ],
)
def test_parsing_lists_every_problem(text: str, problems: list[str]) -> None:
    """A wrong option names what was given and what is accepted."""
    with pytest.raises(ConfigError) as caught:
        parse_preprocess(text)
    assert all(problem in caught.value.message for problem in problems)
    assert caught.value.exit_code == 2


FLOATS = st.floats(-1e6, 1e6, allow_nan=False)
NONZERO = FLOATS.filter(lambda x: x != 0)


@given(
    st.builds(
        Preprocess,
        resize=st.sampled_from(get_args(Resize)),
        fit=st.sampled_from(get_args(Fit)),
        pad_value=st.integers(0, 255).map(float),
        colour=st.sampled_from(get_args(Colour)),
        scale=st.one_of(NONZERO, st.integers(1, 65536).map(lambda n: 1 / n)),
        mean=st.lists(FLOATS, min_size=1, max_size=3).map(tuple),
        std=st.lists(NONZERO, min_size=1, max_size=3).map(tuple),
    )
)
def test_description_reads_back(pre: Preprocess) -> None:
    """`describe` and `parse_preprocess` are inverse."""
    assert parse_preprocess(describe(pre)) == pre


def test_description_is_readable() -> None:
    """Reciprocals are shown as such; nothing declared is the identity."""
    assert describe(Preprocess(scale=1 / 127.5, mean=(1,))) == "scale=1/127.5,mean=1"
    assert describe(Preprocess()) == "identity"
