"""Progress for people, on stderr."""

from __future__ import annotations

import sys
import time

_WIDTH = 78


class Talk:
    """Shows steps as `* text` lines; on a terminal the share of the running step is updated in place."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()
        self._open = False
        self._last = 0.0

    def __call__(self, text: str, share: float | None = None) -> None:
        """Report progress; `share` from 0 to 1 belongs to the step of that text."""
        if self._quiet:
            return
        if share is None:
            self._close()
            sys.stderr.write(f"* {text}\n")
        elif self._live and (time.monotonic() - self._last > 0.1 or share >= 1):
            self._last = time.monotonic()
            sys.stderr.write(f"\r  > {text} {100 * share:3.0f} %".ljust(_WIDTH)[:_WIDTH])
            self._open = True
        sys.stderr.flush()

    def _close(self) -> None:
        if self._open:
            sys.stderr.write("\r" + " " * _WIDTH + "\r")
            self._open = False

    def done(self) -> None:
        """End a line that is still open."""
        self._close()
        sys.stderr.flush()
