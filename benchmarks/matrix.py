"""Build and verify every source kind for every target family, and write docs/matrix.md.

    python benchmarks/matrix.py [--models FOLDER] [--only TEXT] [--column TEXT] [--state FILE] [--retry]
        [--sources FOLDER]

One small network is trained on the scikit-learn digits with Keras, one with PyTorch, and one of transformers; each
source kind is made from one of them. Every cell is a whole build: conversion verified against the source, quantized,
and evaluated on 500 held-out images. `--models` adds real models of a folder laid out as MODELS in this file says.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edge import isolate, pipeline, project
from edge.artifact import Artifact
from edge.errors import EdgekitError

ROOT = Path(__file__).resolve().parents[1]
_EARLIER = " †"
# Column title, targets that one build serves, runtime.
COLUMNS: tuple[tuple[tuple[str, ...], tuple[str, ...], str | None], ...] = (
    (("coral", "rpi5 (litert)"), ("coral", "rpi5"), None),
    (("android (executorch)",), ("android",), "executorch"),
    (("ios (executorch)",), ("ios",), None),
)
PACKAGES = (
    *("torch", "litert-torch", "executorch", "tensorflow-cpu", "keras", "onnx", "onnxruntime", "jax"),
    *("transformers", "ai-edge-litert", "ai-edge-quantizer", "coremltools"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One source: its kind, where it is, and what has to be declared."""

    kind: str
    location: str
    data: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: int = 100  # that calibrate


DIGITS: tuple[Row, ...] = (
    Row(kind="Keras .keras", location="digits.keras"),
    Row(kind="Keras .h5", location="digits.h5"),
    Row(kind="TensorFlow SavedModel", location="saved_model"),
    Row(kind="frozen TensorFlow graph .pb", location="frozen.pb"),
    Row(kind="LiteRT float .tflite", location="float.tflite"),
    Row(kind="LiteRT float16 .tflite", location="float16.tflite"),
    Row(kind="PyTorch file.py:factory", location="digits_torch.py:make_digits"),
    Row(kind="PyTorch .pt2", location="digits.pt2"),
    Row(kind="TorchScript .pt", location="digits.pt", settings={"shapes": {"0": (1, 1, 8, 8)}}),
    Row(kind="ONNX", location="digits.onnx"),
    Row(kind="JAX file.py:factory", location="digits_jax.py:make_digits"),
    Row(kind="Hugging Face folder", location="hugging_face"),
)

# Real models, relative to --models: what is declared, and the data.
MNIST, KWS = "data-mnist/mnist_t10k_balanced_1000.npz", "data-kws01/kws01_mfcc_int8_1000.npz"
VWW = "data-coco-permissive/vww_u8_96.npz"
_KWS = {"preprocess": {"0": {"scale": 0.5847029, "mean": [48.5303407]}}}  # int8 with zero point 83
_UNIT = {"preprocess": {"0": {"scale": 1 / 255}}}
_SIGNED = {"preprocess": {"0": {"scale": 1 / 127.5, "mean": [1.0], "resize": "bilinear"}}}
_PHOTOS = {"preprocess": {"0": {"resize": "bilinear", "fit": "letterbox", "pad_value": 114.0, "colour": "bgr"}}}
_CORNER = {"preprocess": {"0": {**_PHOTOS["preprocess"]["0"], "fit": "corner"}}}
MODELS: tuple[Row, ...] = (
    Row(kind="mlperf-kws SavedModel", location="mlperf-kws-dscnn/kws_ref_model", data=KWS, settings=_KWS),
    Row(kind="mlperf-kws h5", location="mlperf-kws-dscnn/kws_model.h5", data=KWS, settings=_KWS),
    Row(kind="mlperf-vww h5", location="mlperf-vww-mobilenet/vww_96.h5", data=VWW, settings=_UNIT),
    Row(kind="mlperf-vww onnx", location="mlperf-vww-mobilenet/vww_96_float.onnx", data=VWW, settings=_UNIT),
    Row(
        kind="mlperf-vww onnx, --fold-preprocessing",
        location="mlperf-vww-mobilenet/vww_96_float.onnx",
        data=VWW,
        settings={**_UNIT, "fold_preprocessing": True},
    ),
    Row(kind="mlperf-vww tflite", location="mlperf-vww-mobilenet/vww_96_float.tflite", data=VWW, settings=_UNIT),
    Row(kind="onnx-mnist", location="onnx-mnist/mnist.onnx", data=MNIST),
    Row(
        kind="onnx-yolox-nano",
        location="onnx-yolox-nano/yolox_nano.onnx",
        data="data-coco-permissive/images",
        settings=_CORNER,
        samples=30,
    ),
    Row(
        kind="onnx-yunet 320",
        location="onnx-yunet/yunet_n_320_320.onnx",
        data="data-coco-permissive/images",
        settings=_PHOTOS,
        samples=30,
    ),
    Row(
        kind="onnx-yunet dynamic, 160x192",
        location="onnx-yunet/yunet_n_dynamic.onnx",
        data="data-coco-permissive/images",
        settings={**_PHOTOS, "shapes": {"0": (1, 3, 160, 192)}},
        samples=30,
    ),
    Row(kind="basic-pitch SavedModel", location="basic-pitch/nmp", data="basic_pitch"),
    Row(kind="basic-pitch onnx", location="basic-pitch/nmp.onnx", data="basic_pitch"),
    Row(
        kind="silero-vad onnx",
        location="torch-silero-vad/silero_vad_16k_op15.onnx",
        data="silero",
        settings={"shapes": {"input": (1, 576), "state": (2, 1, 128)}, "values": {"sr": 16000}},
    ),
    Row(
        kind="silero-vad jit",
        location="torch-silero-vad/silero_vad.jit",
        data="silero_jit",
        settings={"shapes": {"x": (1, 512)}, "values": {"sr": 16000}},
    ),
    Row(kind="kwt1 tflite", location="kwt1-keyword-transformer/kwt1_non_stream.tflite", data="kwt1"),
    Row(
        kind="face_landmark float16 tflite",
        location="mediapipe-face-tflite/face_landmark.tflite",
        data="data-coco-permissive/images",
        settings={"preprocess": {"0": {"scale": 1 / 255, "resize": "bilinear"}}},
    ),
    Row(
        kind="mini-Xception h5",
        location="keras-mini-xception/fer2013_mini_XCEPTION.102-0.66.hdf5",
        data="data-coco-permissive/images",
        settings=_SIGNED,
    ),
)


# Recordings are not among the data: harmonic tones that fade, with noise, stand in for them.
_SOUNDS = ("basic_pitch", "silero", "silero_jit", "kwt1")
_TONES = """
import numpy as np

def tone(number, length, rate):
    random, t = np.random.default_rng(number), np.arange(length) / rate
    pitch = 110 * 2 ** (random.integers(0, 36) / 12)
    sound = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 6))
    sound = sound * np.exp(-t * random.uniform(0, 8)) * random.uniform(0.05, 0.3)
    return (sound + random.normal(0, 0.003, length)).astype(np.float32)

def basic_pitch():
    return [tone(i, 43844, 22050).reshape(1, -1, 1) for i in range(20)]

def kwt1():
    return [tone(i, 16000, 16000).reshape(1, -1) for i in range(60)]

def silero():
    states = np.random.default_rng(0).normal(0, 0.3, (60, 2, 1, 128)).astype(np.float32)
    return [{"input": tone(i, 576, 16000).reshape(1, -1), "state": states[i]} for i in range(60)]

def silero_jit():
    return [tone(i, 512, 16000).reshape(1, -1) for i in range(60)]
"""

# --- making the sources ------------------------------------------------------------------------------------------

_JAX = """
import jax, jax.numpy as jnp, numpy as np
from pathlib import Path

def make_digits():
    w = dict(np.load(Path(__file__).with_name("digits_jax.npz")))
    def conv(x, name, groups=1):
        y = jax.lax.conv_general_dilated(
            x, w[name + ".0.weight"].transpose(2, 3, 1, 0), (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
        scale = w[name + ".1.weight"] / np.sqrt(w[name + ".1.running_var"] + 1e-5)
        return jnp.clip((y - w[name + ".1.running_mean"]) * scale + w[name + ".1.bias"], 0, 6)
    def apply(image):
        x = conv(conv(conv(image / 16.0, "stem"), "depthwise", 32), "pointwise")
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return conv(x, "head").mean((1, 2)) @ w["classifier.weight"].T + w["classifier.bias"]
    return apply, np.zeros((1, 8, 8, 1), np.float32)
"""


def make(folder: Path) -> None:
    """Train the networks and write every source kind; each framework in a process of its own."""
    for stage in ("write_data", "keras", "torch"):
        isolate.call(f"edge.demo.train:{stage}", {"folder": str(folder)}, workdir=folder, name=stage)
    shutil.copyfile(ROOT / "edge" / "demo" / "digits_torch.py", folder / "digits_torch.py")
    for part in ("tensorflow", "torch", "transformers"):
        subprocess.run([sys.executable, __file__, "--make", part, str(folder)], check=True, cwd=ROOT)


def _make_tensorflow(folder: Path) -> None:
    import keras
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = keras.models.load_model(folder / "digits.keras")
    model.save(folder / "digits.h5")
    model.export(str(folder / "saved_model"), verbose=False)
    spec = tf.TensorSpec((1, 8, 8, 1), tf.float32, name="image")
    function = tf.function(
        lambda image: tf.identity(model(image, training=False), name="logits"), input_signature=[spec]
    )
    graph = convert_variables_to_constants_v2(function.get_concrete_function()).graph.as_graph_def()
    (folder / "frozen.pb").write_bytes(graph.SerializeToString())
    for name, half in (("float.tflite", False), ("float16.tflite", True)):
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved_model"))
        if half:
            converter.optimizations, converter.target_spec.supported_types = [tf.lite.Optimize.DEFAULT], [tf.float16]
        (folder / name).write_bytes(converter.convert())


def _make_torch(folder: Path) -> None:
    import torch

    from edge.sources import factory

    model, example = factory.call(folder / "digits_torch.py", "make_digits")
    model.eval()
    torch.export.save(torch.export.export(model, example), folder / "digits.pt2")
    torch.jit.trace(model, example).save(str(folder / "digits.pt"))
    torch.onnx.export(
        model, example, str(folder / "digits.onnx"), dynamo=False, opset_version=17, input_names=["image"],
        output_names=["logits"], dynamic_axes={"image": {0: "batch"}},
    )  # fmt: skip
    np.savez(folder / "digits_jax.npz", **{k: v.numpy() for k, v in model.state_dict().items()})
    (folder / "digits_jax.py").write_text(_JAX, encoding="utf-8")


def _make_transformers(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
    )
    config.image_size = 32
    model = transformers.ResNetForImageClassification(config)
    with np.load(folder / "digits.npz") as data:
        x = torch.from_numpy(data["x_train"].transpose(0, 3, 1, 2).repeat(4, 2).repeat(4, 3)) / 16
        y = torch.from_numpy(data["y_train"])
        large = {f"x_{p}": data[f"x_{p}"].repeat(4, 1).repeat(4, 2) / 16 for p in ("train", "test")}
        np.savez(folder / "digits_32.npz", **large, y_train=data["y_train"], y_test=data["y_test"])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(4):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]).logits, y[batch]).backward()
            optimizer.step()
    model.eval().save_pretrained(folder / "hugging_face")


# --- building ----------------------------------------------------------------------------------------------------


def build(row: Row, folder: Path, targets: Sequence[str], runtime: str | None, output: Path) -> list[str]:
    """Return one text per target: what the build measured, or why there is none."""
    settings = {**row.settings}
    values = settings.pop("values", {})
    if "preprocess" in settings:
        settings["preprocess"] = {n: project.preprocess(dict(t)) for n, t in settings["preprocess"].items()}
    data = _location(row, folder, output.parent)
    settings |= {
        "source": str(folder / row.location),
        "targets": list(targets),
        "output": str(output),
        "latency": "none",
        "cache": False,
        "runtime": runtime,
        "calibration": data,
        "calibration_samples": row.samples,
        "name": "cell",
    }
    try:
        chosen = project.resolve({k: v for k, v in settings.items() if v is not None})
        chosen = _fixed(chosen, values)
        return [describe(a) for a in pipeline.build(chosen)]
    except EdgekitError as error:
        if len(targets) > 1:  # one failing target takes the others of the build along
            return [build(row, folder, [t], runtime, output / t)[0] for t in targets]
        return [f"no: {error.message}"]


def _location(row: Row, folder: Path, scratch: Path) -> str | None:
    if row.data is None:
        return None
    if row.data in _SOUNDS:
        scratch.mkdir(parents=True, exist_ok=True)
        path = scratch / "sounds.py"
        path.write_text(_TONES, encoding="utf-8")
        return f"{path}:{row.data}"
    return str(folder / row.data)


def _fixed(chosen: project.Project, values: Mapping[str, float]) -> project.Project:
    from dataclasses import replace

    from edge.sources.base import InputDeclaration

    inputs = dict(chosen.declaration.inputs)
    for name, value in values.items():
        inputs[name] = replace(inputs.get(name, InputDeclaration()), value=value)
    return replace(chosen, declaration=replace(chosen.declaration, inputs=inputs))


def describe(artifact: Artifact) -> str:
    """Return the recipe, the metric before and after, and the worst signal-to-noise ratio."""
    manifest = artifact.manifest
    parts = [manifest.recipe_name]
    accuracy = manifest.metrics.accuracy
    if accuracy and accuracy.metric != "snr":
        parts.append(f"{accuracy.metric} {accuracy.float:.2%} → {accuracy.quantized:.2%}")
    ratios = [p.snr_db for p in manifest.metrics.parity if p.snr_db is not None]
    if ratios:
        parts.append(f"SNR {min(ratios):.0f} dB")
    return ", ".join(parts)


def table(rows: Sequence[Row], folder: Path, state: State) -> None:
    """Build what `state` wants and does not have yet."""
    for row in rows:
        for number, (titles, targets, runtime) in enumerate(COLUMNS):
            if not state.wants(row.kind, titles):
                continue
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as output:
                try:
                    found = build(row, folder, targets, runtime, Path(output) / str(number))
                except Exception:  # a bug of ours is no reason of an empty cell: it is run again
                    traceback.print_exc()
                    continue
            state.add(row.kind, dict(zip(titles, found, strict=True)))
            print(row.kind, found, f"{time.monotonic() - started:.0f} s", flush=True)


class State:
    """The texts of the cells by source and column, kept in a file so that a run can be done in parts."""

    def __init__(self, path: Path, only: str, column: str, *, retry: bool) -> None:
        self._path, self._only, self._column, self._retry = path, only, column, retry
        self.cells: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.is_file() else {}

    def wants(self, kind: str, titles: Sequence[str]) -> bool:
        """Tell whether cells are asked for and not there."""
        asked = self._only in kind and any(self._column in t for t in titles)
        found = [self.cells.get(kind, {}).get(t) for t in titles]
        return asked and any(text is None or (self._retry and text.startswith("no: ")) for text in found)

    def add(self, kind: str, texts: Mapping[str, str]) -> None:
        """Keep cells."""
        self.cells.setdefault(kind, {}).update(texts)
        self._path.write_text(json.dumps(self.cells, indent=1))


def markdown(rows: Sequence[Row], cells: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return a table; a reason stands below it, where a cell is empty."""
    titles = [t for names, _, _ in COLUMNS for t in names]
    lines = ["| source | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    reasons: list[str] = []
    for row in rows:
        texts = []
        for title in titles if row.kind in cells else ():
            text = cells[row.kind].get(title, "not run")
            if text.startswith("no: "):
                reason = " ".join(text.removeprefix("no: ").split())
                if reason not in reasons:
                    reasons.append(reason)
                texts.append(f"— ({reasons.index(reason) + 1})")
            else:
                texts.append(text)
        if texts:
            lines.append(f"| {row.kind} | " + " | ".join(texts) + " |")
    return [*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)), ""]


def main() -> None:
    """Run the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help="Folder of real models.")
    parser.add_argument("--only", default="", help="Only the rows with this text.")
    parser.add_argument("--column", default="", help="Only the columns with this text.")
    parser.add_argument("--state", type=Path, help="File that keeps the cells, to go on with later.")
    parser.add_argument("--earlier", type=Path, help="State of an earlier run: its cells stand in, marked.")
    parser.add_argument("--retry", action="store_true", help="Build what is wanted and was not possible once more.")
    parser.add_argument("--sources", type=Path, help="Folder that keeps the trained networks, to go on with later.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "matrix.md")
    given = parser.parse_args()
    if given.make:
        makers = {"tensorflow": _make_tensorflow, "torch": _make_torch, "transformers": _make_transformers}
        makers[given.make[0]](Path(given.make[1]))
        return
    rows = [_with_data(r) for r in DIGITS]
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        state = State(given.state or Path(folder) / "state.json", given.only, given.column, retry=given.retry)
        if any(state.wants(r.kind, titles) for r in rows for titles, _, _ in COLUMNS):
            made = _made(given.sources or Path(folder) / "sources")
            table(rows, made, state)
        if given.models:
            table(MODELS, given.models.resolve(), state)
        earlier = json.loads(given.earlier.read_text()) if given.earlier else {}
        given.output.write_text("\n".join(_page(rows, _with_earlier(state.cells, earlier))), encoding="utf-8")


def _with_earlier(cells: Mapping[str, Mapping[str, str]], earlier: Mapping[str, Mapping[str, str]]) -> Any:
    """Return the cells with those of an earlier run, marked, where there are none."""
    kinds = dict.fromkeys((*cells, *earlier))
    return {k: {**{t: f"{v}{_EARLIER}" for t, v in earlier.get(k, {}).items()}, **cells.get(k, {})} for k in kinds}


def _made(folder: Path) -> Path:
    """Return the folder with the trained sources, which are made where they are not there."""
    if not (folder / "made").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        (folder / "made").touch()
    return folder.resolve()


def _with_data(row: Row) -> Row:
    data = "digits_32.npz" if row.kind.startswith("Hugging") else "digits.npz"
    return Row(kind=row.kind, location=row.location, data=data, settings=row.settings)


_BELOW_20_DB = (
    "The recipe is the target's own, without any search. Below 20 dB the build warns (`NOISY_OUTPUT`, `ACCURACY_LOST`",
    "where labels or agreement tell) and names the next commands. [Accuracy](accuracy.md#field-models) has what they",
    "bring: on `rpi5` 19 to 24 dB for sound models with `--keep-float front-end`, and for yolox 162 of 183 detections",
    "instead of 62 with 4 layers in float.",
)


def _page(rows: Sequence[Row], cells: Mapping[str, Mapping[str, str]]) -> list[str]:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    lines = [
        "# Source to target",
        "",
        f"Written by `python benchmarks/matrix.py` on {time.strftime('%Y-%m-%d', time.gmtime())}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}: {', '.join(versions)}.",
        "",
        "Each cell is a whole build: the conversion verified against the source on real inputs, then quantized by the",
        "recipe named, then evaluated: top-1 of the float source → of the program on held-out samples, and the worst",
        "signal-to-noise ratio of an output against the float source. All on the host; Core ML and the Edge TPU",
        "compiler do not run there, so `ios` checks the exported graph and `coral` the quantized program.",
        "Calibration takes up to 100 samples (of yolox and yunet 30, of basic-pitch 20 tones).",
        "",
        "## A network on the digits, in every source kind",
        "",
        *markdown(rows, cells),
    ]
    if any(text.endswith(_EARLIER) for row in cells.values() for text in row.values()):
        at = lines.index("## A network on the digits, in every source kind")
        lines[at:at] = [f"Cells with{_EARLIER} are of an earlier run, before the last changes to the code.", ""]
    if any(r.kind in cells for r in MODELS):
        lines += ["## Trained models from the field", "", *_BELOW_20_DB, "", *markdown(MODELS, cells)]
    return lines


if __name__ == "__main__":
    main()
