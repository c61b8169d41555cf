"""Samples from a folder of images or WAV files; subfolders are classes."""

from __future__ import annotations

import warnings
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.calibration.data_types import Array, RawSample, numbered
from edge.errors import DataError
from edge.findings import Finding
from edge.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
AUDIO_SUFFIXES = (".wav",)
# Other formats are not tried, whatever the suffix says.
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_GRAY_MODES = ("1", "L", "LA", "La")
_DEEP_GRAY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def load_image(path: Path) -> Array:
    """Return an image file as uint8[H, W, 3] in RGB, or uint8[H, W, 1] where the file is gray.

    The EXIF orientation is applied, palettes are resolved, other colour spaces become RGB, transparency is dropped
    (not blended), gray of 16 bits is value // 256. Raises DataError naming the file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_IMAGE_FORMATS) as opened:
                return _pixels(ImageOps.exif_transpose(opened), path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the image is too large: {error}", hint="Scale it down first.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a readable image; accepted: PNG, JPEG, BMP, WebP") from None
    except DataError:
        raise
    except Exception as error:  # decoders raise what they like on damaged files: struct.error, KeyError, …
        raise DataError(f"{path}: the image is damaged: {error}") from None


def _pixels(image: Image, path: Path) -> Array:
    if image.mode in _GRAY_MODES:
        return np.asarray(image.convert("L"), np.uint8)[..., None]
    if image.mode in _DEEP_GRAY_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path}: gray values from {values.min()} to {values.max()}; accepted: 8 or 16 bits")
        return (values >> 8).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise DataError(f"{path}: the image holds floats; accepted: 8 or 16 bits per channel")
    return np.asarray(image.convert("RGB"), np.uint8)


def load_wav(path: Path, dtype: str = "float32") -> tuple[Array, int]:
    """Return the samples of a 16-bit PCM WAV file and its rate in Hz: shape [frames], or [frames, channels].

    For an input of dtype int16 they are raw int16; else float32 in [-1, 1): value / 32768. Raises DataError.
    """
    try:
        with wave.open(str(path), "rb") as reader:
            width, channels, rate = reader.getsampwidth(), reader.getnchannels(), reader.getframerate()
            data = reader.readframes(reader.getnframes())
    except (OSError, EOFError, wave.Error, RuntimeError) as error:
        raise DataError(f"{path}: not a readable WAV file of 16-bit PCM: {str(error) or 'it ends too early'}") from None
    if width != 2:
        raise DataError(f"{path}: {8 * width} bits per sample; accepted: 16-bit PCM")
    values = np.frombuffer(data[: len(data) // (2 * channels) * 2 * channels], "<i2").astype(np.int16)
    if not values.size:
        raise DataError(f"{path}: the recording is empty")
    values = values if channels == 1 else values.reshape(-1, channels)
    return (values if dtype == "int16" else values.astype(np.float32) / np.float32(32768)), rate


def load_file(path: Path, spec: TensorSpec) -> Array:
    """Return the content of an image or WAV file for an input. Raises DataError."""
    return load_wav(path, spec.dtype)[0] if path.suffix.lower() in AUDIO_SUFFIXES else load_image(path)


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Files of a folder in sorted order of their paths, one sample each, for the input `spec`."""

    root: Path
    kind: str
    spec: TensorSpec
    paths: tuple[Path, ...]
    labels: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def count(self) -> int:
        """How many files there are."""
        return len(self.paths)

    @property
    def labelled(self) -> bool:
        """Whether the files lie in class folders."""
        return bool(self.labels)

    def files(self, indices: Sequence[int] | None) -> Iterator[tuple[str, Path]]:
        """Yield each file that is read."""
        for index in numbered(self.count, indices):
            yield self._name(index), self.paths[index]

    def samples(self, indices: Sequence[int] | None) -> Iterator[RawSample]:
        """Decode one file after the other."""
        read = load_image if self.kind == "images" else self._audio_reader()
        for index in numbered(self.count, indices):
            label = self.labels[index] if self.labels else None
            yield RawSample(id=self._name(index), inputs={self.spec.name: read(self.paths[index])}, label=label)

    def _name(self, index: int) -> str:
        return self.paths[index].relative_to(self.root).as_posix()

    def _audio_reader(self) -> Callable[[Path], Array]:
        first_rate = load_wav(self.paths[0])[1]

        def read(path: Path) -> Array:
            values, rate = load_wav(path, self.spec.dtype)
            if rate != first_rate:
                raise DataError(
                    f"{path}: recorded at {rate} Hz, {self.paths[0].name} at {first_rate} Hz; accepted: one rate"
                )
            return values

        return read


def open_folder_source(root: Path, signature: Signature) -> FolderSource:
    """Open a folder of images or WAV files for a model of one input.

    Files directly in the folder are unlabelled; files below two or more subfolders have these as classes, numbered in
    the order of `signature.labels` where all names are found there, else in sorted order. Raises DataError.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(t.name for t in signature.inputs)
        raise DataError(
            f"{root}: a folder feeds one input; the model has {names}", hint="Use .npz, .csv or file.py:NAME."
        )
    found = {kind: _files(root, suffixes) for kind, suffixes in _KINDS.items()}
    kinds = [kind for kind, paths in found.items() if paths]
    if not kinds:
        accepted = ", ".join(IMAGE_SUFFIXES + AUDIO_SUFFIXES)
        raise DataError(f"{root}: no images and no WAV files in the folder; accepted: {accepted}")
    if len(kinds) > 1:
        raise DataError(f"{root}: holds images and WAV files; accepted: one kind in a folder")
    return _classified(root, kinds[0], found[kinds[0]], signature)


_KINDS: Mapping[str, tuple[str, ...]] = {"images": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}


def _files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of these suffixes below `root`, hidden ones left out, sorted by relative path."""
    try:
        paths = [path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    except OSError as error:
        raise DataError(f"{root}: the folder cannot be read: {error.strerror}") from None
    visible = ((path.relative_to(root).parts, path) for path in paths)
    return [path for parts, path in sorted(visible) if not any(p.startswith((".", "__MACOSX")) for p in parts)]


def _classified(root: Path, kind: str, paths: list[Path], signature: Signature) -> FolderSource:
    tops = [path.relative_to(root).parts for path in paths]
    names = sorted({parts[0] for parts in tops if len(parts) > 1})
    loose = [parts[0] for parts in tops if len(parts) == 1]
    if names and loose:
        raise DataError(
            f"{root}: holds {len(loose)} files beside the subfolders {_listed(names)}",
            hint="Put every file into its class's subfolder, or all of them into the folder itself.",
        )
    source = FolderSource(root=root, kind=kind, spec=signature.inputs[0], paths=tuple(paths))
    known = bool(names) and set(names) <= set(signature.labels)
    if len(names) < 2 and not known:
        return source
    classes = signature.labels if known else tuple(names)
    labels = tuple(classes.index(parts[0]) for parts in tops)
    return FolderSource(
        root=root,
        kind=kind,
        spec=source.spec,
        paths=source.paths,
        labels=labels,
        class_names=classes,
        findings=() if known else _order_findings(names),
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _order_findings(names: list[str]) -> tuple[Finding, ...]:
    if not all(name.isdecimal() for name in names) or names == sorted(names, key=int):
        return ()
    return (
        Finding(
            rule="CLASS_ORDER",
            severity="warning",
            message=f"numbered class folders are sorted as text ({_listed(names)}), as torchvision and Keras do",
            fix="Give the folders leading zeros, or declare the model's labels in its own order.",
        ),
    )
