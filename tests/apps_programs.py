"""Real programs of ExecuTorch, PyTorch Mobile and Core ML for the tests of the export, built by edgekit's own runtimes.

The five kinds of tests/apps_artifacts.py as small PyTorch networks. They are built once per test run, in a process of
their own: `python -m tests.apps_programs FOLDER`; EDGEKIT_APPS_PROGRAMS names a folder of an earlier run.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge import artifact as artifacts
from edge import preprocess
from edge.artifact import FileRole
from edge.isolate import no_progress
from edge.signature import Preprocess, Signature, TensorSpec
from edge.stages.checking import write_golden
from tests import apps_artifacts

RUNTIMES = ("executorch", "torch_mobile", "coreml")
# Core ML runs on Apple's systems only; here the same graph runs in PyTorch.
_KERNELS = {"coreml": "torch"}


def _image(shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name="image", shape=shape, layout="NCHW")


@dataclass(frozen=True)
class Kind:
    """A network's signature; `_module` makes it."""

    title: str
    signature: Signature


KINDS: Mapping[str, Kind] = {
    "classifier": Kind(
        "four-classes",
        Signature(
            inputs=(_image((1, 3, 12, 10)),),
            outputs=(TensorSpec(name="scores", shape=(1, 4)),),
            preprocess={
                "image": Preprocess(
                    resize="bilinear", fit="crop", scale=1 / 127.5, mean=(1.0, 0.9, 1.1), std=(1.0, 0.8, 1.2)
                )
            },
            task="classification",
            labels=("ant", "bee", 'cat "$x"', "dog\n*/"),
        ),
    ),
    "detector": Kind(
        "two-output-detector",
        Signature(
            inputs=(_image((1, 3, 8, 8)),),
            outputs=(TensorSpec(name="boxes", shape=(1, 16, 4)), TensorSpec(name="scores", shape=(1, 16, 3))),
            preprocess={
                "image": Preprocess(resize="area", fit="letterbox", pad_value=114, colour="bgr", scale=1 / 255)
            },
            task="detection",
            labels=("car", "bus", "van"),
            postprocess={
                "anchors": {"strides": [2], "interpolated_ratio": 0.0, "min_scale": 0.2, "max_scale": 0.4},
                "activation": "sigmoid",
            },
        ),
    ),
    "segmenter": Kind(
        "gray-segmenter",
        Signature(
            inputs=(_image((1, 1, 9, 7)),),
            outputs=(TensorSpec(name="mask", shape=(1, 3, 9, 7), layout="NCHW"),),
            preprocess={
                "image": Preprocess(resize="antialias", colour="gray", scale=1 / 255, mean=(0.5,), std=(0.25,))
            },
            task="segmentation",
            labels=("sky", "road", "car"),
        ),
    ),
    "keywords": Kind(
        "keywords",
        Signature(
            inputs=(TensorSpec(name="mfcc", shape=(1, 6, 4), layout="NLC"),),
            outputs=(TensorSpec(name="shares", shape=(1, 3)),),
            preprocess={"mfcc": Preprocess(mean=(0.1, -0.2, 0.3, 0.0), std=(0.9, 1.1, 1.0, 1.3))},
            task="classification",
            labels=("yes", "no", "silence"),
        ),
    ),
    "two_inputs": Kind(
        "two-inputs",
        Signature(
            inputs=(_image((1, 3, 4, 6)), TensorSpec(name="state", shape=(1, 5))),
            outputs=(TensorSpec(name="next state", shape=(1, 5)), TensorSpec(name="doubled", shape=(1, 3, 4, 6))),
            preprocess={"image": Preprocess(resize="nearest", scale=1 / 255, mean=(0.485, 0.456, 0.406))},
        ),
    ),
}


def _module(kind: str) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(1)
    if kind == "classifier":
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )
    if kind == "segmenter":
        return nn.Conv2d(1, 3, 3, 1, 1)
    if kind == "keywords":
        return nn.Sequential(nn.Flatten(), nn.Linear(24, 3), nn.Softmax(-1))

    class Detector(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.boxes, self.scores = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 3, 3, 2, 1)

        def forward(self, image: Any) -> Any:
            boxes, scores = self.boxes(image * 4), self.scores(image * 8)
            return boxes.flatten(2).transpose(1, 2) * 4, scores.flatten(2).transpose(1, 2)

    class TwoInputs(nn.Module):  # type: ignore[misc]
        def forward(self, image: Any, state: Any) -> Any:
            return state * 0.5 + image.mean(), image * 2

    return Detector() if kind == "detector" else TwoInputs()


def _sample(rng: np.random.Generator, spec: TensorSpec, signature: Signature) -> NDArray[Any]:
    if spec.layout == "NCHW":
        from dataclasses import replace

        raw = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        return preprocess.apply(raw, spec, replace(signature.preprocess_of(spec.name), resize="bilinear"))
    return rng.standard_normal(spec.shape).astype(np.float32)


def _build(kind: str, name: str, folder: Path) -> None:
    """Write one artifact whose program that runtime built and whose golden outputs it computed."""
    import torch

    from edge.calibration.recipe import Recipe
    from edge.targets import registry
    from edge.targets.base import Model, Target
    from edge.targets.torch_common import save_exported

    what, runtime = KINDS[kind], registry.runtime(name)
    work = folder / f"work-{name}-{kind}"
    work.mkdir(parents=True)
    examples = tuple(torch.zeros(t.shape) for t in what.signature.inputs)
    save_exported(torch.export.export(_module(kind).eval(), examples), what.signature, work / "carrier.pt2")
    model = Model(carrier="exported", path=work / "carrier.pt2", signature=what.signature)
    target = Target(name="phone", title="a phone", family="android", runtimes=(name,), io="float32")
    made = runtime.build(model, Recipe(scheme="float32"), target, None, work, no_progress)
    session = runtime.open(made.path, kernels=_KERNELS.get(name, runtime.kernel_sets[0]), threads=1)
    rng = np.random.default_rng(1)
    vectors: list[Any] = []
    for _ in range(4):
        fed = {t.name: _sample(rng, t, what.signature) for t in what.signature.inputs}
        vectors.append((fed, dict(session.run(fed)), {}))
    root = folder / name / kind
    root.mkdir(parents=True)
    (shutil.copytree if made.path.is_dir() else shutil.copy)(made.path, root / made.path.name)
    write_golden(root / "golden.npz", vectors)
    files = [p for p in (root / made.path.name, *(root / made.path.name).rglob("*")) if p.is_file()]
    roles: dict[str, FileRole] = {p.relative_to(root).as_posix(): "program" for p in files}
    manifest = apps_artifacts.manifest(
        what.title, what.signature, made.signature, runtime=name, tools=dict(made.tools), details=dict(made.details)
    )
    artifacts.write_manifest(root, manifest, {**roles, "golden.npz": "golden"})
    shutil.rmtree(work)


def available() -> bool:
    """Whether the frameworks are there."""
    return all(importlib.util.find_spec(package) for package in ("torch", "executorch", "coremltools"))


@functools.cache
def folder() -> Path:
    """Return the folder of all artifacts, `RUNTIME/KIND`; skip the test where a framework is absent."""
    if not available():
        pytest.skip("needs torch, executorch and coremltools")
    if earlier := os.environ.get("EDGEKIT_APPS_PROGRAMS"):
        return Path(earlier)
    made = Path(tempfile.mkdtemp(prefix="edgekit-apps-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    command = [sys.executable, "-m", "tests.apps_programs", str(made)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


if __name__ == "__main__":
    for _runtime in RUNTIMES:
        for _kind in KINDS:
            _build(_kind, _runtime, Path(sys.argv[1]))
