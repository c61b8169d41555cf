"""Temporary folders that a later run knows for abandoned: their maker holds a lock on them that dies with it.

A process that is killed cannot clean up. Whoever makes a folder of the same name next removes what is left, at once and
without asking for its age, because the kernel has dropped the lock; a folder of a living process is never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(prefix: str, folder: Path) -> Iterator[Path]:
    """Yield a new folder `PREFIX........` below `folder`, which is removed at the end if it is still there.

    Folders of that prefix whose makers are gone are removed first. On a file system without locks none is.
    """
    remove_abandoned(prefix, folder)
    made, lock = _locked(prefix, folder)
    try:
        yield made
    finally:
        # Renamed elsewhere, it is no scratch folder any more; then another may have its name.
        if _is(made, lock):
            shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _locked(prefix: str, folder: Path) -> tuple[Path, int]:
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
        # Between making and locking another run may take it for abandoned.
        try:
            lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if _is(made, lock):
            return made, lock
        os.close(lock)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


def remove_abandoned(prefix: str, folder: Path) -> None:
    """Remove the folders of that prefix that nobody holds, as far as this user may."""
    for found in abandoned(prefix, folder):
        shutil.rmtree(found, ignore_errors=True)


def abandoned(prefix: str, folder: Path) -> Iterator[Path]:
    """Yield each folder of that prefix that nobody holds, locked while it is looked at."""
    length = len(prefix) + 8  # as mkdtemp makes them: a longer name belongs to another prefix
    try:
        names = [n for n in os.listdir(folder) if n.startswith(prefix) and len(n) == length]  # noqa: PTH208 - texts
    except OSError:
        return
    for name in sorted(names):
        try:
            lock = os.open(folder / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(lock).st_uid == os.getuid() and _take(lock):
                yield folder / name
        finally:
            os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
