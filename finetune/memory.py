"""How much memory there is for more."""

from __future__ import annotations

from pathlib import Path

import psutil

# cgroup 2; a container sees its own limits here
CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Return the memory that could still be taken: what the machine has free, and a container's limit where one is set.

    Pages that only cache files count as free, as they go when they are needed.
    """
    free: int = psutil.virtual_memory().available
    try:
        limit, used = (CGROUP / "memory.max").read_text().strip(), int((CGROUP / "memory.current").read_text())
        caching = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["inactive_file"]
    except (OSError, ValueError, KeyError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used + int(caching)))
