"""Tell what a model file is by its content; nothing heavier than `zipfile` is imported."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from edge.errors import SourceError, UsageError

Content = Literal[
    "python",
    "tflite",
    "hdf5",
    "keras",
    "pt2",
    "torchscript",
    "torch-lite",
    "torch-pickle",
    "numpy",
    "onnx",
    "saved-model",
    "frozen-graph",
    "executorch",
    "hugging-face",
    "unknown",
]

_MAGIC: tuple[tuple[int, bytes, Content], ...] = (
    (4, b"TFL3", "tflite"),
    (4, b"ET12", "executorch"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"\x93NUMPY", "numpy"),
    (0, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "torch-pickle"),  # torch.save before 1.6
)
_HEAD_BYTES = 64


def split_factory(location: str) -> tuple[Path, str] | None:
    """Return path and name of `file.py:factory`, an empty name for a bare `file.py`, None for anything else."""
    path, colon, name = location.rpartition(":")
    if colon and path.endswith(".py"):
        return Path(path), name
    return (Path(location), "") if location.endswith(".py") else None


def sniff(location: str) -> Content:
    """Return what `location` holds. Raises UsageError for a missing file, SourceError for an unreadable one."""
    factory = split_factory(location)
    path = factory[0] if factory else Path(location)
    if not path.exists():
        raise UsageError(
            f"No such file or folder: {path}.",
            hint="A source is a model file, or file.py:factory for a PyTorch module.",
        )
    if factory:
        return "python"
    if path.is_dir():
        return _sniff_folder(path)
    return _sniff_file(path)


def _sniff_folder(path: Path) -> Content:
    if (path / "saved_model.pb").exists():
        return "saved-model"
    weights = any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin"))
    return "hugging-face" if weights and (path / "config.json").exists() else "unknown"


def _sniff_file(path: Path) -> Content:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise SourceError(f"{path} is empty.", hint="Save or download the model again.")
    for offset, magic, content in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return content
    if head.startswith(b"PK\x03\x04"):
        return _sniff_zip(path)
    return _sniff_protobuf(head)


def _sniff_zip(path: Path) -> Content:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise SourceError(
            f"{path} is a damaged or truncated archive: {error}.", hint="Save or download the model again."
        ) from error
    tails = {name.rpartition("/")[2] for name in names}
    if "config.json" in names and "model.weights.h5" in names:
        return "keras"
    if "archive_format" in tails or "serialized_exported_program.json" in tails:
        return "pt2"
    if "constants.pkl" in tails and any("code/" in name for name in names):
        return "torch-lite" if "bytecode.pkl" in tails else "torchscript"
    if "data.pkl" in tails:
        return "torch-pickle"
    return "numpy" if names and all(name.endswith(".npy") for name in names) else "unknown"


def _sniff_protobuf(head: bytes) -> Content:
    # ModelProto of ONNX: field 1 (ir_version, a varint from 3 on). SavedModel: field 1 (schema version) is 1, then
    # field 2. GraphDef: field 1 (node) is a message that begins with its own field 1 (the node's name).
    if head[0] == 0x08 and len(head) > 2:
        if head[1] == 1 and head[2] == 0x12:
            return "saved-model"
        if 3 <= head[1] < 32 and head[2] & 7 in (0, 2):
            return "onnx"
    if head[0] == 0x0A and any(head[at] == 0x0A for at in (2, 3, 4) if at < len(head)):
        return "frozen-graph"
    return "unknown"
