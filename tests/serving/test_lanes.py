from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.bundle import open_bundle
from finetune.cores import at_work
from finetune.errors import ImageError
from finetune.serving.admission import client
from finetune.serving.batcher import Batcher
from finetune.serving.lanes import Apart, Lane, Together
from finetune.serving.predictor import Predictor, open_predictor
from finetune.serving.turns import Turns


class Told:
    def __init__(self) -> None:
        self.decodes: list[float] = []
        self.waits: list[float] = []
        self.runs: list[int] = []

    def decoded(self, seconds: float) -> None:
        self.decodes.append(seconds)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def ran(self, photos: int, seconds: float) -> None:
        self.runs.append(photos)


@pytest.fixture
def predictor(tiny_models: Path) -> Predictor:
    return open_predictor(open_bundle(tiny_models / "tiny"), "cpu", 2)


Make = Callable[[Predictor, Told], Lane]


def apart(predictor: Predictor, told: Told) -> Lane:
    return Apart("tiny", predictor, predictor.load, Turns(2), told)


def together(predictor: Predictor, told: Told) -> Lane:
    return Together("tiny", Batcher(predictor.run, 4, 0.0, told), predictor.load, Turns(2), told)


@pytest.mark.parametrize("make", [apart, together])
def test_photos_as_sent_and_as_decoded_are_answered_alike_and_told_of(
    make: Make, predictor: Predictor, red_photo: bytes
) -> None:
    told = Told()
    pixels = predictor.load(red_photo)
    wanted = predictor.run(pixels[None])[0]

    async def test() -> None:
        lane = make(predictor, told)
        rows = await asyncio.gather(
            *(lane.classify(red_photo) for _ in range(5)), *(lane.run(pixels) for _ in range(3))
        )
        for row in rows:
            np.testing.assert_allclose(row, wanted, atol=1e-6)
        with pytest.raises(ImageError):
            await lane.classify(b"no photo")

    asyncio.run(test())
    assert len(told.decodes) == 5
    assert len(told.waits) == 8
    assert sum(told.runs) == 8
    assert min(*told.decodes, *told.waits) >= 0


def test_apart_each_photo_runs_alone_and_holds_its_core_while_it_is_decoded(
    predictor: Predictor, red_photo: bytes
) -> None:
    told, entered, go_on = Told(), threading.Event(), threading.Event()
    alone: list[bool] = []

    def decode(raw: bytes) -> np.ndarray:
        entered.set()
        assert go_on.wait(10)
        return predictor.load(raw)

    async def test() -> None:
        lane = Apart("tiny", predictor, decode, Turns(2), told)
        asked = asyncio.ensure_future(lane.classify(red_photo))
        await asyncio.to_thread(entered.wait, 10)
        with at_work() as by_itself:
            alone.append(by_itself)
        go_on.set()
        await asked
        with at_work() as by_itself:
            alone.append(by_itself)

    asyncio.run(test())
    assert alone == [False, True]
    assert told.runs == [1]


def test_what_is_cancelled_before_its_turn_is_not_begun(predictor: Predictor, red_photo: bytes) -> None:
    told, go_on = Told(), threading.Event()
    begun: list[bytes] = []

    def decode(raw: bytes) -> np.ndarray:
        begun.append(raw)
        assert go_on.wait(10)
        return predictor.load(raw)

    async def test() -> None:
        lane = Apart("tiny", predictor, decode, Turns(1), told)
        first, *others = [asyncio.ensure_future(lane.classify(red_photo)) for _ in range(4)]
        while not begun:
            await asyncio.sleep(0.01)
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # what stands at the thread hears of it a turn of the loop later
        await asyncio.sleep(0.01)
        go_on.set()
        await first

    asyncio.run(test())
    assert len(begun) == 1


def test_a_photo_that_nobody_waits_for_any_more_is_not_run(
    predictor: Predictor, red_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    cores = Turns(1)

    def decode(raw: bytes) -> np.ndarray:
        entered.set()
        assert go_on.wait(10)
        return predictor.load(raw)

    async def test() -> None:
        asked = asyncio.ensure_future(Apart("tiny", predictor, decode, cores, Told()).classify(red_photo))
        await asyncio.to_thread(entered.wait, 10)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        monkeypatch.setattr(Predictor, "run", lambda *_: pytest.fail("run"))
        go_on.set()
        # after it, on the only thread
        await cores.run(("others",), int)

    asyncio.run(test())


@pytest.mark.parametrize("decoded", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_clients_take_turns_whatever_models_they_ask(
    batched: bool, decoded: bool, predictor: Predictor, red_photo: bytes
) -> None:
    order: list[str] = []
    entered, go_on = threading.Event(), threading.Event()
    pixels = predictor.load(red_photo)
    told = Told()

    class Held:
        """Runs nothing more while the first photo does not go on."""

        def run(self, images: np.ndarray) -> np.ndarray:
            entered.set()
            assert go_on.wait(10)
            return np.zeros((len(images), 3), np.float32)

    def lane(name: str, cores: Turns) -> Lane:
        held: Any = Held()
        if batched:
            return Together(name, Batcher(held.run, 1, 0.0, told), predictor.load, cores, told)
        return Apart(name, held, predictor.load, cores, told)

    async def ask(who: str, lane: Lane) -> None:
        client.set(who)
        await (lane.run(pixels) if decoded else lane.classify(red_photo))
        order.append(who)

    async def test() -> None:
        cores = Turns(1)
        # where photos are batched, each model has a line of its own
        lanes = [lane("x", cores)] * 2 if batched else [lane("x", cores), lane("y", cores)]
        asked = [asyncio.ensure_future(ask("busy", lanes[0]))]
        await asyncio.to_thread(entered.wait, 10)
        # the second stands at the thread already
        asked += [asyncio.ensure_future(ask("busy", lanes[n % 2])) for n in range(9)]
        await asyncio.sleep(0)
        asked += [asyncio.ensure_future(ask("other", lanes[0])) for _ in range(2)]
        await asyncio.sleep(0)
        while batched and not decoded and len(told.decodes) < len(asked):
            await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(*asked)

    asyncio.run(test())
    first, second = [place for place, who in enumerate(order) if who == "other"]
    assert first <= 3, "behind what runs, what stands at the thread, and one more"
    assert second <= 5
