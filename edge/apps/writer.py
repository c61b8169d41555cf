"""Writing an export: again and again over the same folder, never over what the user changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge import codec
from edge.artifact import check_destination, translating_os_errors
from edge.errors import OutputError

LIST = ".edgekit-export.json"
_VERSION = 1
_LONGEST_NAME = 255  # bytes, on the usual file systems


@dataclass(frozen=True, kw_only=True)
class Written:
    """What an export did: paths relative to the folder, sorted."""

    written: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]


def digest(data: bytes) -> str:
    """Return the sha256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_list(folder: Path) -> dict[str, str]:
    """Return digest by path of the files that the last export wrote; nothing where there was none."""
    try:
        data = codec.loads((folder / LIST).read_text(encoding="utf-8"))
        files = data["files"]
        return {str(path): str(found) for path, found in files.items() if _inside(str(path))}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{folder / LIST} cannot be read: {error}.", hint="Remove it and export again with --force."
        ) from error


def _inside(path: str) -> bool:
    parts = PurePosixPath(path)
    longest = max((len(os.fsencode(part)) for part in parts.parts), default=0)
    return not parts.is_absolute() and ".." not in parts.parts and longest <= _LONGEST_NAME


def write(folder: Path, files: Mapping[str, bytes], about: Mapping[str, str], *, force: bool = False) -> Written:
    """Write the files below `folder` and the list of them; files of an earlier export that are no more are removed.

    A file that the user changed or made is never replaced: OutputError names all such files, before anything is
    written, unless `force`. A file of an earlier export that the user changed and that is no longer made is kept.
    """
    with translating_os_errors(folder):
        earlier = read_list(folder)
        if not folder.is_dir() or not any(folder.iterdir()):
            check_destination(folder)
        on_disk = {path: _digest_of(folder, path) for path in files.keys() | earlier.keys()}
        new = {path: digest(data) for path, data in files.items()}
        if not force:
            _refuse_changed(folder, new, on_disk, earlier)
        for path in sorted(files):
            if on_disk[path] != new[path]:
                _replace(folder / path, files[path])
        stale = [path for path in earlier if path not in files]
        removed = [path for path in stale if on_disk[path] == earlier[path]]
        for path in removed:
            _remove(folder, path)
        record = {"schema_version": _VERSION, **about, "files": dict(sorted(new.items()))}
        _replace(folder / LIST, codec.dumps(record).encode())
    return Written(
        written=tuple(sorted(p for p in files if on_disk[p] != new[p])),
        unchanged=tuple(sorted(p for p in files if on_disk[p] == new[p])),
        removed=tuple(sorted(removed)),
        kept=tuple(sorted(p for p in stale if p not in removed and on_disk[p] is not None)),
    )


def _digest_of(folder: Path, path: str) -> str | None:
    place = folder / path
    return digest(place.read_bytes()) if place.is_file() else None


def _refuse_changed(
    folder: Path, new: Mapping[str, str], on_disk: Mapping[str, str | None], earlier: Mapping[str, str]
) -> None:
    changed = sorted(p for p in new if on_disk[p] not in (None, new[p], earlier.get(p)))
    blocked = sorted(p for p in new if on_disk[p] is None and (folder / p).exists())
    if blocked:
        raise OutputError(f"{folder / blocked[0]} is no file but stands where one is written.", hint="Move it away.")
    if changed:
        listed = ", ".join(changed[:10]) + (f" and {len(changed) - 10} more" if len(changed) > 10 else "")
        raise OutputError(
            f"{len(changed)} file(s) in {folder} were changed since the last export or are not from one: {listed}.",
            hint="Move your changes to files of your own, or overwrite these with --force.",
        )


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove(folder: Path, path: str) -> None:
    place = folder / path
    place.unlink()
    for parent in place.parents:
        if parent == folder or any(parent.iterdir()):
            return
        parent.rmdir()
