"""Writes a commented edgekit.toml with the inputs and outputs that a model really has."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edge import codec, isolate, project
from edge.artifact import translating_os_errors
from edge.errors import OutputError
from edge.isolate import Progress
from edge.signature import Signature, TensorSpec
from edge.sources.base import Declaration, InputDeclaration
from edge.targets import registry


def write(
    source: str,
    targets: tuple[str, ...],
    shapes: Mapping[str, tuple[int, ...]],
    output: Path,
    *,
    trust: bool,
    force: bool,
    progress: Progress,
) -> None:
    """Open the source in a child process and write the file; raise OutputError where one is there already."""
    if output.exists() and not force:
        raise OutputError(f"{output} exists already.", hint="Give --force to replace it, or another place with -o.")
    for name in targets:
        registry.target(name)
    declaration = Declaration(inputs={n: InputDeclaration(shape=s) for n, s in shapes.items()}, trust=trust)
    progress(f"reading {source}", None)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        answer = isolate.call(
            "edge.stages.importing:describe",
            {"source": source, "declaration": codec.to_json(declaration)},
            workdir=Path(folder),
            progress=progress,
        )
    text = render(_relative(source, output), targets, codec.from_json(Signature, answer["signature"]))
    with translating_os_errors(output):
        codec.write_atomically(output, text)


def _relative(source: str, output: Path) -> str:
    if Path(source).is_absolute():
        return source
    return os.path.relpath(source, output.parent)


def _text(value: str) -> str:
    # A JSON string is a valid TOML basic string.
    return json.dumps(value, ensure_ascii=False)


def _input(t: TensorSpec) -> list[str]:
    key = t.name if t.name.replace("_", "").replace("-", "").isalnum() and t.name.isascii() else _text(t.name)
    lines = [f"[model.inputs.{key}]   # {t.dtype}", f"shape = {list(t.shape)}", f"layout = {_text(t.layout)}"]
    if t.layout in ("NHWC", "NCHW"):
        example = 'preprocess = { resize = "bilinear", scale = 0.00392156862745098, mean = [0.0], std = [1.0] }'
    else:
        example = "preprocess = { scale = 1.0, mean = [0.0], std = [1.0] }"
    return [*lines, f"# {example}   # input = (raw * scale - mean) / std", ""]


def render(source: str, targets: tuple[str, ...], signature: Signature) -> str:
    """Return the text of the file."""
    lines = [
        "# Settings of edgekit: `edgekit build` in this folder needs no argument. Options on the command line win.",
        "",
        "[model]",
        f"source = {_text(source)}",
        f"outputs = [{', '.join(_text(t.name) for t in signature.outputs)}]",
        f"# task = {_text(signature.task)}   # classification, regression, segmentation, detection, other",
        '# layout = "channel-last"   # or "keep", for a channel-first source',
        "",
    ]
    for t in signature.inputs:
        lines += _input(t)
    lines += [
        "[data]",
        '# calibration = "calibration.npz"   # .npz, .npy, a folder of images, .csv, or file.py:callable',
        '# evaluation = "test.npz"           # labelled samples, other ones than those that calibrate',
        f"# calibration_samples = {project.DEFAULT_CALIBRATION_SAMPLES}",
        '# metric = "top1"',
        "",
        "[build]",
        f"targets = [{', '.join(_text(t) for t in targets)}]",
        '# recipe = "int8"   # float32, float16, dynamic, weight-only, int8, int8x16',
        "# fold_preprocessing = true   # scale, mean and std become part of the program, which takes uint8 pixels",
        f"output = {_text(project.DEFAULT_OUTPUT)}",
        "",
        "[budgets]",
        '# max_drop = "1%"',
        '# max_latency = "5ms p90 measured"   # median, p90, p95, p99; measured, emulated, predicted',
        '# max_size = "500kB"',
        '# max_memory = "2MB"                 # tensors and parameters, or what a board shows',
        '# min_mapped = "95%"                 # share of operators on the Edge TPU',
        '# min_delegated = "95%"              # share of operators on ExecuTorch\'s delegate',
    ]
    return "\n".join(lines) + "\n"
