"""Threads that several models work on, for clients in turns: nobody's photos stand behind all of another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from finetune.serving.line import Line
from finetune.serving.own_cores import OwnCores

Result = TypeVar("Result")


class Turns:
    """Runs functions on a few threads; whoever waits gets every n-th turn of n. Used from one event loop.

    What is cancelled before it begins is never begun; what runs keeps its thread until it is through.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, "work")
        self._cores = OwnCores()
        # as many again wait at the threads themselves, which else would have nothing to do until the loop has time
        self._waiting_room = threads
        self._free = threads + self._waiting_room
        self._line: Line[asyncio.Future[None]] = Line(lambda turn: turn.done())

    async def run(self, whose: tuple[object, ...], function: Callable[..., Result], *arguments: object) -> Result:
        """Return what a function does on a thread; whose: whose turn it takes, as `Line.put` has it."""
        await self._turn(whose)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()

        def end(work: Future[Result]) -> None:
            # of the work, not of those who wait for it: they may have left
            self._pass_on()
            if result.done():
                return
            if work.cancelled():
                result.cancel()
            elif error := work.exception():
                result.set_exception(error)
            else:
                result.set_result(work.result())

        def tell(work: Future[Result]) -> None:
            # a loop that has ended has nobody who waits
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end, work)

        place = self._cores.settle if self._free < self._waiting_room else self._cores.roam

        def begin() -> Result:
            place()
            return function(*arguments)

        work = self._executor.submit(begin)
        work.add_done_callback(tell)
        try:
            return await result
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def _turn(self, whose: tuple[object, ...]) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.put(turn, *whose)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # it had been given the turn just before
                self._pass_on()
            raise

    def close(self) -> None:
        """Begin nothing more; what runs goes on to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _pass_on(self) -> None:
        if turn := self._line.take():
            turn.set_result(None)
        else:
            self._free += 1
