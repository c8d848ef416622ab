from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune.serving.batcher import Batcher


class Timings:
    def __init__(self) -> None:
        self.waits: list[float] = []
        self.runs: list[int] = []

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def ran(self, photos: int, seconds: float) -> None:
        self.runs.append(photos)


def photo(number: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), number, np.uint8)


class Model:
    """Answers each photo with its number; runs only while the gate is open, and keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.gate.wait(10)
        numbers = images[:, 0, 0, 0]
        self.batches.append(numbers.tolist())
        return numbers[:, None].astype(np.float32)


def run(
    test: Callable[[Batcher, Model, Timings], Coroutine[Any, Any, None]], max_batch: int = 4, delay_s: float = 0
) -> tuple[Model, Timings]:
    model, timings = Model(), Timings()

    async def around() -> None:
        batcher = Batcher(model, max_batch, delay_s, timings)
        try:
            await asyncio.wait_for(test(batcher, model, timings), 10)
        finally:
            model.gate.set()

    asyncio.run(around())
    return model, timings


def test_what_waits_while_a_batch_runs_is_the_next_batch() -> None:
    async def test(batcher: Batcher, model: Model, _: Timings) -> None:
        model.gate.clear()
        first = batcher.submit(photo(0), "a")
        await asyncio.sleep(0.05)
        others = [batcher.submit(photo(number), "a") for number in range(1, 8)]
        model.gate.set()
        rows = await asyncio.gather(first, *others)
        assert [float(row[0]) for row in rows] == list(range(8))

    model, timings = run(test)
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert timings.runs == [1, 4, 3]
    assert len(timings.waits) == 8


def test_photos_that_come_together_run_together() -> None:
    async def test(batcher: Batcher, *_: Any) -> None:
        await asyncio.gather(*(batcher.submit(photo(number), "a") for number in range(3)))

    assert run(test)[0].batches == [[0, 1, 2]]


def test_an_idle_model_waits_for_others_for_as_long_as_it_may() -> None:
    async def test(batcher: Batcher, *_: Any) -> None:
        first = batcher.submit(photo(0), "a")
        await asyncio.sleep(0.02)
        second = batcher.submit(photo(1), "a")
        await asyncio.gather(first, second)

    assert run(test, delay_s=0.5)[0].batches == [[0, 1]]


def test_a_full_batch_waits_for_nothing() -> None:
    async def test(batcher: Batcher, *_: Any) -> None:
        await asyncio.gather(*(batcher.submit(photo(number), "a") for number in range(4)))

    # the test itself would be cut off long before the delay is over
    assert run(test, delay_s=1000)[0].batches == [[0, 1, 2, 3]]


def test_a_cancelled_photo_is_not_run() -> None:
    async def test(batcher: Batcher, model: Model, _: Timings) -> None:
        model.gate.clear()
        first = batcher.submit(photo(0), "a")
        await asyncio.sleep(0.05)
        others = [batcher.submit(photo(number), "a") for number in range(1, 6)]
        others[1].cancel()
        # of the batch that is running: its row is thrown away, the rest goes on
        first.cancel()
        model.gate.set()
        await asyncio.gather(*others, return_exceptions=True)
        assert [row.cancelled() for row in others] == [False, True, False, False, False]

    assert run(test)[0].batches == [[0], [1, 3, 4, 5]]


def test_a_failing_run_fails_its_photos_and_no_others() -> None:
    class Broken(Exception):
        pass

    def fails_once(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images[0, 0, 0, 0] == 0:
            raise Broken
        return images[:, 0, 0, :1].astype(np.float32)

    async def test() -> None:
        batcher = Batcher(fails_once, 2, 0, Timings())
        rows = await asyncio.gather(*(batcher.submit(photo(n), "a") for n in range(4)), return_exceptions=True)
        assert [isinstance(row, Broken) for row in rows] == [True, True, False, False]

    asyncio.run(test())


@settings(deadline=None, max_examples=40)
@given(
    pauses=st.lists(st.sampled_from([0, 0, 0, 0.001]), min_size=1, max_size=30),
    max_batch=st.integers(1, 7),
    delay_s=st.sampled_from([0, 0.0005]),
    cancelled=st.sets(st.integers(0, 29)),
)
def test_every_photo_gets_its_own_row_in_the_order_of_arrival(
    pauses: list[float], max_batch: int, delay_s: float, cancelled: set[int]
) -> None:
    async def test(batcher: Batcher, *_: Any) -> None:
        rows = []
        for number, pause in enumerate(pauses):
            rows.append(batcher.submit(photo(number), "a"))
            if number in cancelled:
                rows[-1].cancel()
            if pause:
                await asyncio.sleep(pause)
        answers = await asyncio.gather(*rows, return_exceptions=True)
        for number, answer in enumerate(answers):
            if number not in cancelled:
                assert not isinstance(answer, BaseException)
                assert float(answer[0]) == number

    model, timings = run(test, max_batch, delay_s)
    ran = [number for batch in model.batches for number in batch]
    assert ran == sorted(ran)
    assert set(range(len(pauses))) - cancelled <= set(ran)
    assert all(len(batch) <= max_batch for batch in model.batches)
    assert timings.runs == [len(batch) for batch in model.batches]


def test_a_client_s_photo_is_in_the_next_batch_however_many_another_has_waiting() -> None:
    async def test(batcher: Batcher, model: Model, _: Timings) -> None:
        model.gate.clear()
        running = batcher.submit(photo(0), "busy")
        await asyncio.sleep(0.05)
        busy = [batcher.submit(photo(number), "busy") for number in range(1, 9)]
        left = [batcher.submit(photo(number), "left") for number in range(20, 23)]
        few = [batcher.submit(photo(number), "few") for number in range(10, 12)]
        for row in left:
            row.cancel()
        model.gate.set()
        await asyncio.gather(running, *busy, *few)

    assert run(test)[0].batches == [[0], [1, 10, 2, 11], [3, 4, 5, 6], [7, 8]]


def test_two_batches_run_at_one_time_where_that_is_asked_for() -> None:
    together = threading.Barrier(2)

    def run_beside(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        together.wait(10)
        return images[:, 0, 0, :1].astype(np.float32)

    async def test() -> None:
        batcher = Batcher(run_beside, 2, 0, Timings(), runs=2)
        rows = await asyncio.gather(*(batcher.submit(photo(number), "a") for number in range(4)))
        assert [float(row[0]) for row in rows] == [0, 1, 2, 3]

    asyncio.run(asyncio.wait_for(test(), 20))


def test_its_thread_ends_with_it() -> None:
    async def test(batcher: Batcher, *_: Any) -> None:
        await batcher.submit(photo(0), "a")
        (thread,) = batcher._thread._threads
        threads.append(thread)

    threads: list[threading.Thread] = []
    run(test)
    threads[0].join(10)
    assert not threads[0].is_alive()
