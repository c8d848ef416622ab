"""Threads that several models work on, in turns, so that nobody's photos stand behind all of another's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


class Turns:
    """Runs functions on a few threads; whoever waits gets every n-th turn of n. Used from one event loop.

    What is cancelled before it begins is never begun; what runs keeps its thread until it is through.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "work")
        # as many again wait at the threads themselves, which else would have nothing to do until the loop has time
        self._free = 2 * threads
        self._waiting: dict[object, deque[asyncio.Future[None]]] = {}

    async def run(self, who: object, function: Callable[..., Result], *arguments: object) -> Result:
        """Return what a function does on a thread; who: whose turn it takes."""
        await self._turn(who)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()

        def end(work: Future[Result]) -> None:
            # of the work, not of those who wait for it: they may have left
            self._pass_on()
            if result.done():
                return
            if error := work.exception():
                result.set_exception(error)
            else:
                result.set_result(work.result())

        def tell(work: Future[Result]) -> None:
            # a loop that has ended has nobody who waits
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end, work)

        work = self._executor.submit(function, *arguments)
        work.add_done_callback(tell)
        try:
            return await result
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def _turn(self, who: object) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # it had been given the turn just before
                self._pass_on()
            else:
                self._leave(who, turn)
            raise

    def _leave(self, who: object, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(who, deque())
        with suppress(ValueError):
            queue.remove(turn)
            if not queue:
                del self._waiting[who]

    def _pass_on(self) -> None:
        while self._waiting:
            who, queue = next(iter(self._waiting.items()))
            # to the end of the line, or out of it
            del self._waiting[who]
            turn = queue.popleft()
            if queue:
                self._waiting[who] = queue
            # else it was cancelled just now, and is about to leave
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
