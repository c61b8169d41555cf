"""Files that travel to another machine and back, as bytes: there need be no shared disk."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge.errors import DataError, blaming


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A file or folder: the path that it has at its place, and the bytes of a tar archive with it under that path."""

    path: str
    digest: str
    content: bytes


def travelling_path(path: Path, root: Path) -> str:
    """Return the path that a file has elsewhere: its own below `root`, else one of its content's place."""
    absolute = path.absolute()
    if absolute.is_relative_to(root.absolute()):
        return absolute.relative_to(root.absolute()).as_posix()
    place = hashlib.sha256(str(absolute.parent).encode()).hexdigest()[:12]
    return f"outside/{place}/{absolute.name}"


def pack(path: Path, root: Path) -> Parcel:
    """Return a file or folder as bytes; equal content gives equal bytes. Raises DataError."""
    name = travelling_path(path, root)
    stream = io.BytesIO()
    try:
        # What a link leads to travels in its place: elsewhere it would lead to nothing.
        with tarfile.open(fileobj=stream, mode="w", dereference=True) as archive:
            archive.add(path, arcname=name, filter=_plain)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", hint="Check the path.") from error
    content = stream.getvalue()
    return Parcel(path=name, digest=hashlib.sha256(content).hexdigest(), content=content)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if PurePosixPath(entry.name).name == "__pycache__":
        return None
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def unpack(parcels: Sequence[Parcel], folder: Path) -> None:
    """Write parcels below a folder. Raises DataError for what would leave it, and is neither a file nor a folder."""
    for parcel in parcels:
        with (
            blaming(DataError, f"{parcel.path} arrived damaged", hint="Are both machines those that you mean?"),
            tarfile.open(fileobj=io.BytesIO(parcel.content), mode="r:") as archive,
        ):
            archive.extractall(folder, filter=_safe)  # noqa: S202 - that is what the filter is for


def _safe(entry: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    if not (entry.isdir() or entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or entry.sparse is not None:
        raise DataError(f"{entry.name[:100]!r} is neither a file nor a folder.")
    return tarfile.data_filter(entry, folder)
