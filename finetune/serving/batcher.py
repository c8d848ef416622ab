"""Photos of many requests run together: what waits while one batch runs is the next batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from finetune.preprocess import Pixels
from finetune.serving.line import Line
from finetune.serving.request_times import RequestTimes, current_times

Probabilities = NDArray[np.float32]
# A batch's rows, and the seconds that it ran.
Ran = tuple[Probabilities, float]


class Timings(Protocol):
    """Is told, on the event loop, how long each photo waited and each batch ran."""

    def waited(self, seconds: float) -> None: ...

    def ran(self, photos: int, seconds: float) -> None: ...


@dataclass(slots=True)
class _Photo:
    pixels: Pixels
    row: asyncio.Future[Probabilities]
    since: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    # a batch is of many requests, and begun by any of them
    times: RequestTimes = field(default_factory=current_times)


class Batcher:
    """Runs photos of clients in turns, each client's in the order of their arrival, a batch a thread of its own.

    Used from one event loop.

    A photo whose future was cancelled, by a client that left or a deadline, leaves the queue and is not run.
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], Probabilities],
        max_batch: int,
        delay_s: float,
        timings: Timings,
        runs: int = 1,
    ) -> None:
        """run: (N, H, W, 3) to (N, classes), N up to max_batch, called on a thread.

        delay_s: how long a photo waits for others to join it, from its arrival on, so that what has waited for the
        batch before it does not wait again. runs: how many batches run at one time.
        """
        self.max_batch, self.delay_s = max_batch, delay_s
        self._run, self._timings = run, timings
        self._line: Line[_Photo] = Line(lambda photo: photo.row.done())
        self.runs, self._running = runs, 0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        # they end with this object
        self._thread = ThreadPoolExecutor(runs, "run")

    def submit(self, pixels: Pixels, who: object) -> asyncio.Future[Probabilities]:
        """Let one photo (H, W, 3) wait; returns the future of its row (classes,), which may be cancelled.

        who: whose turn it takes.
        """
        loop = asyncio.get_running_loop()
        photo = _Photo(pixels, loop.create_future())
        self._line.put(photo, who)
        if self._running < self.runs and (self._timer is None or len(self._line) >= self.max_batch):
            self._await_others(loop)
        return photo.row

    def _await_others(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin the next batch when it is full or its first photo has waited for delay_s."""
        if self._timer is not None:
            self._timer.cancel()
        left_s = min(photo.since for photo in self._line.firsts()) + self.delay_s - time.perf_counter()
        if len(self._line) >= self.max_batch or left_s <= 0:
            # after the photos that came with this one
            self._timer = loop.call_soon(self._begin, loop)
        else:
            self._timer = loop.call_later(left_s, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        batch = self._take()
        if batch:
            self._running += 1
            ran = loop.run_in_executor(self._thread, self._work, [photo.pixels for photo in batch])
            ran.add_done_callback(lambda done: self._end(batch, done, loop))
            if self._line and self._running < self.runs:
                self._await_others(loop)

    def _work(self, batch: list[Pixels]) -> Ran:
        began = time.perf_counter()
        rows = self._run(np.stack(batch))
        return rows, time.perf_counter() - began

    def _take(self) -> list[_Photo]:
        batch: list[_Photo] = []
        now = time.perf_counter()
        while len(batch) < self.max_batch and (photo := self._line.take()):
            photo.waited_s = now - photo.since
            self._timings.waited(photo.waited_s)
            batch.append(photo)
        return batch

    def _end(self, batch: list[_Photo], done: asyncio.Future[Ran], loop: asyncio.AbstractEventLoop) -> None:
        self._running -= 1
        if self._line:
            self._await_others(loop)
        failure = done.exception()
        if failure is not None:
            for photo in batch:
                if not photo.row.done():
                    photo.row.set_exception(failure)
            return
        rows, seconds = done.result()
        self._timings.ran(len(batch), seconds)
        for photo, row in zip(batch, rows, strict=True):
            if not photo.row.done():
                photo.times.ran(photo.waited_s, seconds)
                photo.row.set_result(row)
