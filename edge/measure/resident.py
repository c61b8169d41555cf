"""How much memory of this process something takes: the peak of the resident size above what was there before."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Written to clear_refs: the peak starts anew at the present size (proc(5)).
_RESET_PEAK = "5"


def growth(work: Callable[[], object]) -> int | None:
    """Run `work` and return by how many bytes the resident size grew at its peak; None where Linux does not tell.

    What `work` returns is kept until the peak is read. Run it once before, or libraries that it loads count as well.
    """
    gc.collect()
    try:
        _CLEAR.write_text(_RESET_PEAK)
        before = _kib("VmRSS")
        kept = work()
        peak = _kib("VmHWM")
    except (OSError, ValueError):
        return None
    del kept
    return max(0, 1024 * (peak - before))


def _kib(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{_STATUS} has no {key}")
    return int(found[1])
