"""Memory that torch frees on a CPU stays with the process."""

from __future__ import annotations

import ctypes
import sys

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_BLOCK, KEPT_FREE, GROWTH = 1 << 30, (1 << 31) - 1, 1 << 28


def keep_freed_memory() -> None:
    """Stop glibc from handing every freed activation back to the kernel.

    The kernel clears each page it hands out again; with large activations that costs torch about half its time on a
    CPU. `benchmarks/cpu_memory.py` measures it. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE)
        mallopt(M_TOP_PAD, GROWTH)


def return_freed_memory() -> None:
    """Hand back to the kernel what is free now, after all."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if malloc_trim is not None:
        malloc_trim(0)
