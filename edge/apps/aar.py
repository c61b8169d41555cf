"""Android archives: are their native libraries loadable on devices with 16 KB pages, and packing one without Gradle.

Google Play asks that every PT_LOAD segment of a 64-bit library is aligned to 16384 bytes or a multiple of it
(developer.android.com/guide/practices/page-sizes). ELF headers are read as the System V ABI lays them out.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.errors import ConfigError, DataError, OutputError

PAGE = 16384
_PT_LOAD = 1
_LIBRARY = re.compile(r"(?:jni|lib|base/lib)/([^/]+)/[^/]+\.so")
# 32-bit Android has 4 KB pages only.
_ABIS_64 = ("arm64-v8a", "x86_64", "riscv64")
_MOST_BYTES = 1 << 31
_HEAD_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class LibraryAlignment:
    """One native library: `alignment` is the smallest p_align of its loadable segments, in bytes.

    `packed` says how the archive stores it: `aligned` (uncompressed on a 16 KB boundary), `unaligned`, or `compressed`.
    """

    path: str
    abi: str
    alignment: int
    packed: Literal["aligned", "unaligned", "compressed"]
    ok: bool


def check(path: Path) -> tuple[LibraryAlignment, ...]:
    """Return the alignment of every .so in an AAR, APK or app bundle; raise DataError for what is none.

    `ok` holds for 32-bit ABIs, and where the segments are aligned and an APK's uncompressed entry is too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [i for i in archive.infolist() if _LIBRARY.fullmatch(i.filename)]
            return tuple(_library(archive, entry, apk=path.suffix == ".apk") for entry in names)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as an Android archive: {error}.") from error


def _library(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, *, apk: bool) -> LibraryAlignment:
    if entry.file_size > _MOST_BYTES:
        raise DataError(f"{entry.filename} claims {entry.file_size} bytes.")
    abi = entry.filename.split("/")[-2]
    with archive.open(entry) as stream:
        # The headers stand at the beginning; what the rest unpacks to is not asked for.
        alignment = elf_alignment(stream.read(_HEAD_BYTES), entry.filename)
    packed: Literal["aligned", "unaligned", "compressed"] = "compressed"
    if entry.compress_type == zipfile.ZIP_STORED:
        packed = "aligned" if data_offset(archive, entry) % PAGE == 0 else "unaligned"
    fits = alignment >= PAGE and alignment % PAGE == 0 and not (apk and packed == "unaligned")
    return LibraryAlignment(
        path=entry.filename, abi=abi, alignment=alignment, packed=packed, ok=fits or abi not in _ABIS_64
    )


def data_offset(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Return where an entry's data begins in the file: the local header's own lengths count."""
    assert archive.fp is not None
    place = archive.fp.tell()
    archive.fp.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", archive.fp.read(4))
    archive.fp.seek(place)
    return int(entry.header_offset + 30 + name + extra)


def elf_alignment(data: bytes, name: str = "the library") -> int:
    """Return the smallest p_align of an ELF file's PT_LOAD segments; raise DataError where it is none."""
    if len(data) < 52 or data[:4] != b"\x7fELF" or data[4] not in (1, 2) or data[5] not in (1, 2):
        raise DataError(f"{name} is no ELF library.")
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    try:
        (offset,) = struct.unpack_from(order + ("Q" if wide else "I"), data, 32 if wide else 28)
        size, count = struct.unpack_from(order + "HH", data, 54 if wide else 42)
        found: list[int] = []
        for i in range(count):
            at = offset + i * size
            (kind,) = struct.unpack_from(order + "I", data, at)
            if kind == _PT_LOAD:
                found += struct.unpack_from(order + ("Q" if wide else "I"), data, at + (48 if wide else 28))
    except (struct.error, OverflowError) as error:  # an offset beyond the file, or beyond all files
        raise DataError(f"{name} is cut off: {error}.") from error
    if not found:
        raise DataError(f"{name} has no loadable segment.")
    return int(min(found))


# --- packing --------------------------------------------------------------------------------------

# The same bytes for the same content: zip's earliest date.
_DATE = (1980, 1, 1, 0, 0, 0)
_STORED = (".tflite", ".pte", ".ptl", ".so")
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")


def assemble(
    path: Path, *, package: str, minimum_sdk: int, classes: bytes, assets: Mapping[str, bytes], rules: str = ""
) -> None:
    """Write an AAR of compiled classes (the bytes of a classes.jar) and assets; models are stored uncompressed.

    Stored entries begin at a multiple of 4 bytes, so that a build that keeps them can map them. Raises ConfigError for
    a package that is none, OutputError where the file cannot be written.
    """
    if not _PACKAGE.fullmatch(package):
        raise ConfigError(f"The package is {package[:80]!r}; accepted: words joined by dots.")
    manifest = (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<manifest xmlns:android="http://schemas.android.com/apk/res/android" package="{package}">\n'
        f'    <uses-sdk android:minSdkVersion="{int(minimum_sdk)}" />\n</manifest>\n'
    )
    entries: dict[str, bytes] = {"AndroidManifest.xml": manifest.encode(), "classes.jar": classes, "R.txt": b""}
    if rules:
        entries["proguard.txt"] = rules.encode()
    entries |= {f"assets/{name}": data for name, data in sorted(assets.items())}
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                _add(archive, name, data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    stored = name.endswith(_STORED)
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    if stored:
        assert archive.fp is not None
        begin = archive.fp.tell() + 30 + len(name.encode())
        # An extra field of an unregistered kind, as zipalign's own padding, brings the data to a boundary.
        padding = -(begin + 4) % 4
        info.extra = struct.pack("<HH", 0xD935, padding) + bytes(padding)
    archive.writestr(info, data)
