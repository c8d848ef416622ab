from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from finetune.serving.turns import Turns


def run(test: Callable[[Turns], Any], threads: int = 1) -> None:
    async def within_time() -> None:
        await asyncio.wait_for(test(Turns(threads)), 60)

    asyncio.run(within_time())


def test_who_waits_gets_every_other_turn_of_two() -> None:
    async def test(turns: Turns) -> None:
        order: list[str] = []
        gate = threading.Event()
        first = asyncio.ensure_future(turns.run(("first",), gate.wait, 60))
        await asyncio.sleep(0)
        many = [asyncio.ensure_future(turns.run(("many",), order.append, f"many {n}")) for n in range(4)]
        await asyncio.sleep(0)
        few = [asyncio.ensure_future(turns.run(("few",), order.append, f"few {n}")) for n in range(2)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *many, *few)
        # the first of many stood at the thread already
        assert order == ["many 0", "many 1", "few 0", "many 2", "few 1", "many 3"]

    run(test)


def test_what_is_cancelled_is_never_begun_and_holds_up_nobody() -> None:
    async def test(turns: Turns) -> None:
        begun: list[int] = []
        gate = threading.Event()
        blocking = asyncio.ensure_future(turns.run(("a",), gate.wait, 60))
        others = [asyncio.ensure_future(turns.run(("a",), begun.append, n)) for n in range(4)]
        await asyncio.sleep(0.01)
        others[0].cancel()
        others[2].cancel()
        # the first stands at the thread and has to hear of it before it begins
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(blocking, *others, return_exceptions=True)
        assert begun == [1, 3]
        await turns.run(("a",), begun.append, 9)
        assert begun == [1, 3, 9]

    run(test)


def test_who_leaves_keeps_its_thread_until_the_work_is_through() -> None:
    async def test(turns: Turns) -> None:
        gate = threading.Event()
        left = asyncio.ensure_future(turns.run(("a",), gate.wait, 60))
        await asyncio.sleep(0.01)
        left.cancel()
        next_one = asyncio.ensure_future(turns.run(("a",), lambda: 7))
        await asyncio.sleep(0.02)
        assert not next_one.done()
        gate.set()
        assert await next_one == 7

    run(test)


def test_as_many_run_together_as_there_are_threads() -> None:
    async def test(turns: Turns) -> None:
        together = threading.Barrier(3)
        await asyncio.gather(*(turns.run((n,), together.wait, 5) for n in range(3)))

    run(test, threads=3)


def test_a_failing_function_gives_its_turn_on() -> None:
    async def test(turns: Turns) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        failed, fine = await asyncio.gather(
            turns.run(("a",), fail), turns.run(("a",), lambda: 1), return_exceptions=True
        )
        assert isinstance(failed, ZeroDivisionError)
        assert fine == 1

    run(test)


def test_those_who_leave_take_no_turns_from_their_model() -> None:
    async def test(turns: Turns) -> None:
        order: list[str] = []
        gate = threading.Event()
        first = [asyncio.ensure_future(turns.run(("first",), gate.wait, 60)) for _ in range(2)]
        await asyncio.sleep(0)
        a, b = (
            [asyncio.ensure_future(turns.run((who,), order.append, f"{who}{n}")) for n in range(count)]
            for who, count in (("a", 8), ("b", 3))
        )
        await asyncio.sleep(0)
        for each in a[:6]:
            each.cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*first, *a, *b, return_exceptions=True)
        assert order == ["a6", "b0", "a7", "b1", "b2"]

    run(test)


def test_work_that_outlives_the_loop_ends_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    begun, gate, turns = threading.Event(), threading.Event(), Turns(1)

    def work() -> None:
        begun.set()
        gate.wait(60)

    async def leave() -> None:
        left = asyncio.ensure_future(turns.run(("a",), work))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        left.cancel()

    asyncio.run(leave())
    gate.set()
    # waits for the thread, which tells of the work's end what is there to be told
    turns._executor.shutdown()
    assert caplog.messages == []


def test_what_waits_is_never_begun_once_it_is_closed() -> None:
    async def test(turns: Turns) -> None:
        begun: list[int] = []
        gate, begins = threading.Event(), threading.Event()

        def block() -> None:
            begins.set()
            gate.wait(60)

        running = asyncio.ensure_future(turns.run(("a",), block))
        waiting = [asyncio.ensure_future(turns.run(("a",), begun.append, n)) for n in range(3)]
        await asyncio.to_thread(begins.wait, 60)
        turns.close()
        gate.set()
        await running
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, (asyncio.CancelledError, RuntimeError)) for each in found)
        assert not begun

    run(test)
