"""Models that fail while they serve."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.serving import health
from finetune.serving.live import LiveModel
from finetune.serving.refusal import Refusal
from finetune.serving.serve import Service
from tests.serving.conftest import Start, assembled, until

pytestmark = pytest.mark.anyio

# What a GPU does after a fault: the first runs are those of the warm-up.
LOST_GPU = """
import pytest
from finetune.cli import main
from tests import gpus

runs = []

def before_run():
    runs.append(1)
    if len(runs) > 8:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered\\nand more")

gpus.install(pytest.MonkeyPatch(), before_run)
main()
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Breakable:
    """A model's session that fails while it is broken."""

    def __init__(self, model: LiveModel) -> None:
        self._session, self.broken = model.predictor.session.ort, True
        model.predictor.session = replace(model.predictor.session, ort=self)

    def run(self, *asked: Any) -> Any:
        if self.broken:
            raise RuntimeError("no memory\nfor this")
        return self._session.run(*asked)


@asynccontextmanager
async def serving(models: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """Serve as the program does, but for its connections; what is in doubt is looked at without a pause."""
    monkeypatch.setattr(health, "LOOK_S", 0.01)
    service = assembled(models)
    async with service.app.router.lifespan_context(service.app):
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await answers(client, "/readyz", 200)
            yield service, client


async def answers(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    async with asyncio.timeout(60):
        while (response := await client.get(path)).status_code != status:
            await asyncio.sleep(0.01)
    return response


async def test_a_model_that_fails_whatever_it_is_asked_is_not_ready_until_it_answers_again(
    tiny_models: Path, red_photo: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tiny_models, monkeypatch) as (service, client):
        session = Breakable(service.repository.choose("tiny"))
        for _ in range(health.DOUBTED_AFTER):
            assert (await client.post("/predict", content=red_photo)).status_code == 500
        refused = await answers(client, "/readyz", 503)
        assert refused.json() == {"error": "tiny version 1 fails on its device"}
        for path in ("/v2/health/ready", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1/ready"):
            assert (await client.get(path)).status_code == 503, path
        refused = await client.post("/predict", content=red_photo)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v2/models/tiny")).status_code == 200
        (row,) = (await client.post("/v2/repository/index", content=b"{}")).json()
        assert (row["state"], row["reason"]) == ("UNAVAILABLE", "it fails on its device")
        told = (await client.get("/metrics")).text
        assert 'finetune_model_ready{model="tiny",version="1"} 0.0' in told
        assert "finetune_ready 0.0" in told
        session.broken = False
        await answers(client, "/readyz", 200)
        assert (await client.post("/predict", content=red_photo)).status_code == 200
        told = (await client.get("/metrics")).text
        assert 'finetune_model_ready{model="tiny",version="1"} 1.0' in told
        assert "finetune_ready 1.0" in told
    said = [(record.levelno, record.message) for record in caplog.records if record.name == health.__name__]
    assert said == [
        (logging.ERROR, "tiny version 1 fails on its device, with a blank photo too: no memory; it is not ready"),
        (logging.WARNING, "tiny version 1 answers again"),
    ]


async def test_load_opens_a_model_that_fails_anew(
    tiny_models: Path, red_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tiny_models, monkeypatch) as (service, client):
        Breakable(service.repository.choose("tiny"))
        for _ in range(health.DOUBTED_AFTER):
            assert (await client.post("/predict", content=red_photo)).status_code == 500
        await answers(client, "/readyz", 503)
        await service.repository.load("tiny")
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/predict", content=red_photo)).status_code == 200


async def test_a_model_that_is_looked_after_goes_once_it_is_unloaded(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tiny_models, monkeypatch) as (service, _):
        model = service.repository.choose("tiny")
        model.health.failed()
        forgotten = weakref.ref(model)
        await asyncio.sleep(20 * health.LOOK_S)
        del model
        await service.repository.unload("tiny")
        async with asyncio.timeout(60):
            while forgotten() is not None:
                await asyncio.sleep(health.LOOK_S)


async def test_photos_that_fail_alone_keep_nothing_from_being_ready(
    tiny_models: Path, red_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tiny_models, monkeypatch) as (service, client):
        model = service.repository.choose("tiny")
        session = Breakable(model)
        for _ in range(health.DOUBTED_AFTER - 1):
            assert (await client.post("/predict", content=red_photo)).status_code == 500
        session.broken = False
        assert (await client.post("/predict", content=red_photo)).status_code == 200
        session.broken = True
        for _ in range(health.DOUBTED_AFTER - 1):
            assert (await client.post("/predict", content=red_photo)).status_code == 500
        assert (await client.post("/predict", content=b"no photo")).status_code == 422
        assert not model.health.doubtful, "no three in a row"
        model.health.failed()
        assert model.health.doubtful
        session.broken = False
        with ThreadPoolExecutor(1) as thread:
            await model.health.examine(thread)
        assert not model.health.doubtful
        assert (await client.get("/readyz")).status_code == 200


async def test_a_route_is_asked_as_long_as_one_of_its_versions_answers(tiny_models: Path, tmp_path: Path) -> None:
    models, routes = Path(shutil.copytree(tiny_models, tmp_path / "models")), tmp_path / "routes.yaml"
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "2")
    routes.write_text("both: {tiny/1: 50, tiny/2: 50}\n")
    repository = assembled(models, routes=str(routes)).repository
    await repository.start()
    first, second = repository.everything
    with ThreadPoolExecutor(1) as thread:
        Breakable(second)
        await second.health.examine(thread)
        repository.require("both")
        assert {repository.choose("tiny", "1"), repository.find("tiny", "2")} == {first, second}
        with pytest.raises(Refusal, match=r"^tiny version 2 fails on its device$"):
            repository.hold("tiny", "2")
        with pytest.raises(Refusal, match=r"^tiny version 2 fails on its device$"):
            [repository.choose("both") for _ in range(2)]
        Breakable(first)
        await first.health.examine(thread)
        with pytest.raises(Refusal, match=r"fails on its device$"):
            repository.require("both")


def test_a_server_whose_gpu_is_lost_ends(tiny_models: Path, start_server: Start, red_photo: bytes) -> None:
    server = start_server(tiny_models, "device=cuda", program=("-c", LOST_GPU))
    statuses = []

    def ended() -> bool:
        with suppress(httpx.TransportError):
            statuses.append(httpx.post(f"{server.address}/predict", content=red_photo).status_code)
        return server.process.poll() is not None

    until(ended)
    assert server.process.returncode == 1
    assert statuses[:2] == [200, 200]
    assert set(statuses[2:]) <= {500, 503}
    last = json.loads(server.log.read_text().splitlines()[-1])
    assert last["level"] == "error"
    assert last["message"] == (
        "finetune serve: cuda fails and does not recover in this process "
        "(CUDA failure 700: an illegal memory access was encountered): start it again"
    )
