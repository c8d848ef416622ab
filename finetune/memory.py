"""How much memory there is for more."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil

# cgroup 2; a container sees its own limits here
CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Return the memory that could still be taken: what the machine has free, and a container's limit where one is set.

    Pages that only cache files count as free, as they go when they are needed.
    """
    free: int = min(psutil.virtual_memory().available, _address_space_left())
    try:
        limit, used = (CGROUP / "memory.max").read_text().strip(), int((CGROUP / "memory.current").read_text())
        caching = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
    except (OSError, ValueError, KeyError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used + int(caching)))


def _address_space_left() -> int:
    """Return what `ulimit -v` leaves, with what was freed and still belongs to the process."""
    if not sys.platform.startswith("linux"):
        return sys.maxsize
    process = psutil.Process()
    limit, _ = process.rlimit(psutil.RLIMIT_AS)
    return sys.maxsize if limit < 0 else max(0, limit - process.memory_info().vms + _freed_bytes())


def _freed_bytes() -> int:
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = MallocState
    return int(mallinfo().fordblks)


class MallocState(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    ]
