"""Threads that stay on a core each while all of them have work."""

from __future__ import annotations

import itertools
import logging
import os
import threading

from finetune.parallel import own_cores

log = logging.getLogger(__name__)


class _Mine(threading.local):
    core: int | None = None
    settled = False


class OwnCores:
    """Where the threads of a pool run.

    A system that wakes a thread beside who woke it, and moves it away later, leaves two busy threads on one core and
    another core idle, for a tenth of the time with the event loop between them. So a thread that knows of no idle one
    stays on a core of its own. Else it goes where it is put: other processes may be at work on any core.
    """

    def __init__(self, threads: int) -> None:
        cores = own_cores()
        self._cores = cores if len(cores) == threads else []
        self._next = itertools.cycle(self._cores)
        self._mine = _Mine()

    def settle(self) -> None:
        """Keep the calling thread on its core."""
        if self._cores and not self._mine.settled:
            if self._mine.core is None:
                self._mine.core = next(self._next)
            self._put([self._mine.core])
            self._mine.settled = True

    def roam(self) -> None:
        """Let the calling thread go to any core."""
        if self._cores and self._mine.settled:
            self._put(self._cores)
            self._mine.settled = False

    def _put(self, cores: list[int]) -> None:
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:
            # forbidden, or the container was given other cores: it costs speed, and no request
            log.warning("threads stay where the system puts them: %s", error)
            self._cores = []
