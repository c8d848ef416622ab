"""Bodies as the application gets them; what clients do on real connections is in test_connections and test_faults."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Message

from finetune.serving import inference_routes
from finetune.serving.admission import client
from finetune.serving.bodies import BodyLimits
from finetune.serving.compression import STEP_BYTES
from finetune.serving.refusal import Refusal
from tests.serving.conftest import assembled, serve_config


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Uploads:
    """Bodies that are read, and held until all of them may go."""

    def __init__(self, models: Path, **limits: float) -> None:
        self.going_on = asyncio.Event()
        self.read: list[int] = []
        self.bodies = BodyLimits(self._reading, serve_config(models, limits=limits).limits, self._refuse)

    async def send(self, *chunks: bytes) -> None:
        messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        coming = iter([*messages, {"type": "http.request"}])

        async def receive() -> Message:
            return next(coming)

        await self.bodies({"type": "http", "headers": [(b"content-encoding", b"gzip")]}, receive, self._nowhere)

    async def _reading(self, scope: Any, receive: Any, send: Any) -> None:
        self.read.append(len(await Request(scope, receive).body()))
        await self.going_on.wait()

    async def _nowhere(self, _: Message) -> None:
        pass

    def _refuse(self, refusal: Refusal) -> JSONResponse:
        return JSONResponse({}, refusal.status)


def test_others_get_their_turn_while_a_body_inflates(tiny_models: Path) -> None:
    size = 100 * STEP_BYTES
    chunk = gzip.compress(bytes(size))
    assert len(chunk) < STEP_BYTES, "it comes at one time"

    async def test() -> None:
        uploads = Uploads(tiny_models, body_mb=10, held_mb=100)
        uploads.going_on.set()
        sending = [asyncio.ensure_future(uploads.send(chunk)) for _ in range(3)]
        turns = 0
        while not all(each.done() for each in sending):
            turns += 1
            await asyncio.sleep(0)
        assert uploads.read == [size] * 3
        assert turns >= 100

    asyncio.run(test())


def test_what_a_body_inflates_to_is_counted_before_more_of_it_is(tiny_models: Path) -> None:
    chunk = gzip.compress(bytes(900_000))

    async def test() -> None:
        uploads = Uploads(tiny_models, body_mb=1, held_mb=1.5)
        held = 0

        def hold(who: str, more: int, total: int) -> None:
            nonlocal held
            assert more <= STEP_BYTES
            counted(who, more, total)
            held = max(held, uploads.bodies.held.taken)

        counted, uploads.bodies.hold = uploads.bodies.hold, hold  # type: ignore[method-assign]
        first = asyncio.ensure_future(uploads.send(chunk))
        while not uploads.read:
            await asyncio.sleep(0)
        with pytest.raises(Refusal) as refused:
            await uploads.send(chunk)
        assert refused.value.status == 503
        assert 1_125_000 - STEP_BYTES < held <= 1_125_000, "three quarters: it is one client's"
        assert uploads.bodies.held.taken == 900_000
        uploads.going_on.set()
        await first
        assert uploads.bodies.held.taken == 0

    asyncio.run(test())


def test_a_client_that_sends_much_leaves_room_for_others(tiny_models: Path) -> None:
    async def test() -> None:
        uploads = Uploads(tiny_models, body_mb=1, held_mb=4)
        chunk = gzip.compress(bytes(990_000))
        client.set("many")
        many = []
        for _ in range(4):
            many.append(asyncio.ensure_future(uploads.send(chunk)))
            for _ in range(100):
                await asyncio.sleep(0)
        assert [each.done() for each in many] == [False, False, False, True]
        with pytest.raises(Refusal):
            await many.pop()
        client.set("few")
        few = asyncio.ensure_future(uploads.send(chunk))
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(uploads.read) == 4
        uploads.going_on.set()
        await asyncio.gather(few, *many)
        assert uploads.bodies.held.taken == 0

    asyncio.run(test())


def test_large_bodies_are_parsed_one_after_the_other(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser holds Python's lock: two would hand it to each other, and the loop would wait for both."""
    alone = threading.Lock()

    def parse(*_: object) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert alone.acquire(blocking=False), "another is parsed"
        time.sleep(0.02)
        alone.release()
        raise Refusal(400, "it was parsed")

    monkeypatch.setattr(inference_routes, "parse_request", parse)

    async def test() -> None:
        service = assembled(tiny_models)
        await service.repository.start()
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asked = [client.post("/v2/models/tiny/infer", content=bytes(40_000)) for _ in range(4)]
            for answer in await asyncio.gather(*asked):
                assert answer.json() == {"error": "it was parsed"}

    asyncio.run(test())


@pytest.mark.anyio
async def test_the_memory_of_all_bodies_is_bounded_and_given_back(tiny_models: Path) -> None:
    # all are one client's, which gets three quarters: 2 MB
    limits = serve_config(tiny_models, limits={"body_mb": 1, "held_mb": 8 / 3}).limits
    going_on = asyncio.Event()

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()
        await going_on.wait()

    async def nowhere(_: Message) -> None:
        pass

    def refuse(refusal: Refusal) -> JSONResponse:
        return JSONResponse({}, refusal.status)

    bodies = BodyLimits(reading, limits, refuse)

    def upload(*sizes: int, encoding: str = "identity", leaves: bool = False) -> asyncio.Future[None]:
        messages: list[Message] = [{"type": "http.request", "body": bytes(size), "more_body": True} for size in sizes]
        messages.append({"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b""})
        coming = iter(messages)

        async def receive() -> Message:
            await asyncio.sleep(0)
            return next(coming)

        scope = {"type": "http", "headers": [(b"content-encoding", encoding.encode())]}
        return asyncio.ensure_future(bodies(scope, receive, nowhere))

    first = [upload(400_000, 500_000), upload(900_000)]
    await asyncio.sleep(0.01)
    assert bodies.held.taken == 1_800_000
    for sizes, options, status in [
        ((150_000, 60_000), {}, 503),
        ((1_100_000,), {}, 413),
        ((100, 100), {"encoding": "gzip"}, 400),
    ]:
        with pytest.raises(Refusal) as refused:
            await upload(*sizes, **options)
        assert refused.value.status == status
        assert bodies.held.taken == 1_800_000
    with pytest.raises(ClientDisconnect):
        await upload(100_000, leaves=True)
    assert bodies.held.taken == 1_800_000
    first[0].cancel()
    await asyncio.wait([first[0]])
    assert bodies.held.taken == 900_000
    going_on.set()
    await first[1]
    assert bodies.held.taken == 0
