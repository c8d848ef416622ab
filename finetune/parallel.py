"""The cores there are, and work spread over them in order."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the cores this process may use: its affinity, and a container's quota where one is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(cores, math.ceil(_quota_cores())))


def whole_cores() -> list[int]:
    """Return the numbers of the cores that threads may choose from: none where a quota gives less than all of them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) <= _quota_cores() else []


def _quota_cores() -> float:
    quota_us, period_us = _cgroup_quota()
    return quota_us / period_us if quota_us > 0 else float(sys.maxsize)


def _cgroup_quota() -> tuple[int, int]:
    """Return the microseconds of a core that this container gets in each period of so many; 0 or less where any."""
    second, first = CGROUP / "cpu.max", CGROUP / "cpu"
    try:
        if second.exists():
            quota, period = second.read_text().split()
            return (0, 1) if quota == "max" else (int(quota), int(period))
        return int((first / "cpu.cfs_quota_us").read_text()), int((first / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return 0, 1


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` in order, computed ahead on a thread a core; memory holds a few results at a time."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        yield from _ahead(pool, function, items)


def process_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` in order, computed ahead in a process a core; for work that holds Python's lock.

    function and items are pickled. The processes are started afresh, so they share no handle or thread with this one.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), mp_context=context, initializer=_leave_ctrl_c_to_the_parent) as pool:
        yield from _ahead(pool, function, items)


def _ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    ahead: deque[Future[Result]] = deque()
    most = 4 * usable_cores()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
