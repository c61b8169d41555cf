"""Digests of files and folders, remembered by their state on disk, and which files a stage reads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# A file that changed this shortly before it was digested may change again within one tick of its time stamp.
_RACY_NS = 2_000_000_000
_ABSENT = "absent"


class Digests:
    """sha256 of files; a file whose inode, size, mtime and ctime are as remembered is not read again.

    The memory is a small database that several processes may use at once; without one, or with a damaged one, every
    file is read. The kernel sets a ctime at each change of content, so that setting back an mtime deceives nobody.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: sqlite3.Connection | None = None
        if memory is not None:
            self._known = _opened(memory)

    def file(self, path: Path) -> str:
        """Return the hexadecimal sha256 of a file's content, `absent` where there is none that can be read."""
        try:
            state = _state(path)
            return self._recalled(path, state) or self._read(path, state)
        except OSError:
            return _ABSENT

    def tree(self, path: Path) -> str:
        """Return the digest of a file, or of the names and contents of all files below a folder."""
        if not path.is_dir():
            return self.file(path)
        total = hashlib.sha256()
        for found in sorted(_files_below(path)):
            total.update(f"{found.relative_to(path).as_posix()}\0{self.file(found)}\0".encode())
        return total.hexdigest()

    def named(self, text: str) -> str:
        """Return the digest of what `text` names: a path, or a path with `:part` at its end; `absent` for neither."""
        for candidate in (text, text.rpartition(":")[0]):
            if candidate and (path := Path(candidate)).exists():
                return self.tree(path)
        return _ABSENT

    def close(self) -> None:
        """Write down what was learned."""
        if self._known is not None:
            with contextlib.suppress(sqlite3.Error):
                self._known.commit()
            self._known.close()
            self._known = None

    def _recalled(self, path: Path, state: str) -> str | None:
        if self._known is None:
            return None
        with contextlib.suppress(sqlite3.Error):
            row = self._known.execute("select sha256 from digests where path = ? and state = ?", (str(path), state))
            found = row.fetchone()
            return str(found[0]) if found else None
        return None

    def _read(self, path: Path, state: str) -> str:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        changed = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
        # Neither a file that was changed just now nor one from the future (a clock that was set back) is remembered.
        if self._known is not None and changed < time.time_ns() - _RACY_NS and state == _state(path):
            with contextlib.suppress(sqlite3.Error):
                self._known.execute("insert or replace into digests values (?, ?, ?)", (str(path), state, sha256))
        return sha256


def _state(path: Path) -> str:
    s = path.stat()
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def _files_below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f != "__pycache__"]
        yield from (Path(root, name) for name in names)


def _opened(memory: Path) -> sqlite3.Connection | None:
    """Open the memory; a damaged one is thrown away, and where none can be written there is none."""
    for _ in range(2):
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            known = sqlite3.connect(memory, timeout=5.0)
            known.execute("pragma synchronous = off")
            known.execute("create table if not exists digests (path text primary key, state text, sha256 text)")
            return known
        except sqlite3.OperationalError:
            return None
        except (sqlite3.DatabaseError, OSError):
            with contextlib.suppress(OSError):
                memory.unlink()
    return None


@contextlib.contextmanager
def recording_reads(besides: Path) -> Iterator[set[str]]:
    """Yield a set that receives each file that Python opens for reading within the block, of those that are a user's.

    What belongs to Python, to installed packages, to the system or lies below `besides` is left out. Libraries that
    open files by C calls are not seen: what a user names is digested as a whole for that reason. An audit hook cannot
    be removed again, so this is for a process that ends soon.
    """
    recorded: set[str] = set()
    active = True
    left_out = _not_the_users(besides)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not active or not isinstance(arguments[0], (str, bytes)):
            return
        flags = arguments[2] if len(arguments) > 2 else 0
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - runs at each open
        if not left_out.match(path):
            recorded.add(path)

    sys.addaudithook(hook)
    try:
        yield recorded
    finally:
        active = False


def _not_the_users(besides: Path) -> re.Pattern[str]:
    own = Path(__file__).resolve().parent.parent
    folders = {"/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/run", str(besides), sys.prefix, sys.base_prefix}
    folders |= {str(own / name) for name in ("edge", "targets", "calibration")}
    folders |= {p for p in sys.path if p.endswith(("site-packages", "dist-packages"))}
    # An editable install is reached over the links of `edge` too.
    folders |= {os.path.realpath(f) for f in folders}
    return re.compile("|".join(re.escape(f) + r"(/|$)" for f in sorted(folders)) + r"|.*/__pycache__/")
