from __future__ import annotations

import csv
import ctypes
import hashlib
import io
import re
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from finetune.cli import run
from finetune.serving.guard import ADMIN_BELOW, OPEN
from finetune.serving.predictor import Predictor
from tests.conftest import CLASSES, rewrite_bundle
from tests.serving.conftest import Server, Start, asking, assembled, error_of


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def photos(tiny_models: Path) -> Path:
    return tiny_models.parent / "photos"


@pytest.mark.parametrize("label", CLASSES)
def test_a_raw_body_is_one_photo(server: Server, photos: Path, label: str) -> None:
    response = httpx.post(f"{server.address}/predict", content=(photos / label / "0.jpg").read_bytes())
    answer = response.json()
    assert (answer["model"], answer["version"]) == ("tiny", "1")
    (prediction,) = answer["predictions"]
    assert prediction["label"] == label
    assert prediction["probability"] == prediction["top"][0]["probability"] > 0.5
    assert {score["label"] for score in prediction["top"]} == set(CLASSES)
    assert sum(score["probability"] for score in prediction["top"]) == pytest.approx(1, abs=1e-5)


def test_a_form_holds_several_photos_answered_in_order(server: Server, photos: Path) -> None:
    order = ("red", "blue", "green")
    parts = [(f"part{n}", (f"{label}.jpg", (photos / label / "1.jpg").read_bytes())) for n, label in enumerate(order)]
    response = httpx.post(f"{server.address}/predict", params={"top": 1}, files=parts)
    predictions = response.json()["predictions"]
    assert tuple(prediction["label"] for prediction in predictions) == order
    assert all(len(prediction["top"]) == 1 for prediction in predictions)


def test_http_answers_as_torch_did_when_the_export_was_verified(server: Server, photos: Path, tiny_run: Path) -> None:
    with (tiny_run / "parity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        response = httpx.post(f"{server.address}/predict", content=(photos / row["path"]).read_bytes())
        (prediction,) = response.json()["predictions"]
        assert prediction["label"] == row["torch"]
        assert prediction["probability"] == pytest.approx(float(row["torch_probability"]), abs=1e-4)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_taken(server: Server, photos: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.open(photos / "red" / "0.jpg").save(buffer, kind)
    response = httpx.post(f"{server.address}/predict", content=buffer.getvalue())
    assert response.json()["predictions"][0]["label"] == "red"


@pytest.mark.parametrize("kind", ["TGA", "JPEG2000", "ICO"])
def test_what_no_camera_or_browser_makes_is_refused(server: Server, photos: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.open(photos / "red" / "0.jpg").save(buffer, kind)
    reason = "not an image in a format that can be read"
    assert error_of(httpx.post(f"{server.address}/predict", content=buffer.getvalue()), 422) == reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty file (0 bytes)"),
        (b"hello", "not an image in a format that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image in a format that can be read"),
    ],
)
def test_what_is_no_image_gets_422_with_the_reason(server: Server, body: bytes, reason: str) -> None:
    assert error_of(httpx.post(f"{server.address}/predict", content=body), 422) == reason


def test_a_truncated_photo_gets_422(server: Server, photos: Path) -> None:
    raw = (photos / "red" / "0.jpg").read_bytes()
    assert error_of(httpx.post(f"{server.address}/predict", content=raw[: len(raw) // 2]), 422).startswith(
        "damaged: image file is truncated"
    )


def test_every_bad_part_of_a_form_is_named(server: Server, photos: Path) -> None:
    good = (photos / "red" / "0.jpg").read_bytes()
    bad = [("b", ("two.txt", b"words")), ("c", ("three.png", b""))]
    reasons = ["two.txt: not an image in a format that can be read", "three.png: empty file (0 bytes)"]
    answer = httpx.post(f"{server.address}/predict", files=[bad[0], ("a", ("one.jpg", good)), bad[1]])
    predictions = answer.json()["predictions"]
    assert [predictions[0], predictions[2]] == [{"error": reason} for reason in reasons]
    assert predictions[1]["label"] == "red"
    assert error_of(httpx.post(f"{server.address}/predict", files=bad), 422) == "; ".join(reasons)


def test_a_form_without_files_gets_422(server: Server) -> None:
    response = httpx.post(f"{server.address}/predict", files={"note": (None, "hello")})
    assert error_of(response, 422).startswith("the form's part 'note' is no file: send each photo as a part with")
    empty = {"content": b"--e--\r\n", "headers": {"content-type": "multipart/form-data; boundary=e"}}
    assert error_of(httpx.post(f"{server.address}/predict", **empty), 422).startswith("the form has no file")


def test_a_form_of_many_parts_that_are_no_files_gets_413(server: Server) -> None:
    parts = [(f"n{number}", (None, "text")) for number in range(4)]
    said = error_of(httpx.post(f"{server.address}/predict", files=parts), 413)
    assert said == "the form has more than 3 parts that are no files; send each photo as a part with a filename"


def test_a_broken_form_gets_400(server: Server) -> None:
    headers = {"content-type": "multipart/form-data"}
    assert error_of(httpx.post(f"{server.address}/predict", content=b"x", headers=headers), 400)


def test_too_large_a_declared_body_gets_413(server: Server) -> None:
    said = error_of(httpx.post(f"{server.address}/predict", content=b"x" * 1_500_000), 413)
    assert said == "1.5 MB in one request; 1 MB are taken"


def test_too_large_an_undeclared_body_gets_413(server: Server) -> None:
    chunks = (b"x" * 100_000 for _ in range(15))
    assert error_of(httpx.post(f"{server.address}/predict", content=chunks), 413)


def test_too_many_photos_get_413(server: Server, photos: Path) -> None:
    raw = (photos / "red" / "0.jpg").read_bytes()
    for count in (4, 9):
        parts = [(f"p{n}", (f"{n}.jpg", raw)) for n in range(count)]
        assert "at most 3" in error_of(httpx.post(f"{server.address}/predict", files=parts), 413)


def test_wrong_names_and_parameters(server: Server, photos: Path) -> None:
    raw = (photos / "red" / "0.jpg").read_bytes()
    post = f"{server.address}/predict"
    assert error_of(httpx.post(post, params={"model": "tinny"}, content=raw), 404) == (
        "no model 'tinny'; did you mean 'tiny'? (served: tiny)"
    )
    assert error_of(httpx.post(post, params={"top": "x"}, content=raw), 422).startswith("top=x: input should be")
    assert error_of(httpx.post(post, params={"versoin": "1"}, content=raw), 422) == (
        "unknown parameter 'versoin'; did you mean 'version'? (there are: model, version, top)"
    )
    assert error_of(httpx.get(post), 405)
    for path in ("nothing", "docs-assets/nothing", "docs-assets/..%2Fpage.html", "docs-assets/redoc.standalone.js"):
        assert error_of(httpx.get(f"{server.address}/{path}"), 404) == "no such path; /docs lists them"


def test_the_server_lives_and_is_ready_after_all_that(server: Server) -> None:
    assert httpx.get(f"{server.address}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{server.address}/readyz").json() == {"status": "ready"}
    server.require_no_fault()
    assert "tiny version 1 is warm on cpu" in server.log.read_text()


def test_the_docs_work_without_a_network(server: Server) -> None:
    page = httpx.get(f"{server.address}/docs").text
    resources = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    assert len(resources) == 3
    for resource in resources:
        assert resource.startswith("docs-assets/")
        answer = httpx.get(f"{server.address}/{resource}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=86400"
        assert httpx.head(f"{server.address}/{resource}").headers["content-type"] == answer.headers["content-type"]
    schema = httpx.get(f"{server.address}/openapi.json").json()
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert {"image/*", "multipart/form-data"} <= set(body)
    assert {"200", "413", "422"} <= set(schema["paths"]["/predict"]["post"]["responses"])


@pytest.mark.parametrize("keys", [False, True])
def test_the_docs_say_which_routes_take_a_key(tiny_models: Path, monkeypatch: pytest.MonkeyPatch, keys: bool) -> None:
    if keys:
        monkeypatch.setenv("FINETUNE_KEYS", f"camera predict {'0' * 64}")
    app = assembled(tiny_models).app
    schema = TestClient(app).get("/openapi.json").json()
    schemes = schema["components"]["securitySchemes"].values()
    assert {(one["type"], one.get("scheme", one.get("name"))) for one in schemes} == {
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
    }
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            # what the schema says is what is done
            status = TestClient(app).request(method, path).status_code
            ways = operation.get("security", [{}])
            assert ("security" not in operation) == (path in OPEN)
            assert ({} not in ways) == (status in (401, 403)), path
            assert path.startswith(ADMIN_BELOW) == ("takes the key of an admin" in operation["description"])


def test_the_docs_have_the_limits_as_they_are_configured(server: Server) -> None:
    told = httpx.get(f"{server.address}/openapi.json").json()["info"]["description"]
    assert "| `limits.body_mb` | 1 | largest request body in MB, decompressed; above it 413 |" in told
    assert "| `limits.photos` | 3 |" in told
    assert "| `limits.per_client` | null |" in told


def test_the_page_brings_all_it_needs(server: Server) -> None:
    response = httpx.get(f"{server.address}/")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", response.text)


def test_models_are_listed(server: Server) -> None:
    (model,) = httpx.get(f"{server.address}/models").json()["models"]
    assert (model["name"], model["version"], model["labels"]) == ("tiny", "1", list(CLASSES))


def test_several_models_are_served_by_name(
    tiny_models: Path, photos: Path, tmp_path: Path, start_server: Start
) -> None:
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    shutil.copytree(models / "tiny", models / "second")
    rewrite_bundle(models / "second" / "1", name="second")
    server = start_server(models)
    raw = (photos / "green" / "0.jpg").read_bytes()
    said = error_of(httpx.post(f"{server.address}/predict", content=raw), 400)
    assert said == "several models are served; name one of second, tiny"
    answer = httpx.post(f"{server.address}/predict", params={"model": "second"}, content=raw).json()
    assert (answer["model"], answer["predictions"][0]["label"]) == ("second", "green")


@pytest.mark.parametrize(("host", "told"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("::1", False)])
def test_an_open_door_is_told_once(tiny_models: Path, host: str, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(assembled(tiny_models, host=host, port=8000).app):
        pass
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"no keys: anybody who reaches {host}:8000 may predict"] * told


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_where_there_are_keys_no_door_is_open(
    tiny_models: Path, host: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_KEYS", f"camera predict {'0' * 64}")
    with TestClient(assembled(tiny_models, host=host).app):
        pass
    assert "no keys" not in caplog.text


def test_sigterm_ends_the_server_in_order(tiny_models: Path, start_server: Start) -> None:
    server = start_server(tiny_models)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    assert "Traceback" not in server.log.read_text()


def test_a_port_in_use_is_said(tiny_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["serve", f"models={tiny_models}", f"port={port}", "logs=text"]) == 2
    assert capsys.readouterr().err.strip() == (
        f"finetune serve: cannot listen on 127.0.0.1:{port}: address already in use; "
        "choose another port= (0 takes any free one) or host="
    )


def test_cuda_that_does_not_work_is_a_refusal_with_the_cause(
    tiny_models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ctypes.CDLL

    def without_driver(name: str | None, *arguments: Any) -> ctypes.CDLL:
        return real("no-" + name if name == "libcuda.so.1" else name, *arguments)

    monkeypatch.setattr(ctypes, "CDLL", without_driver)
    assert run(["serve", f"models={tiny_models}", "port=0", "device=cuda", "logs=text"]) == 2
    said = capsys.readouterr().err
    assert "device=cuda does not work here: no NVIDIA driver (libcuda.so.1); mend that, or use device=cpu" in said


@pytest.mark.anyio
async def test_not_ready_until_a_model_has_answered(tiny_models: Path) -> None:
    service = assembled(tiny_models)
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/healthz")).status_code == 200
        for response in (await client.get("/readyz"), await client.post("/predict", content=b"x")):
            assert error_of(response, 503) == "the models are still loading"
            assert response.headers["retry-after"] == "1"
        await service.repository.start()
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.anyio
async def test_a_model_that_cannot_warm_up_is_never_ready(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.cores.CpuSession.run_each", lambda *_: 1 / 0)
    service = assembled(tiny_models)
    with pytest.raises(ZeroDivisionError):
        await service.repository.start()
    assert not service.repository.ready


def test_a_request_of_many_photos_is_run_a_few_at_a_time(
    tiny_models: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run_batch = Predictor.run

    def spy(self: Predictor, images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return run_batch(self, images)

    monkeypatch.setattr(Predictor, "run", spy)
    with TestClient(assembled(tiny_models).app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        sizes.clear()
        order = ["red", "green", "blue"] * 3
        parts = [("p", (f"{label}.jpg", (photos / label / "0.jpg").read_bytes())) for label in order]
        predictions = client.post("/predict", files=parts).json()["predictions"]
    assert [prediction["label"] for prediction in predictions] == order
    assert sum(sizes) == 9
    assert max(sizes) <= 4


def test_a_client_that_leaves_is_no_fault_of_ours(server: Server) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    for kind in ("image/jpeg", "multipart/form-data; boundary=x"):
        with socket.create_connection((host, int(port))) as leaving:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 100\r\n\r\nabc"
            leaving.sendall(head.encode())
    assert httpx.get(f"{server.address}/healthz").status_code == 200
    server.require_no_fault()


def test_json_of_anything_but_photos_is_refused_before_it_is_made(server: Server) -> None:
    for many, status, said in ((b"[]", 422, "with nothing else in it"), (b'""', 413, "too many photos in one request")):
        body = b'{"photos": [' + b",".join([many] * 1000) + b"]}"
        answer = httpx.post(f"{server.address}/predict", content=body, headers={"content-type": "application/json"})
        assert said in error_of(answer, status)


@pytest.mark.anyio
async def test_what_is_turned_away_is_counted_under_the_route_that_it_would_have_taken(
    tiny_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"root admin {hashlib.sha256(b'root').hexdigest()}")
    async with asking(tiny_models, keys=str(tmp_path / "keys"), limits={"body_mb": 0.1}) as client:
        admin = {"X-API-Key": "root"}
        assert (await client.post("/predict", content=b"x")).status_code == 401
        assert (await client.post("/v2/models/tiny/infer", content=bytes(200_000), headers=admin)).status_code == 413
        assert (await client.get("/none", headers=admin)).status_code == 404
        assert (await client.post("/v2/repository/models/tiny/unload", headers=admin)).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        text = (await client.get("/metrics", headers=admin)).text
    counted = re.findall(r'(?m)^finetune_refusals_total\{reason="(\d+)"\} (\S+)$', text)
    assert sorted(counted) == [("401", "1.0"), ("413", "1.0")], "no poll of health, nothing that is not there"
    for route, code in (("/predict", 401), ("/v2/models/{name}/infer", 413), ("other", 404)):
        assert f'finetune_requests_total{{code="{code}",route="{route}"}} 1.0' in text


@pytest.mark.anyio
async def test_pages_of_other_origins_are_answered_only_where_they_may_ask(tiny_models: Path, red_photo: bytes) -> None:
    origin = {"Origin": "https://shop.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    async with asking(tiny_models) as client:
        answer = await client.post("/predict", content=red_photo, headers=origin)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await client.options("/predict", headers=preflight)).status_code == 405
    async with asking(tiny_models, cors=["https://shop.example"]) as client:
        answer = await client.post("/predict", content=red_photo, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        allowed = await client.options("/predict", headers=preflight)
        assert allowed.status_code == 200
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert "x-api-key" in allowed.headers["access-control-allow-headers"]
        other = await client.post("/predict", content=red_photo, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.anyio
async def test_every_kind_of_answer_has_the_headers_that_browsers_obey(
    tiny_models: Path, red_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of ours")

    async with asking(tiny_models, limits={"body_mb": 0.1}) as client:
        answers = {
            200: await client.get("/healthz"),
            404: await client.get("/none"),
            405: await client.get("/predict"),
            403: await client.post("/v2/repository/models/tiny/load"),
            413: await client.post("/predict", content=bytes(200_000)),
            415: await client.post("/predict", content=b"x", headers={"Content-Encoding": "br"}),
            422: await client.post("/predict", content=b"words"),
            400: await client.post("/v2/models/tiny/infer", content=b"words"),
        }
        monkeypatch.setattr("finetune.serving.live.LiveModel.classify", broken)
        answers[500] = await client.post("/predict", content=red_photo)
        assert error_of(answers[500], 500) == "internal error; the server's log has the details"
        for path in ("/", "/docs", "/docs-assets/swagger-ui.css", "/metrics", "/openapi.json"):
            answers[path] = await client.get(path)
    for kind, answer in answers.items():
        assert answer.status_code == (kind if isinstance(kind, int) else 200)
        assert answer.headers["x-content-type-options"] == "nosniff", kind
        assert answer.headers["referrer-policy"] == "no-referrer", kind
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], kind
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"]), kind
        assert "server" not in answer.headers
