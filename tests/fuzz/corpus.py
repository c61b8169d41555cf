"""Small whole inputs for the readers, made here: no framework is needed but for the isolated ones."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
import wave
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge import artifact, codec
from edge.artifact import Accuracy, DataRecord, Manifest, Metrics, OutputParity, SourceRecord
from edge.findings import Finding
from edge.signature import Signature, TensorSpec
from edge.targets import registry
from edge.targets.litert import contract, flatbuffer
from tests import edgetpu_models
from tests.edgetpu_packages import ExecutableFields, PackageFields, compiled
from tests.small_models import classifier, labelled_data


@functools.cache
def tflites() -> list[bytes]:
    """Return float, int8 and convolutional programs."""
    return [classifier(), edgetpu_models.chain(), edgetpu_models.classifier()]


@functools.cache
def compiled_models() -> list[bytes]:
    """Return models with Edge TPU packages: stand-alone, and a pair that caches parameters."""
    program = edgetpu_models.classifier()
    pair = PackageFields(
        executables=(
            ExecutableFields(kind="PARAMETER_CACHING", parameter_bytes=4096),
            ExecutableFields(kind="EXECUTION_ONLY", parameter_bytes=64, cycles=1000),
        )
    )
    count = len(flatbuffer.load(program).subgraphs[0].operators)
    return [compiled(program, [True] * count), compiled(program, [True] * (count - 1) + [False], pair)]


def archive(members: dict[str, bytes]) -> bytes:
    """Return a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, data in members.items():
            made.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    """Return the bytes of an .npz."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npz_compressed(**arrays: Any) -> bytes:
    """Return the bytes of a compressed .npz."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    """Return the bytes of an .npy."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def samples() -> list[bytes]:
    """Return data archives for the classifier."""
    data = {name: values[:12] for name, values in labelled_data().items()}
    return [npz(**data), npz_compressed(**data), npz(x=np.asfortranarray(data["x"]), y=data["y"])]


def table() -> list[bytes]:
    """Return CSV files for the classifier."""
    columns = [f"f{i}" for i in range(16)]
    rows = [",".join(f"{v:.4f}" for v in row) for row in labelled_data()["x"][:6]]
    named = [",".join(["x", "label"]), "a.npy,1", "b.png,2"]
    return ["\n".join([",".join(columns), *rows]).encode(), "\n".join(named).encode()]


def sound() -> bytes:
    """Return a WAV file."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(16000)
        made.writeframes(np.arange(64, dtype="<i2").tobytes())
    return stream.getvalue()


def pictures() -> list[bytes]:
    """Return PNG, JPEG, BMP and WebP files."""
    from PIL import Image

    image = Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3))
    found = []
    for form in ("PNG", "JPEG", "BMP", "WEBP"):
        stream = io.BytesIO()
        image.save(stream, form)
        found.append(stream.getvalue())
    return found


def elf() -> bytes:
    """Return a 64-bit ELF header with two loadable segments, aligned to 16 KB."""
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 183, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 64, 64, 16384)
    return header + 2 * segment


def android() -> list[bytes]:
    """Return an .aar with native libraries."""
    return [archive({"AndroidManifest.xml": b"<manifest/>", "jni/arm64-v8a/libx.so": elf(), "jni/x86/liby.so": elf()})]


SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", shape=(1, 16)),), outputs=(TensorSpec(name="y", shape=(1, 4)),), task="classification"
)
LATENCY = {
    "mode": "emulated",
    "median_ms": 1.0,
    "median_low_ms": 0.9,
    "median_high_ms": 1.1,
    "p90_ms": 1.4,
    "p95_ms": 1.5,
    "p99_ms": 1.9,
    "samples": 120,
    "threads": 1,
    "kernels": "xnnpack",
    "verdict": "valid",
    "reasons": [],
    "quantiles_ms": [0.8, 0.9, 1.0, 1.1, 2.0],
    "mean_ms": 1.0,
    "min_ms": 0.8,
    "max_ms": 2.0,
    "profile": "smoke",
}


def manifest() -> Manifest:
    """Return a manifest with every part that reports and exports read."""
    return Manifest(
        edgekit="0",
        created="2026-01-01T00:00:00Z",
        name="net",
        target="rpi4",
        runtime="litert",
        recipe={"kind": "int8"},
        recipe_name="int8",
        quantizer="edgekit",
        source=SourceRecord(name="net.tflite", kind="litert", digest="0" * 64),
        calibration=DataRecord(name="data.npz", kind="npz", digest="1" * 64, samples=64),
        evaluation=None,
        tools={"ai-edge-litert": "2.3.0"},
        source_signature=SIGNATURE,
        signature=SIGNATURE,
        metrics=Metrics(
            accuracy=Accuracy(
                metric="top1",
                float=0.9,
                carrier=0.9,
                quantized=0.89,
                drop=0.01,
                drop_low=-0.01,
                drop_high=0.03,
                samples=400,
                mode="emulated",
                kernels="xnnpack",
                p_value=0.5,
            ),
            parity=(OutputParity(output="y", snr_db=30.0, cosine=0.99, max_abs=0.1),),
            latency=LATENCY,
            predicted_latency={"usb": {"value": 1.0, "low": 0.5, "high": 2.0, "model": "m", "note": ""}},
            memory={"arena_bytes": 1000, "parameter_bytes": 2000},
        ),
        budgets={
            "max_drop": 0.05,
            "max_size_bytes": 100000.0,
            "max_latency_ms": 5.0,
            "latency_statistic": "p90",
            "latency_mode": "emulated",
        },
        verdict="pass",
        reasons=("within",),
        findings=(Finding(rule="X", severity="warning", message="something", fix="do it", op="y"),),
        settings={
            "source": "net.tflite",
            "name": "net",
            "targets": ["rpi4"],
            "calibration": "data.npz",
            "evaluation": None,
            "metric": None,
            "output": "edgekit-build",
        },
        details={
            "live_bytes": [100, 200, 50],
            "operator_versions": {"FULLY_CONNECTED": [1]},
            "operator_counts": {"FULLY_CONNECTED": 2},
            "macs": 1000,
            "search": {
                "metric": "top1",
                "candidates": [
                    {"recipe": "int8", "drop": 0.1, "size_bytes": 10, "host_ms": 1.0, "chosen": True, "pareto": True},
                    {
                        "recipe": "int8 + bias",
                        "drop": 0.05,
                        "size_bytes": 11,
                        "host_ms": 1.1,
                        "chosen": False,
                        "pareto": True,
                    },
                ],
                "layers": [{"operator": "CONV_2D", "output": "c", "weights_db": 20.0, "output_db": 15.0}],
            },
            "board": {
                "device": "ssh://pi",
                "mode": "measured",
                "runner": "python",
                "facts": {},
                "memory": {"peak_kib": 9},
            },
            "placement": {
                "mode": "predicted",
                "operators": 3,
                "mapped": 2,
                "subgraphs": 1,
                "on_chip_bytes": 10,
                "off_chip_bytes": 0,
            },
        },
    )


PLACEMENT = {
    "mode": "predicted",
    "operators": [
        {"index": 0, "op": "CONV_2D", "place": "edgetpu", "reason": None, "certainty": None, "outputs": ["a"]},
        {"index": 1, "op": "SOFTMAX", "place": "cpu", "reason": "too large", "certainty": "sure", "outputs": ["b"]},
    ],
}


def golden() -> dict[str, Any]:
    """Return golden vectors of the classifier."""
    x = labelled_data()["x"][:2].reshape(2, 1, 16)
    y = np.full((2, 1, 4), 0.25, np.float32)
    return {"in/x": x, "out/y": y, "float/y": y}


@functools.cache
def artifact_files() -> dict[str, bytes]:
    """Return the files of an artifact by name, the manifest with the records of the others."""
    program = classifier()
    signature = contract.signature_of(flatbuffer.load(program))
    held = replace(manifest(), signature=signature, source_signature=signature)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model.tflite").write_bytes(program)
        (folder / "placement.json").write_text(codec.dumps(PLACEMENT))
        (folder / "golden.npz").write_bytes(npz(**golden()))
        roles: dict[str, artifact.FileRole] = {
            "model.tflite": "program",
            "placement.json": "placement",
            "golden.npz": "golden",
        }
        artifact.write_manifest(folder, held, roles)
        return {p.name: p.read_bytes() for p in folder.iterdir()}


def keras_files() -> list[bytes]:
    """Return a .keras archive with the members that readers look for; the weights are no HDF5."""
    dense = {"class_name": "Dense", "config": {"name": "d", "units": 4, "dtype": "float32"}, "module": "keras.layers"}
    config = {"class_name": "Sequential", "config": {"name": "s", "layers": [dense]}, "module": "keras"}
    texts = {"config.json": json.dumps(config), "metadata.json": json.dumps({"keras_version": "3.0.0"})}
    return [
        archive({**{k: v.encode() for k, v in texts.items()}, "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(64)})
    ]


def torch_mobile_files() -> list[bytes]:
    """Return a .ptl archive with the contract that edgekit reads."""
    text = codec.dumps(codec.to_json(SIGNATURE)).encode()
    return [archive({"net/bytecode.pkl": b"\x80\x02.", "net/data.pkl": b"\x80\x02.", "net/extra/edgekit.json": text})]


def model_files() -> list[bytes]:
    """Return the beginnings of every kind of model file, and archives of each."""
    torch = archive({"m/constants.pkl": b"", "m/code/__torch__.py": b"", "m/data.pkl": b""})
    exported = archive({"m/archive_format": b"pt2", "m/models/model.json": b"{}"})
    heads = [b"\x08\x08\x12\x07pytorch", b"\x08\x01\x12\x04abcd", b"\x0a\x06\x0a\x01xconst", b"\x93NUMPY" + bytes(60)]
    return [*tflites(), *keras_files(), *torch_mobile_files(), torch, exported, *heads, b"....ET12" + bytes(60)]


def target_files() -> list[bytes]:
    """Return target files of the catalogue's form."""
    folder = Path(registry.__file__).parent / "catalog"
    own = b'extends = "rpi4"\nname = "mine"\n[hardware]\ncpu = "cortex-a72"\nclock_mhz = 1500\n'
    return [own, *((folder / f"{name}.toml").read_bytes() for name in ("rpi4", "coral"))]


PROJECT = b"""[model]
source = "net.tflite"
outputs = ["y"]
task = "classification"
[model.inputs.x]
shape = [1, 16]
dtype = "float32"
preprocess = { scale = 0.5, mean = [0.0], std = [1.0] }
[data]
calibration = "data.npz"
calibration_samples = 64
metric = "top1"
[build]
targets = ["rpi4", "coral"]
output = "out"
recipe = "int8"
[budgets]
max_drop = "1%"
max_latency = "5ms p90 measured"
max_size = "500kB"
min_mapped = "95%"
"""
POSTPROCESS = b"""kind = "detection"
boxes = 0
scores = "out1"
activation = "sigmoid"
iou_threshold = 0.5
box_format = "yxyx"
box_scales = [10, 10, 5, 5.0]
anchors = { strides = [8, 16], ratios = [1.0, 2.0] }
"""
DEVICES = b"""[bench-pi]
device = "ssh://pi@host:22"
python = "/opt/python3"
tags = ["pi", "lab"]
[phone]
device = "adb:SERIAL1"
[board]
device = "emulator:rpi4"
workdir = "/tmp/x"
"""
COMPILER_LOG = b"""Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 412 ms.

Input model: net.tflite
Input size: 12.50KiB
Output model: net_edgetpu.tflite
Output size: 44.13KiB
On-chip memory used for caching model parameters: 5.50KiB
On-chip memory remaining for caching model parameters: 7.91MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 3
Operation log: net_edgetpu.log
Try to compile segment with 3 ops
Intermediate tensors: a,b
Operator                       Count      Status

FULLY_CONNECTED                2          Mapped to Edge TPU
SOFTMAX                        1          More than one subgraph is not supported
Internal compiler error. Aborting!
ERROR: Didn't find op for builtin opcode 'CONV_2D' version '5'
Compilation failed: Model failed in Tflite interpreter.
"""
TOOL_OUTPUT = b"""INFO: Inference timings in us: Init: 1200, First inference: 5000, Inference (avg): 2500.5
count=50 first=2600 curr=2500 min=2400 max=3100 avg=2500.5 std=60
count=100 curr=2500 min=2400 max=3100 avg=2500.5 std=60 p5=2400 median=2490 p95=2600
Overall peak memory footprint (MB) via periodic monitoring: 12.5
Run model for 10 times
First run took 5000 microseconds
Slowest run took 6000 microseconds
Fastest run took 2000 microseconds
All runs took average 2500 microseconds
I 00:00:00.001 executorch:executor_runner.cpp:1] Model loaded in 4.5 ms
Iteration 1 of 2: 5.1 ms
Iteration 2 of 2: 4.9 ms
Model executed successfully 2 time(s) in 10.0 ms.
"""
