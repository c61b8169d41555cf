"""How many bytes tensors take that share one block of memory, each while it lives."""

from __future__ import annotations

from collections.abc import Iterable


def planned_bytes(blocks: Iterable[tuple[int, int, int]]) -> int:
    """Return the bytes of an arena for (size, first operator, last operator) of each tensor, greedy by size.

    Two tensors overlap in memory only where their lifetimes, both ends included, do not. Method: Pisarchyk and Lee
    2020, arXiv 2001.03288, section 5.2 (greedy by size for offsets), which TensorFlow Lite and XNNPACK plan by.
    """
    placed: list[tuple[int, int, int, int]] = []  # offset, size, first, last
    for size, first, last in sorted(blocks, reverse=True):
        offset = 0
        for begin, end in sorted((o, o + s) for o, s, a, b in placed if a <= last and first <= b):
            if offset + size <= begin:
                break
            offset = max(offset, end)
        placed.append((offset, size, first, last))
    return max((offset + size for offset, size, _, _ in placed), default=0)
