from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Message

from finetune.serving.admission import client
from finetune.serving.guard import Guard
from finetune.serving.keys import Keys
from finetune.serving.refusal import Refusal


def test_who_has_many_addresses_of_one_network_is_one_client() -> None:
    async def test() -> None:
        going_on = asyncio.Event()
        asking: list[str] = []
        answered: list[int] = []

        async def wait(*_: Any) -> None:
            asking.append(client.get())
            await going_on.wait()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append(message["status"])

        def refuse(refusal: Refusal) -> JSONResponse:
            return JSONResponse({}, refusal.status)

        guard = Guard(wait, Keys(()), 2, refuse)

        def ask(address: str) -> asyncio.Future[None]:
            scope = {"type": "http", "path": "/predict", "headers": [], "client": (address, 1), "state": {"facts": {}}}
            # nothing of the request is read
            return asyncio.ensure_future(guard(scope, wait, send))  # type: ignore[arg-type]

        same = [ask(f"2001:db8::{number}") for number in range(1, 4)]
        other = [ask("2001:db8:0:1::1"), ask("::ffff:10.0.0.7"), ask("10.0.0.7")]
        await asyncio.wait_for(same[2], 10)
        assert answered == [429]
        going_on.set()
        await asyncio.gather(*same, *other)
        assert asking == ["2001:db8::/64"] * 2 + ["2001:db8:0:1::/64"] + ["10.0.0.7"] * 2

    asyncio.run(test())
