"""TorchScript archives and Hugging Face folders as sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ConfigError, ConversionError, EdgekitError, SourceError
from edge.sources import registry
from edge.sources.base import Declaration, InputDeclaration, LoadedSource
from edge.sources.verify import verify_carrier
from edge.targets.litert import flatbuffer as fb

torch: Any = pytest.importorskip("torch")
Tensor: Any = torch.Tensor  # TorchScript reads annotations
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"


def built(loaded: LoadedSource, folder: Path) -> list[str]:
    """Convert, verify on two random inputs, and return the operators."""
    path = folder / "carrier.tflite"
    loaded.to_litert(path)
    random = np.random.default_rng(0)
    samples = [{t.name: random.integers(0, 3, t.shape).astype(t.dtype) for t in loaded.signature.inputs} for _ in "ab"]
    verify_carrier(loaded, path, samples)
    return [op.name for op in fb.graph(fb.load(path)).ops]


def ends(loaded: LoadedSource) -> list[str]:
    """Return inputs and outputs as text."""
    return [str(t) for t in (*loaded.signature.inputs, *loaded.signature.outputs)]


def shape(*sizes: int, **more: Any) -> InputDeclaration:
    """Return a declared shape."""
    return InputDeclaration(shape=sizes, **more)


def network() -> Any:
    """Return a small convolutional network."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(4, 5)).eval()


@pytest.mark.parametrize("how", ["trace", "script"])
def test_torchscript_becomes_channel_last(how: str, tmp_path: Path) -> None:
    """Traced and scripted archives reach a channel-last program without TRANSPOSE; shapes are declared."""
    script = torch.jit.trace(network(), torch.rand(1, 3, 8, 8)) if how == "trace" else torch.jit.script(network())
    path = tmp_path / "model.pt"
    script.save(str(path))
    with pytest.raises(ConfigError, match="does not say its shapes"):
        registry.load(str(path))
    loaded = registry.load(str(path), Declaration(inputs={"0": shape(1, 3, 8, 8)}))
    assert (loaded.kind, ends(loaded)[0]) == ("torchscript", "input: float32[1, 8, 8, 3] NHWC")
    operators = built(loaded, tmp_path)
    assert "CONV_2D" in operators
    assert "TRANSPOSE" not in operators


class Choosing(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Tensor, rate: int) -> Tensor:
        if rate > 8000:
            return x * 2
        return x + 1


class Deciding(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x * 2
        return x + 1


def test_a_number_must_have_a_value(tmp_path: Path) -> None:
    """An int argument asks for a value, and is then no input of the program."""
    path = tmp_path / "model.pt"
    torch.jit.script(Choosing()).save(str(path))
    x = {"x": shape(1, 4)}
    with pytest.raises(ConfigError, match="'rate' of the TorchScript model is one int") as caught:
        registry.load(str(path), Declaration(inputs=x))
    assert "--set rate=VALUE" in (caught.value.hint or "")


def test_a_branch_on_data_is_an_error(tmp_path: Path) -> None:
    """A scripted branch on data has no program; the message says so and what to do."""
    path = tmp_path / "model.pt"
    torch.jit.script(Deciding()).save(str(path))
    loaded_or_error = Declaration(inputs={"0": shape(1, 4)})
    with pytest.raises(ConversionError, match=r"branches \(prim::If\)|control flow|decides by the values"):
        registry.load(str(path), loaded_or_error).to_litert(tmp_path / "x.tflite")


def test_a_damaged_archive(tmp_path: Path) -> None:
    """A cut archive is an error in one line."""
    path = tmp_path / "model.pt"
    torch.jit.trace(network(), torch.rand(1, 3, 8, 8)).save(str(path))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"damaged or truncated|cannot be read"):
        registry.load(str(path), Declaration(inputs={"0": shape(1, 3, 8, 8)}))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are absent")
def test_a_model_with_memory_is_refused() -> None:
    """The voice detector's archive keeps state between calls: that is said, and the way out."""
    path = str(SHARED / "torch-silero-vad" / "silero_vad.jit")
    inputs = {"x": shape(1, 512), "sr": InputDeclaration(value=16000)}
    with pytest.raises(ConversionError, match="keeps state") as caught:
        registry.load(path, Declaration(inputs=inputs))
    assert "an input and an output" in (caught.value.hint or "")


def hugging_face(folder: Path, kind: str) -> Path:
    """Save a tiny model of transformers with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
        )
        transformers.ResNetForImageClassification(config).save_pretrained(folder)
        size = {"height": 32, "width": 32}
        preprocessor = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return folder
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50, num_labels=2
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_hugging_face_image_model(tmp_path: Path) -> None:
    """Image size, preprocessing, labels and task come from the folder; the program is channel-last."""
    loaded = registry.load(str(hugging_face(tmp_path / "m", "resnet")))
    assert (loaded.kind, ends(loaded)) == (
        "hugging-face",
        ["pixel_values: float32[1, 32, 32, 3] NHWC", "logits: float32[1, 3]"],
    )
    pre = loaded.signature.preprocess_of("pixel_values")
    assert (pre.scale, pre.mean, pre.std) == (1 / 255, (0.5,) * 3, (0.25,) * 3)
    assert (loaded.signature.task, loaded.signature.labels) == ("classification", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert "CONV_2D" in built(loaded, tmp_path)


def test_hugging_face_text_model(tmp_path: Path) -> None:
    """A text model needs the length of its ids, and takes an attention mask of the same shape."""
    path = str(hugging_face(tmp_path / "m", "bert"))
    with pytest.raises(ConfigError, match="does not say the shape of 'input_ids'"):
        registry.load(path)
    loaded = registry.load(path, Declaration(inputs={"input_ids": shape(1, 6)}))
    assert ends(loaded) == ["input_ids: int32[1, 6]", "attention_mask: int32[1, 6]", "logits: float32[1, 2]"]
    assert "FULLY_CONNECTED" in built(loaded, tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "carries Python code of its own"),
        ({"architectures": ["NoSuchModel"]}, "has no architecture 'NoSuchModel'"),
        ({"model_type": None}, "is no configuration of transformers"),
    ],
)
def test_hugging_face_errors(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    """Code of the folder's own, an unknown architecture and another config.json each have their message."""
    folder = hugging_face(tmp_path / "m", "bert")
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(EdgekitError, match=part):
        registry.load(str(folder), Declaration(inputs={"0": shape(1, 6)}))
