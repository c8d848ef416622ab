from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from starlette.types import Message

from finetune.serving.admission import client
from finetune.serving.guard import Guard
from finetune.serving.keys import Keys
from finetune.serving.refusal import Refusal
from tests.serving.conftest import asking, error_of


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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


@pytest.mark.anyio
async def test_keys_and_what_they_open(tiny_models: Path, red_photo: bytes, tmp_path: Path) -> None:
    roles = {"alice": "predict", "root": "admin"}
    lines = [f"{name} {role} {hashlib.sha256(name.encode()).hexdigest()}" for name, role in roles.items()]
    (tmp_path / "keys").write_text("\n".join(lines))
    async with asking(tiny_models, keys=str(tmp_path / "keys")) as client:
        for path in ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/models", "/metrics", "/v2", "/v2/models/tiny", "/v2/models/stats", "/none"):
            refused = await client.get(path)
            assert error_of(refused, 401).startswith("a key is needed")
            assert refused.headers["www-authenticate"] == "Bearer"
        for path in ("/predict", "/v2/models/tiny/infer", "/v2/repository/index", "/v2/repository/models/tiny/load"):
            assert (await client.post(path, content=red_photo)).status_code == 401
        # paths that only look like an open one
        for path in (
            "/healthz/../models",
            "/docs-assets/../models",
            "/docs-assets/%2e%2e/models",
            "http://test//models",
        ):
            assert (await client.get(path)).status_code in (401, 404), path
        for headers in ({"Authorization": "Bearer alice"}, {"authorization": "bearer alice"}, {"X-API-Key": "alice"}):
            assert (await client.post("/predict", content=red_photo, headers=headers)).status_code == 200
            load = await client.post("/v2/repository/models/tiny/load", headers=headers)
            assert error_of(load, 403) == "this takes the key of an admin"
        assert (await client.get("/models", headers={"X-API-Key": "root"})).status_code == 200
        admin = {"X-API-Key": "root"}
        assert (await client.post("/v2/repository/models/tiny/load", headers=admin)).status_code == 200
        odd = [("X-API-Key", "ä".encode("latin-1")), ("X-API-Key", b"x" * 10_000), ("Authorization", b"Bearer")]
        for pair in odd:
            assert (await client.get("/models", headers=[pair])).status_code == 401


@pytest.mark.anyio
async def test_nobody_administers_without_a_key(tiny_models: Path) -> None:
    async with asking(tiny_models) as client:
        refused = await client.post("/v2/repository/models/tiny/unload")
        assert error_of(refused, 403) == "no key is set up, and this takes one of an admin (keys=)"
