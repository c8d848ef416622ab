"""Threads that stay on a core each while all of them have work."""

from __future__ import annotations

import itertools
import logging
import os
import threading

from finetune.parallel import whole_cores

log = logging.getLogger(__name__)


class _Mine(threading.local):
    core: int | None = None
    settled = False


class OwnCores:
    """Where the threads of a pool run.

    A system that wakes a thread beside who woke it, and moves it away later, leaves two busy threads on one core and
    another core idle now and then, with the event loop between them. So a thread that knows of no idle one stays on a
    core of its own. Else it goes where it is put: other processes may be at work on any core.
    """

    def __init__(self) -> None:
        self._cores = whole_cores()
        self._next = itertools.cycle(self._cores)
        self._mine = _Mine()
        self._forbidden = False

    def settle(self) -> None:
        """Keep the calling thread on its core."""
        if not self._cores or self._forbidden or self._mine.settled:
            return
        if self._mine.core is None:
            self._mine.core = next(self._next)
        self._mine.settled = self._put([self._mine.core])

    def roam(self) -> None:
        """Let the calling thread go to any core."""
        if self._mine.settled:
            self._mine.settled = not self._put(self._cores)

    def _put(self, cores: list[int]) -> bool:
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:
            # or the container has other cores by now: it costs speed, and no request
            if not self._forbidden:
                log.warning("threads choose no cores from now on: %s", error)
            self._forbidden = True
            return False
        return True
