"""Small artifacts of five kinds of models for the tests of the export, made by hand and run by LiteRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import artifact as artifacts
from edge import preprocess
from edge.apps.golden import image_entries  # noqa: F401  (used by tests through this module)
from edge.artifact import Manifest, Metrics, SourceRecord
from edge.calibration import affine
from edge.calibration.affine import to_program
from edge.signature import Preprocess, Quantization, Signature, TensorSpec
from edge.stages.checking import write_golden
from edge.targets.litert.session import LiteRTSession
from tests.tflite_builder import GraphBuilder

NASTY = (
    "quote \" and ' and \\ and `",
    "line\nbreak\r\n\ttab\u2028\u2029\u0085",
    "$name ${name} %s {0} @@NAME@@ //#end",
    "*/ /* // <!-- ]]> ?>",
    "\u202eright to left\u202c \u2066x\u2069 \u200b\ufeff",
    "\u05d0\u0627 é 日本 \U0001f600 \U0001d54f",
    "\x00\x01\x7f???/",
    "long " * 2000,
)
# A tensor's name reaches C code as a text that ends at the first NUL.
NASTY_NAMES = ("in " + "".join(t.replace("\x00", "") for t in NASTY), "out " + "|".join(NASTY[:6]))
INT8 = Quantization(scale=(0.05,), zero_point=(-3,))


def manifest(name: str, source: Signature, signature: Signature, **other: Any) -> Manifest:
    """Return the manifest of an artifact made by hand."""
    return Manifest(
        edgekit="0.1.0",
        created="2026-01-01T00:00:00Z",
        name=name,
        target="rpi4",
        runtime=other.pop("runtime", "litert"),
        recipe={},
        recipe_name="float32",
        quantizer="none",
        source=SourceRecord(name=name, kind="tflite", digest="0" * 64),
        calibration=None,
        evaluation=None,
        tools=other.pop("tools", {"ai-edge-litert": "2.3.0"}),
        source_signature=source,
        signature=signature,
        metrics=Metrics(),
        budgets={},
        verdict="unchecked",
        reasons=(),
        findings=(),
        details=other.pop("details", {"operator_versions": {}}),
    )


def write(
    folder: Path,
    name: str,
    program: bytes,
    source: Signature,
    signature: Signature,
    suffix: str = ".tflite",
    **other: Any,
) -> Path:
    """Write an artifact whose golden vectors LiteRT computes from normal samples or noise images."""
    rng = np.random.default_rng(1)
    session = LiteRTSession(program, kernels="xnnpack", threads=1)
    vectors: list[Any] = []
    for _ in range(other.pop("vectors", 4)):
        fed = {t.name: to_program(t, _sample(rng, source.input(t.name), signature)) for t in signature.inputs}
        vectors.append((fed, session.run(fed), {}))
    root = folder / name
    root.mkdir(parents=True)
    (root / f"model{suffix}").write_bytes(other.pop("stand_in", program))
    write_golden(root / "golden.npz", vectors)
    roles: dict[str, Any] = {f"model{suffix}": "program", "golden.npz": "golden"}
    artifacts.write_manifest(root, manifest(name, source, signature, **other), roles)
    return root


def _sample(rng: np.random.Generator, spec: TensorSpec, signature: Signature) -> NDArray[Any]:
    pre = signature.preprocess_of(spec.name)
    if spec.layout in ("NHWC", "NCHW"):
        raw = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        return preprocess.apply(raw, spec, replace(pre, resize="bilinear"))
    if spec.dtype == "int32":
        return rng.integers(0, 9, spec.shape).astype(np.int32)
    return rng.standard_normal(spec.shape).astype(np.float32)


def classifier(
    folder: Path,
    *,
    labels: tuple[str, ...] = ("ant", "bee", "cat", "dog"),
    pre: Preprocess | None = None,
    channels: int = 3,
    name: str = "four-classes",
    ends: tuple[str, str] = ("image", "scores"),
    stored: str = "int8",
    **other: Any,
) -> Path:
    """A classifier of 12 x 10 images into four classes; int8, or float where `stored` says so."""
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (len(labels), 120 * channels)).astype(np.float32)
    g = GraphBuilder()
    found = INT8 if stored == "int8" else None
    real = first = g.input(ends[0], (1, 12, 10, channels), stored, found)
    if found:
        real = g.op("DEQUANTIZE", [first], (1, 12, 10, channels))
    flat = g.op("RESHAPE", [real, g.const("shape", [1, 120 * channels])], (1, 120 * channels))
    out = g.fully_connected(flat, weights)
    if found:
        out = g.op("QUANTIZE", [out], (1, len(labels)), dtype="int8", quantization=INT8)
    g.output(out, ends[1])
    pre = pre or Preprocess(
        resize="bilinear", fit="crop", scale=1 / 127.5, mean=(1.0, 0.9, 1.1)[:channels], std=(1.0, 0.8, 1.2)[:channels]
    )
    source = Signature(
        inputs=(TensorSpec(name=ends[0], shape=(1, 12, 10, channels), layout="NHWC"),),
        outputs=(TensorSpec(name=ends[1], shape=(1, len(labels))),),
        preprocess={ends[0]: pre},
        task="classification",
        labels=labels,
    )
    signature = source.with_tensors(
        (TensorSpec(name=ends[0], shape=(1, 12, 10, channels), dtype=stored, layout="NHWC", quantization=found),),
        (TensorSpec(name=ends[1], shape=(1, len(labels)), dtype=stored, quantization=found),),
    )
    return write(folder, name, g.build(), source, signature, **other)


def detector(
    folder: Path, *, boxes: int = 16, values: int = 4, post: Mapping[str, Any] | None = None, **other: Any
) -> Path:
    """A float detector of 8 x 8 images with two outputs: boxes [1, 16, 4] and scores [1, 16, 3]."""
    rng = np.random.default_rng(2)
    g = GraphBuilder()
    image = g.input("image", (1, 8, 8, 3))
    flat = g.op("RESHAPE", [image, g.const("flat", [1, 192])], (1, 192))
    first = g.fully_connected(flat, rng.normal(0, 0.02, (boxes * values, 192)), rng.uniform(0.1, 0.9, boxes * values))
    scores = g.fully_connected(flat, rng.normal(0, 0.2, (boxes * 3, 192)))
    g.output(g.op("RESHAPE", [first, g.const("b", [1, boxes, values])], (1, boxes, values)), "boxes")
    g.output(g.op("RESHAPE", [scores, g.const("s", [1, boxes, 3])], (1, boxes, 3)), "scores")
    signature = Signature(
        inputs=(TensorSpec(name="image", shape=(1, 8, 8, 3), layout="NHWC"),),
        outputs=(TensorSpec(name="boxes", shape=(1, boxes, values)), TensorSpec(name="scores", shape=(1, boxes, 3))),
        preprocess={"image": Preprocess(resize="area", fit="letterbox", pad_value=114, colour="bgr", scale=1 / 255)},
        task="detection",
        labels=("car", "bus", "van"),
        postprocess=post or {},
    )
    return write(folder, other.pop("name", "two-output-detector"), g.build(), signature, signature, **other)


def segmenter(folder: Path, **other: Any) -> Path:
    """A segmenter of 9 x 7 gray images into three classes."""
    rng = np.random.default_rng(3)
    g = GraphBuilder()
    image = g.input("image", (1, 9, 7, 1))
    g.output(g.conv(image, rng.normal(0, 1, (3, 1, 1, 1)), rng.normal(0, 0.1, 3)), "mask")
    signature = Signature(
        inputs=(TensorSpec(name="image", shape=(1, 9, 7, 1), layout="NHWC"),),
        outputs=(TensorSpec(name="mask", shape=(1, 9, 7, 3), layout="NHWC"),),
        preprocess={"image": Preprocess(resize="antialias", colour="gray", scale=1 / 255, mean=(0.5,), std=(0.25,))},
        task="segmentation",
    )
    return write(folder, "gray-segmenter", g.build(), signature, signature, **other)


def keywords(folder: Path, **other: Any) -> Path:
    """A uint8 audio keyword model over [1, 6, 4] features, with shares as outputs."""
    rng = np.random.default_rng(4)
    features = Quantization(scale=(0.03,), zero_point=(120,))
    shares = Quantization(scale=(1 / 256,), zero_point=(0,))
    g = GraphBuilder()
    first = g.input("mfcc", (1, 6, 4), "uint8", features)
    real = g.op("DEQUANTIZE", [first], (1, 6, 4))
    flat = g.op("RESHAPE", [real, g.const("flat", [1, 24])], (1, 24))
    soft = g.op("SOFTMAX", [g.fully_connected(flat, rng.normal(0, 0.3, (3, 24)))], (1, 3))
    g.output(g.op("QUANTIZE", [soft], (1, 3), dtype="uint8", quantization=shares), "shares")
    source = Signature(
        inputs=(TensorSpec(name="mfcc", shape=(1, 6, 4), layout="NLC"),),
        outputs=(TensorSpec(name="shares", shape=(1, 3)),),
        preprocess={"mfcc": Preprocess(mean=(0.1, -0.2, 0.3, 0.0), std=(0.9, 1.1, 1.0, 1.3))},
        task="classification",
        labels=("yes", "no", "silence"),
    )
    signature = source.with_tensors(
        (TensorSpec(name="mfcc", shape=(1, 6, 4), dtype="uint8", layout="NLC", quantization=features),),
        (TensorSpec(name="shares", shape=(1, 3), dtype="uint8", quantization=shares),),
    )
    return write(folder, "keywords", g.build(), source, signature, **other)


def two_inputs(folder: Path, *, names: tuple[str, str] = ("image", "state"), **other: Any) -> Path:
    """A model of a channels-first image and a vector, in another order than they are used, with two float outputs."""
    g = GraphBuilder()
    state = g.input(names[1], (1, 5))
    image = g.input(names[0], (1, 3, 4, 6))
    total = g.op("MUL", [image, g.const("two", np.float32(2.0))], (1, 3, 4, 6))
    g.output(g.op("ADD", [state, g.const("one", np.float32(1.0))], (1, 5)), "next state")
    g.output(total, "doubled")
    pre = Preprocess(
        resize="nearest", colour="bgr", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    signature = Signature(
        inputs=(
            TensorSpec(name=names[0], shape=(1, 3, 4, 6), layout="NCHW"),
            TensorSpec(name=names[1], shape=(1, 5)),
        ),
        outputs=(TensorSpec(name="next state", shape=(1, 5)), TensorSpec(name="doubled", shape=(1, 3, 4, 6))),
        preprocess={names[0]: pre},
    )
    return write(folder, "two-inputs", g.build(), signature, signature, **other)


MAKERS = {
    "classifier": classifier,
    "detector": detector,
    "segmenter": segmenter,
    "keywords": keywords,
    "two_inputs": two_inputs,
}


def nasty(folder: Path, **other: Any) -> Path:
    """A model whose labels and tensor names try to break out of every literal and comment."""
    return classifier(folder, labels=NASTY, name='nasty "*/ name', ends=NASTY_NAMES, **other)


def ssd(folder: Path, **other: Any) -> Path:
    """The detector with generated anchors, a padded box row, offsets across first, and no regard of classes."""
    post = {
        "anchors": {"strides": [2, 4, 4], "ratios": [1.0, 2.0], "reduced_lowest": True, "interpolated_ratio": 0.0},
        "box_scales": [10.0, 10.0, 5.0, 5.0],
        "box_format": "xyxy",
        "activation": "sigmoid",
        "score_threshold": 0.55,
        "class_agnostic": True,
    }
    return detector(folder, boxes=16 * 3 + 4 * 4, values=6, post=post, name="ssd", **other)


def dequantized(stored: NDArray[Any], quantization: Quantization) -> NDArray[np.float32]:
    """Real values of stored ones."""
    return affine.dequantize(stored, quantization)
