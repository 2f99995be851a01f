"""The C library's allocator, told how to treat the largest results of a step.

Unasked, glibc raises the size from which it asks the kernel for pages to that of the largest block that was ever freed,
32 MiB at most. From then on such blocks lie in a thread's heaps of 64 MiB, and a heap stays whole while a small block
behind them lives: after minutes of mixed load a server holds hundreds of megabytes that nobody uses.
"""

from __future__ import annotations

import ctypes

LARGE_BYTES = 16 << 20
"""The pages of such a block cost their faults anew at each use, a percent or two of what fills them."""

_M_MMAP_THRESHOLD = -3
"""Of mallopt(3). Set once, it stays where it is."""


def give_back_large_blocks() -> bool:
    """Has the kernel take back blocks of `LARGE_BYTES` when freed; False where the C library cannot be told."""
    library = ctypes.CDLL(None)
    try:
        mallopt = library.mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))
