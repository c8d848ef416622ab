"""Photos in forms and JSON, as the tools that people have send them."""

from __future__ import annotations

import asyncio
import base64
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune.serving import photos as module
from tests.serving.conftest import Server, assembled


def asked(server: Server, **content: Any) -> tuple[int, dict[str, Any]]:
    answer = httpx.post(f"{server.address}/predict", **content)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes, base64.urlsafe_b64encode])
@pytest.mark.parametrize("strip", [False, True], ids=["padded", "bare"])
def test_any_kind_of_base64_is_taken(server: Server, red_photo: bytes, encode: Any, strip: bool) -> None:
    # of a length that is padded twice, with what the two alphabets write in their own way; decoders pass over the rest
    photo = red_photo + b"\xfb\xef\xbe" * 3
    photo += bytes((1 - len(photo)) % 3)
    text = encode(photo).decode()
    assert text.rstrip().endswith("==")
    assert {"+", "-"} & set(text)
    text = text.replace("=", "") if strip else text
    status, answer = asked(server, json={"photos": [text, f"data:image/jpeg;base64,{text}"]})
    assert (status, [one["label"] for one in answer["predictions"]]) == (200, ["red", "red"])


def test_what_is_no_base64_fails_alone(server: Server, red_photo: bytes) -> None:
    good = base64.b64encode(red_photo).decode()
    status, answer = asked(server, json={"photos": ["no base64!", good, "https://example.com/a.jpg"]})
    assert status == 200
    first, second, third = answer["predictions"]
    assert first == {"error": "photo 1: no base64"}
    assert second["label"] == "red"
    assert third == {"error": "photo 3: addresses of photos are not fetched; send the file in base64"}


def test_only_what_is_no_base64(server: Server) -> None:
    assert asked(server, json={"photos": ["?", "!"]}) == (422, {"error": "photo 1: no base64; photo 2: no base64"})


@pytest.mark.parametrize("name", ["version", "top", "model", "other"])
def test_what_stands_beside_the_photos_is_refused(server: Server, red_photo: bytes, name: str) -> None:
    """Passed over, it would let another model or version answer than the client thinks."""
    place = "model, version and top stand in the address, as in /predict?top=3"
    document = {"photos": [base64.b64encode(red_photo).decode()], name: "1"}
    assert asked(server, json=document) == (422, {"error": f"unknown key '{name}' beside photos: {place}"})
    status, answer = asked(server, files={"photos": ("a.jpg", red_photo), name: (None, "1")})
    assert status == 422
    assert answer["error"].startswith(f"the form's part '{name}' is no file: ")
    assert answer["error"].endswith(place)


def test_a_request_ends_in_time_while_it_is_parsed(
    tiny_models: Path, red_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    monkeypatch.setattr(module, "_from_json", lambda *_: going_on.wait(60))

    async def test() -> None:
        service = assembled(tiny_models, limits={"deadline_s": 0.2})
        await service.repository.start()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app), base_url="http://test") as client:
            answer = await client.post("/predict", json={"photos": [base64.b64encode(red_photo).decode()]})
        assert answer.status_code == 504
        going_on.set()
        service.repository.close()

    asyncio.run(asyncio.wait_for(test(), 60))
