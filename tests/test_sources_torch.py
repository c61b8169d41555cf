"""PyTorch modules and exported programs as a source."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ConfigError, ConversionError, EdgekitError, SourceError, UsageError
from edge.sources import registry
from edge.sources.base import Declaration, InputDeclaration, LoadedSource
from edge.sources.verify import verify_carrier
from edge.targets.litert import flatbuffer as fb

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

FACTORIES = Path(__file__).parent / "models_torch.py"


def load(name: str, declaration: Declaration | None = None) -> LoadedSource:
    """Load a factory of models_torch.py."""
    return registry.load(f"{FACTORIES}:{name}", declaration)


def built(loaded: LoadedSource, folder: Path) -> list[str]:
    """Convert, verify on two random inputs, and return the operators."""
    path = folder / "carrier.tflite"
    loaded.to_litert(path)
    random = np.random.default_rng(0)
    samples = [{t.name: random.integers(0, 9, t.shape).astype(t.dtype) for t in loaded.signature.inputs} for _ in "ab"]
    assert verify_carrier(loaded, path, samples) == ()
    return [op.name for op in fb.graph(fb.load(path)).ops]


def ends(loaded: LoadedSource) -> tuple[list[str], list[str]]:
    """Return inputs and outputs as text."""
    return [str(t) for t in loaded.signature.inputs], [str(t) for t in loaded.signature.outputs]


def rules(loaded: LoadedSource) -> set[str]:
    """Return the rule ids of the findings."""
    return {f.rule for f in loaded.findings}


@functools.cache
def mobilenet() -> LoadedSource:
    """The network that several tests look at."""
    return load("mobilenet")


def test_channel_last_network_has_no_transpose(tmp_path: Path) -> None:
    """A channel-first network becomes channel-last without a TRANSPOSE; dropout is off and normalization is folded."""
    assert ends(mobilenet()) == (["image: float32[1, 16, 16, 3] NHWC"], ["output_0: float32[1, 4]"])
    operators = built(mobilenet(), tmp_path)
    assert sorted(operators) == [
        "ADD",
        "CONV_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "MEAN",
        "PAD",
    ]
    assert mobilenet().findings == ()


def test_a_series_has_its_channels_last(tmp_path: Path) -> None:
    """1-D convolutions over [1, 3, 32]: ends become NLC without a TRANSPOSE, and results are the module's, turned."""
    import torch

    module: Any = load("series")
    assert ends(module) == (["signal: float32[1, 32, 3] NLC"], ["output_0: float32[1, 32, 2] NLC"])
    assert "TRANSPOSE" not in built(module, tmp_path)
    signal = np.random.default_rng(0).random((1, 32, 3), np.float32)
    with torch.no_grad():
        wanted = module._module(torch.from_numpy(signal).movedim(-1, 1)).movedim(1, -1).numpy()
    assert np.allclose(module.run({"signal": signal})["output_0"], wanted, atol=1e-6)


def test_run_takes_channel_last_arrays() -> None:
    """The reference transposes for the module: it gives what the module gives for the channel-first image."""
    import torch

    image = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    module: Any = mobilenet()
    with torch.no_grad():
        expected = module._module(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    result: Any = mobilenet().run({"image": image})["output_0"]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_same_factory_gives_same_bytes_and_digest(tmp_path: Path) -> None:
    """Two loads of a factory with random weights give the same module, digest and flatbuffer."""
    loads = [load("recurrent") for _ in range(2)]
    for number, loaded in enumerate(loads):
        loaded.to_litert(tmp_path / f"{number}.tflite")
    assert (tmp_path / "0.tflite").read_bytes() == (tmp_path / "1.tflite").read_bytes()
    assert loads[0].digest == loads[1].digest != mobilenet().digest


def test_declared_keep_leaves_channel_first(tmp_path: Path) -> None:
    """With layout keep, the ends stay NCHW."""
    loaded = load("unet", Declaration(layout="keep"))
    assert ends(loaded)[0] == ["image: float32[1, 3, 16, 16] NCHW"]
    assert "TRANSPOSE" in built(loaded, tmp_path)


def test_dict_outputs_keep_their_keys_and_turn_channel_last(tmp_path: Path) -> None:
    """A U-Net with a dict of outputs has its keys as names, an NHWC mask, and no TRANSPOSE."""
    loaded = load("unet")
    assert ends(loaded)[1] == ["mask: float32[1, 16, 16, 2] NHWC", "score: float32[1, 16]"]
    assert "TRANSPOSE" not in built(loaded, tmp_path)


@pytest.mark.parametrize("name", ["lenet", "flat", "viewed", "viewed_gray"])
def test_flatten_needs_no_transpose(tmp_path: Path, name: str) -> None:
    """Flatten or view, then Linear, after channel-first images permute its columns instead of adding a TRANSPOSE."""
    loaded = load(name)
    assert loaded.signature.inputs[0].layout == "NHWC"
    assert "TRANSPOSE" not in built(loaded, tmp_path)


def test_output_that_is_no_image_keeps_its_order(tmp_path: Path) -> None:
    """An attention map of rank 4 stays as it is, with a finding; the image still turns channel-last."""
    loaded = load("attention")
    assert ends(loaded) == (
        ["image: float32[1, 8, 8, 3] NHWC"],
        ["output_0: float32[1, 8]", "output_1: float32[1, 2, 4, 4] NCHW"],
    )
    assert [f.op for f in loaded.findings if f.rule == "LAYOUT_KEPT"] == ["output_1"]
    again = load("attention", Declaration(decided=loaded.signature))
    assert ends(again) == ends(loaded)
    assert built(again, tmp_path).count("TRANSPOSE") == built(loaded, tmp_path).count("TRANSPOSE")


def test_dataclass_outputs_have_field_names(tmp_path: Path) -> None:
    """Fields of a dataclass name the outputs; None is left out."""
    loaded = load("detector", Declaration(inputs={"image": InputDeclaration(shape=(1, 3, 8, 8))}))
    assert ends(loaded)[1] == ["boxes: float32[1, 64, 4]", "scores: float32[1, 64]"]
    assert "CONV_2D" in built(loaded, tmp_path)


def test_two_inputs_and_outputs(tmp_path: Path) -> None:
    """Inputs are named as forward's parameters; a recurrent layer has no loop."""
    loaded = load("recurrent", Declaration(outputs=("series", "last")))
    assert ends(loaded) == (
        ["x: float32[1, 5, 4]", "state: float32[1, 1, 6]"],
        ["series: float32[1, 5, 6]", "last: float32[1, 1, 6]"],
    )
    assert "WHILE" not in built(loaded, tmp_path)


def test_nested_inputs_and_outputs(tmp_path: Path) -> None:
    """Nested dicts and lists are named by their keys."""
    loaded = load("nested")
    names = [t.name for t in (*loaded.signature.inputs, *loaded.signature.outputs)]
    assert names == ["frame_left", "frame_right", "out_0", "out_1"]
    assert sorted(built(loaded, tmp_path)) == ["ADD", "MUL"]


def test_int64_is_said_to_be_int32(tmp_path: Path) -> None:
    """int64 ends are int32 in the signature, with a finding each; an unused input stays."""
    loaded = load("ids")
    assert ends(loaded) == (
        ["ids: int32[1, 3]", "unused: float32[1, 2]"],
        ["output_0: float32[1, 4]", "output_1: int32[1, 3]"],
    )
    assert [f.op for f in loaded.findings if f.rule == "INT64_NARROWED"] == ["ids", "output_1"]
    assert built(loaded, tmp_path) != []
    with pytest.raises(ConversionError, match="'output_1' has the value 4000000000, beyond the program's int32"):
        doubled = Declaration(inputs={"ids": InputDeclaration()})
        _overflow(load("ids", doubled))


def _overflow(loaded: LoadedSource) -> None:
    module: Any = loaded
    module._module.forward = lambda ids, unused: (unused, ids * 4_000_000_000)
    loaded.run({"ids": np.ones((1, 3), np.int32), "unused": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize("name", ["mobilenet_half", "mobilenet_double"])
def test_other_precisions_are_cast(tmp_path: Path, name: str) -> None:
    """float16 and float64 weights and inputs become float32 with a finding, and convert."""
    loaded = load(name)
    assert rules(loaded) == {"WEIGHTS_CAST"}
    assert {t.dtype for t in (*loaded.signature.inputs, *loaded.signature.outputs)} == {"float32"}
    assert "CONV_2D" in built(loaded, tmp_path)


def test_shape_is_declared_or_asked_for(tmp_path: Path) -> None:
    """A module alone needs a declared shape, in the source's own layout."""
    with pytest.raises(ConfigError, match="no shape for image") as caught:
        load("mobilenet_alone")
    assert "--shape image=1,3,224,224" in (caught.value.hint or "")
    loaded = load("mobilenet_alone", Declaration(inputs={"0": InputDeclaration(shape=(1, 3, 8, 12))}))
    assert ends(loaded)[0] == ["image: float32[1, 8, 12, 3] NHWC"]


@pytest.mark.parametrize(
    ("name", "kind", "part"),
    [
        ("counter", ConversionError, "keeps state or draws random numbers.*its buffers total"),
        ("history", ConversionError, "keeps state or draws random numbers.*the outputs output_0"),
        ("noise", ConversionError, "keeps state or draws random numbers.*the outputs output_0"),
        ("text", ConversionError, r"returns 'hello' \(str\) as name"),
        ("empty", ConfigError, r"open or empty shape \[1, 0, 4\]"),
        ("failing", SourceError, r"models_torch\.py, line \d+ \(raise ValueError.*the weights are not there"),
        ("number", SourceError, "number returned int; accepted: a torch.nn.Module"),
        ("nothing", UsageError, "has no function 'nothing'; it defines .*mobilenet"),
    ],
)
def test_what_cannot_be_loaded(name: str, kind: type[EdgekitError], part: str) -> None:
    """State, randomness, non-tensors, empty shapes and failing factories each have their own message."""
    with pytest.raises(kind, match=part):
        load(name)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("branch", r"decides by the values of its data at models_torch\.py, line \d+ \(if x\.sum\(\) > 0"),
        ("mask", r"selects with a Boolean mask.* at models_torch\.py, line \d+ \(return x\[x > 0\.5\]\)"),
    ],
)
def test_what_cannot_be_converted_names_the_line(tmp_path: Path, name: str, part: str) -> None:
    """Data-dependent control flow and sizes are errors that quote the user's line."""
    with pytest.raises(ConversionError, match=part):
        load(name).to_litert(tmp_path / "x.tflite")


def test_padding_mask_is_computed_as_the_module_does(tmp_path: Path) -> None:
    """A transformer with a padding mask equals its program at every position, and its infinities are a finding."""
    loaded = load("encoder")
    loaded.to_litert(tmp_path / "x.tflite")
    tokens = np.random.default_rng(0).random((1, 5, 8), np.float32)
    samples = [{"tokens": tokens, "padding": np.arange(5)[None] >= length} for length in (3, 5)]
    found = verify_carrier(loaded, tmp_path / "x.tflite", samples)
    assert {f.rule for f in found} == {"INFINITE_CONSTANT"}


def test_a_cache_that_settles_is_no_state(tmp_path: Path) -> None:
    """A buffer that the first call fills and later calls leave is accepted and converts right."""
    assert "ADD" in built(load("cached"), tmp_path)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import nothing_like_this\n", "line 1 .*ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("def make(:\n", "user.py, line 1: importing user.py raised SyntaxError"),
        ("def make():\n    raise SystemExit('bye')\n", r"line 2 .*make\(\) raised SystemExit: bye"),
        ("def make(size):\n    return size\n", "raised TypeError: make"),
    ],
)
def test_failing_files_are_named(tmp_path: Path, code: str, part: str) -> None:
    """Whatever the user's file raises becomes one message with its line; nothing is written beside it."""
    (tmp_path / "user.py").write_text(code)
    with pytest.raises(SourceError, match=part):
        registry.load(f"{tmp_path}/user.py:make")
    assert [p.name for p in tmp_path.iterdir()] == ["user.py"]


def exported(folder: Path, *, train: bool = False, dynamic: bool = False) -> str:
    """Export the network of models_torch.py to a .pt2 with batch 2."""
    import torch

    from tests.models_torch import MobileNet

    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(MobileNet().train(train), (torch.rand(2, 3, 16, 16),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "model.pt2")
    return str(folder / "model.pt2")


def test_exported_program(tmp_path: Path) -> None:
    """A .pt2 needs no shapes; an open batch becomes 1 with a finding."""
    loaded = registry.load(exported(tmp_path, dynamic=True))
    assert ends(loaded) == (["image: float32[1, 16, 16, 3] NHWC"], ["output_0: float32[1, 4]"])
    assert rules(loaded) == {"SHAPES_BAKED"}
    assert "TRANSPOSE" not in built(loaded, tmp_path)


def test_program_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    """Training mode is in the exported graph: it is an error with the way out."""
    with pytest.raises(SourceError, match="was exported in training mode") as caught:
        registry.load(exported(tmp_path, train=True))
    assert "eval()" in (caught.value.hint or "")


def test_truncated_program_is_refused(tmp_path: Path) -> None:
    """Half a .pt2 is a damaged archive."""
    path = Path(exported(tmp_path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match="damaged or truncated"):
        registry.load(str(path))
