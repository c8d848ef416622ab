"""What goes wrong at night: bombs, lies, vanished clients, disks that fill up or change, signals, overload."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image

from finetune.bundle import open_bundle
from finetune.files import sha256
from finetune.serving.predictor import Predictor
from tests.serving.conftest import (
    Server,
    Start,
    asking,
    assembled,
    error_of,
    make_certificate,
    start,
    until,
)

RELOADS = 100
INFER = "/v2/models/tiny/infer"
# However slow the machine is, no photo is refused for the time that it would take.
PATIENT = ("limits.wait_s=3600", "limits.deadline_s=3600", "limits.body_s=3600", "limits.photos=200")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def shared(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start(tiny_models, tmp_path_factory.mktemp("shared") / "log", *PATIENT)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def server(shared: Server, red_photo: bytes) -> Iterator[Server]:
    """A server that must be well after each test."""
    yield shared
    shared.require_well(red_photo)


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


# bombs and lies


@pytest.mark.parametrize("path", ["/predict", INFER])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_inflates_without_end(server: Server, path: str, encoding: str) -> None:
    deflating = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join([*(deflating.compress(bytes(10_000_000)) for _ in range(50)), deflating.flush()])
    assert len(bomb) < 1_000_000
    with server.grows_by_less_than(100):
        response = httpx.post(f"{server.address}{path}", content=bomb, headers={"Content-Encoding": encoding})
    assert error_of(response, 413) == "the body inflates to more than 20 MB"


def test_an_image_that_unfolds_without_end(server: Server) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100_000)))
    with server.grows_by_less_than(30):
        response = httpx.post(f"{server.address}/predict", content=bomb + chunk(b"IEND", b""))
    assert error_of(response, 422) == "more than 100 megapixels"


@pytest.mark.parametrize(
    "shape", [[-1], [-1, 64, 64, 3], [2**63], [2**40, 2**40], [10**400], [0], [0, 2**62, 8], [], None]
)
def test_shapes_that_cannot_be(server: Server, shape: object) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": shape, "data": [1]}
    assert error_of(httpx.post(server.address + INFER, json={"inputs": [tensor]}), 400)
    binary = {**tensor, "name": "encoded_images", "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
    del binary["data"]
    text = json.dumps({"inputs": [binary]}).encode()
    length = {"Inference-Header-Content-Length": str(len(text))}
    assert error_of(httpx.post(server.address + INFER, content=text + b"\1\0\0\0a", headers=length), 400)


def test_an_output_asked_for_twice(server: Server) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1], "data": [1]}
    outputs = [{"name": "probabilities"}] * 2
    said = error_of(httpx.post(server.address + INFER, json={"inputs": [tensor], "outputs": outputs}), 400)
    assert said == "output 'probabilities' stands in the request twice"


@pytest.mark.parametrize("length", ["-1", "0", "1", "99999", "abc", "1e3", "+5", "9" * 30, "²", ""])
def test_a_wrong_length_of_the_header(server: Server, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode("latin-1")}
    assert error_of(httpx.post(server.address + INFER, content=b'{"inputs": []}', headers=headers), 400)


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "utf-7", "x", "a" * 1000])
@pytest.mark.parametrize("boundary", ["x", "", '"', "x" * 100])
def test_forms_of_odd_characters(server: Server, charset: str, boundary: str) -> None:
    part = b'Content-Disposition: form-data; name="\xff\xfe"; filename="xn--\xff\xfe\\"\r\n\r\nwords\r\n'
    body = b"--%s\r\n%s--%s--\r\n" % (boundary.encode(), part, boundary.encode())
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}; charset={charset}"}
    response = httpx.post(f"{server.address}/predict", content=body, headers=headers)
    assert response.status_code in (400, 422), response.text


# clients that vanish


MANY = 200
PENDING = r'finetune_pending_photos\{model="tiny",version="1"\}'


def metric(client: httpx.Client, pattern: str) -> float:
    return float(re.findall(rf"(?m)^{pattern} (\S+)$", client.get("/metrics").text)[0])


@contextlib.contextmanager
def many_photos(server: Server, client: httpx.Client) -> Iterator[socket.socket]:
    """One who has sent so many photos that their decoding takes hundreds of times as long as a question, and leaves."""
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000), "red").save(buffer, "PNG")
    files = [("photo", (f"{number}.png", buffer.getvalue())) for number in range(MANY)]
    request = httpx.Request("POST", f"{server.address}/predict", files=files)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection(server.place) as busy:
        busy.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        until(lambda: 0 < metric(client, PENDING) < MANY)
        yield busy
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_the_photos_of_a_client_that_left_leave_the_queue(server: Server) -> None:
    canceled = r'nv_inference_request_failure\{model="tiny",reason="CANCELED",version="1"\}'
    with httpx.Client(base_url=server.address, timeout=60) as client:
        before = metric(client, canceled)
        with many_photos(server, client):
            pass
        until(lambda: metric(client, canceled) == before + 1)
        assert metric(client, PENDING) == 0
        assert metric(client, r'nv_inference_pending_request_count\{model="tiny",version="1"\}') == 0


# disks


def turn_answers_around(version: Path) -> None:
    """Give a bundle's network other weights: those of its first class are those of its last, and so on."""
    bundle = open_bundle(version)
    proto = onnx.load(bundle.model)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("classifier.head.linear."):
            turned = onnx.numpy_helper.to_array(tensor)[::-1].copy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(turned, tensor.name))
    onnx.save(proto, bundle.model)
    info = bundle.info.model_copy(update={"files": {**bundle.info.files, "model.onnx": sha256(bundle.model)}})
    (version / "bundle.json").write_text(info.model_copy(update={"seal": info.expected_seal}).as_text)


def test_models_that_change_under_the_server(models: Path, start_server: Start, red_photo: bytes) -> None:
    server = start_server(models, "reload_s=0.05")
    version = models / "tiny" / "1"
    model = (version / "model.onnx").read_bytes()

    def said(words: str, times: int = 1) -> Callable[[], bool]:
        return lambda: server.log.read_text().count(words) >= times

    def label() -> str:
        answer = httpx.post(f"{server.address}/predict?model=tiny", content=red_photo)
        return str(answer.json()["predictions"][0]["label"])

    def require_looked(beside: Path, name: str) -> None:
        """Wait until it has looked at what is there now: another model, which only comes now, answers."""
        shutil.copytree(models.parent / "kept", beside / name)
        until(lambda: httpx.get(f"{server.address}/v2/models/{name}/ready").status_code == 200)

    shutil.copytree(models / "tiny", models.parent / "kept")
    turn_answers_around(shutil.copytree(version, models.parent / "other"))
    (version / "model.onnx").write_bytes(model[: len(model) // 2])
    until(said("tiny version 1 cannot be opened"))
    server.require_well(red_photo)
    (version / "model.onnx").write_bytes(model)
    until(said("is warm on", 2))
    server.require_well(red_photo)
    for name in ("model.onnx", "bundle.json"):
        (models.parent / "other" / name).replace(version / name)
    until(lambda: label() == "blue")
    shutil.rmtree(models / "tiny")
    require_looked(models, "second")
    assert label() == "blue"
    shutil.rmtree(models)
    require_looked(models, "third")
    assert label() == "blue"
    assert httpx.get(f"{server.address}/readyz").status_code == 200
    server.require_no_fault()


def test_a_hundred_reloads_under_load_fail_no_request(models: Path, start_server: Start, red_photo: bytes) -> None:
    server = start_server(models, "reload_s=0.05")
    seen: list[tuple[int, str]] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.address, timeout=30) as client:
            while not ended.is_set():
                response = client.post("/predict", content=red_photo)
                seen.append((response.status_code, response.json().get("version", response.text)))

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for one in clients:
        one.start()
    try:
        for number in range(2, RELOADS + 2):
            shutil.copytree(models / "tiny" / str(number - 1), models.parent / "coming")
            (models.parent / "coming").rename(models / "tiny" / str(number))
            until(
                lambda number=number: seen and seen[-1][1] == str(number),
            )
            shutil.rmtree(models / "tiny" / str(number - 1))
    finally:
        ended.set()
        for one in clients:
            one.join()
    assert Counter(status for status, _ in seen) == {200: len(seen)}
    assert {version for _, version in seen} == {str(number) for number in range(1, RELOADS + 2)}
    server.require_well(red_photo)


def test_a_full_disk_is_nothing_to_a_server_that_writes_nothing(
    tiny_models: Path, start_server: Start, red_photo: bytes
) -> None:
    server = start_server(tiny_models)
    # no file may grow beyond 0 bytes from here on, its log included
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, most))
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)).save(noise, "PNG")
    parts = [("photo", ("1.jpg", red_photo)), ("photo", ("2.png", noise.getvalue()))]
    answer = httpx.post(f"{server.address}/predict", files=parts, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["label"] == "red"
    for path in ("/", "/docs", "/metrics", "/models", "/v2", "/readyz"):
        assert httpx.get(server.address + path).status_code == 200
    written = [path for path in open_for_writing(server.process.pid) if path != str(server.log)]
    assert written == []
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0


@pytest.mark.parametrize("reader", ["none", "full disk"])
def test_a_log_that_cannot_be_written_is_nothing_to_a_server(
    tiny_models: Path, tmp_path: Path, red_photo: bytes, reader: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reading, writing = os.pipe()
    sink = writing if reader == "none" else os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-m", "finetune", "serve", f"models={tiny_models}", f"port={port}"]
    process = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8)) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            # of their lines many times what a pipe holds
            for _ in range(400):
                assert client.get("/models", headers={"X-Request-ID": "x" * 64}).status_code == 200
            assert client.post("/predict", content=red_photo).status_code == 200
            if reader == "full disk":
                lost = re.findall(r"(?m)^finetune_log_lines_lost_total (\S+)$", client.get("/metrics").text)
                assert float(lost[0]) > 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        for descriptor in {reading, writing, sink}:
            os.close(descriptor)


def open_for_writing(pid: int) -> list[str]:
    """Return the regular files that a process has open for writing."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            flags = int(re.findall(r"flags:\s+(\d+)", Path(f"/proc/{pid}/fdinfo/{link.name}").read_text())[0], 8)
            target = link.readlink()
            if flags & os.O_ACCMODE != os.O_RDONLY and target.is_file():
                found.append(str(target))
    return found


# signals and ports


ANSWER = re.compile(rb"HTTP/1.1 (\d+) .*?content-length: (\d+).*?\r\n\r\n", re.DOTALL)


class Load:
    """Clients that ask until nobody listens any more; an answer that does not come to what was sent is a failure."""

    def __init__(self, server: Server, photo: bytes, clients: int = 8) -> None:
        self.answered: list[int] = []
        self.failures: list[str] = []
        self._server = server
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n"
        self._requests = [f"{head}{more}\r\n".encode() + photo for more in ("", "Connection: close\r\n")]
        self._threads = [threading.Thread(target=self._ask, args=(number % 2,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)

    def _ask(self, kind: int) -> None:
        while True:
            try:
                client = socket.create_connection(self._server.place, timeout=60)
            except OSError:
                return
            with client:
                while self._exchange(client, self._requests[kind]):
                    pass
            if self.failures:
                return

    def _exchange(self, client: socket.socket, request: bytes) -> bool:
        """Ask once; returns whether the connection takes another request."""
        received = b""
        try:
            client.sendall(request)
            while not (found := ANSWER.match(received)) or len(received) < found.end() + int(found[2]):
                part = client.recv(65536)
                if not part:
                    raise ConnectionError("closed without an answer")
                received += part
        except OSError as error:
            self.failures.append(f"{error!r} after {received[:100]!r}")
            return False
        self.answered.append(int(found[1]))
        return b"connection: close" not in received.lower()


def test_sigterm_under_load_loses_no_request(tiny_models: Path, start_server: Start, red_photo: bytes) -> None:
    server = start_server(tiny_models)
    load = Load(server, red_photo)
    until(lambda: len(load.answered) > 50)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    load.join()
    assert load.failures == []
    assert set(load.answered) == {200}
    assert "Traceback" not in server.log.read_text()


def test_draining_says_not_ready_and_goes_on_answering(
    tiny_models: Path, start_server: Start, red_photo: bytes
) -> None:
    # far longer than all that is asked here
    server = start_server(tiny_models, "drain_s=3600")
    with httpx.Client(base_url=server.address, timeout=60) as kept:
        assert "connection" not in kept.get("/readyz").headers
        server.process.send_signal(signal.SIGTERM)
        until(lambda: kept.get("/readyz").status_code == 503)
        ready = kept.get("/readyz")
        assert error_of(ready, 503) == "this server is about to end"
        assert ready.headers["connection"] == "close"
        assert kept.get("/v2/health/ready").status_code == 503
        assert kept.get("/healthz").status_code == 200
        answer = kept.post("/predict", content=red_photo)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert "finetune_draining 1.0" in kept.get("/metrics").text


def test_after_draining_under_load_it_ends_and_has_lost_no_request(
    tiny_models: Path, start_server: Start, red_photo: bytes
) -> None:
    server = start_server(tiny_models, "drain_s=1")
    with httpx.Client(base_url=server.address) as idle:
        idle.get("/readyz")
        load = Load(server, red_photo, clients=4)
        until(lambda: load.answered)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0, "an open connection that asks for nothing does not keep it"
    load.join()
    assert load.failures == []


def test_a_second_signal_ends_it_at_once(tiny_models: Path, start_server: Start) -> None:
    server = start_server(tiny_models, "drain_s=3600")
    server.process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.address}/readyz").status_code == 503)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 128 + signal.SIGTERM
    assert "a second signal: ending at once" in server.log.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_it_serves(tiny_models: Path, tmp_path: Path, number: int, code: int) -> None:
    os.mkfifo(tmp_path / "keys")
    command = [
        sys.executable,
        "-m",
        "finetune",
        "serve",
        f"models={tiny_models}",
        "port=0",
        "logs=text",
        f"keys={tmp_path / 'keys'}",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        # it has opened the file too then, and waits for keys
        with (tmp_path / "keys").open("w"):
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == code
    assert said.splitlines()[-1] == "finetune serve: interrupted"


def test_requests_that_take_longer_than_the_grace_time_do_not_keep_it(tiny_models: Path, start_server: Start) -> None:
    server = start_server(tiny_models, "grace_s=1", "limits.body_s=60")
    with socket.create_connection(server.place) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        until(lambda: "finetune_requests_in_flight 2.0" in httpx.get(f"{server.address}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        assert b"HTTP/1.1 503" in client.recv(100)
        assert server.process.wait(timeout=60) == 0
    assert "Traceback" not in server.log.read_text()


def test_killed_and_started_again_on_the_same_port(tiny_models: Path, start_server: Start, red_photo: bytes) -> None:
    first = start_server(tiny_models)
    with socket.create_connection(first.place):
        first.process.kill()
        first.process.wait()
        again = start_server(tiny_models, f"port={first.place[1]}")
        assert again.place == first.place
        again.require_well(red_photo)


def test_a_second_server_on_one_port_is_refused(server: Server, tiny_models: Path) -> None:
    command = [sys.executable, "-m", "finetune", "serve", f"models={tiny_models}", f"port={server.place[1]}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{server.place[1]}: address already in use; choose another port=" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_tls(tiny_models: Path, start_server: Start, tmp_path: Path, red_photo: bytes) -> None:
    server = start_server(tiny_models, *make_certificate(tmp_path), "limits.header_s=1")
    assert server.address.startswith("https://")
    trusting = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    with httpx.Client(base_url=server.address, verify=trusting) as client:
        answer = client.post("/predict", content=red_photo)
        assert answer.json()["predictions"][0]["label"] == "red"
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
    with socket.create_connection(server.place, timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in plain.recv(1000)
    began = time.monotonic()
    with socket.create_connection(server.place, timeout=60) as silent:
        # it is let go, and not at once
        assert silent.recv(1000) == b""
    assert time.monotonic() - began > 0.9
    assert "Traceback" not in server.log.read_text()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0


# overload


def test_of_a_flood_each_photo_is_answered_or_refused(tiny_models: Path, start_server: Start, red_photo: bytes) -> None:
    server = start_server(tiny_models, "limits.queue_photos=3", "limits.photos=3", "limits.deadline_s=60")
    buffer = io.BytesIO()
    # quick to send, slow to decode
    Image.new("RGB", (2000, 2000), "red").save(buffer, "PNG")
    clients = [http.client.HTTPConnection(*server.place, timeout=60) for _ in range(40)]
    for _ in range(3):
        # asleep, so that it finds all of them at once, however slowly they were sent
        server.process.send_signal(signal.SIGSTOP)
        for client in clients:
            client.request("POST", "/predict", buffer.getvalue())
        server.process.send_signal(signal.SIGCONT)
        seen: Counter[int] = Counter()
        for client in clients:
            answer = client.getresponse()
            said = json.loads(answer.read())
            seen[answer.status] += 1
            if answer.status == 503:
                assert int(answer.headers["Retry-After"]) >= 1
                assert list(said) == ["error"]
            else:
                assert said["predictions"][0]["label"] == "red"
        assert set(seen) == {200, 503}
        metrics = httpx.get(f"{server.address}/metrics").text
        assert 'finetune_pending_photos{model="tiny",version="1"} 0.0' in metrics
        assert 'nv_inference_pending_request_count{model="tiny",version="1"} 0.0' in metrics
        server.require_well(red_photo)
    for client in clients:
        client.close()


def test_one_client_s_many_photos_shut_no_other_out(tiny_models: Path, start_server: Start, red_photo: bytes) -> None:
    server = start_server(tiny_models, *PATIENT)
    other = httpx.HTTPTransport(local_address="127.0.0.2")
    with (
        httpx.Client(base_url=server.address, transport=other, timeout=600) as client,
        many_photos(server, client) as busy,
    ):
        for _ in range(3):
            assert client.post("/predict", content=red_photo).status_code == 200
        assert metric(client, PENDING) > 0
        busy.setblocking(False)
        with pytest.raises(BlockingIOError):
            # no answer is there
            busy.recv(1)


# queues, without a process


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Models run nothing until this event is set, but for their warm-up."""
    going_on = threading.Event()
    run = Predictor.run

    def wait(self: Predictor, images: np.ndarray) -> np.ndarray:
        if images.any():
            going_on.wait(60)
        return run(self, images)

    monkeypatch.setattr(Predictor, "run", wait)
    yield going_on
    going_on.set()


async def come_in(client: httpx.AsyncClient, photos: int) -> None:
    """Wait until so many photos are in the model's hands."""
    line = f'nv_inference_pending_request_count{{model="tiny",version="1"}} {photos:.1f}'
    for _ in range(200):
        if line in (await client.get("/metrics")).text:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"there are no {photos} photos")


@pytest.mark.anyio
async def test_more_photos_than_the_queue_holds(tiny_models: Path, red_photo: bytes, held_up: threading.Event) -> None:
    async with asking(tiny_models, limits={"queue_photos": 3, "photos": 3}) as client:
        first = [asyncio.ensure_future(client.post("/predict", content=red_photo)) for _ in range(3)]
        await come_in(client, 3)
        refused = await client.post("/predict", content=red_photo)
        assert error_of(refused, 503) == "3 photos are waiting; come back later"
        assert int(refused.headers["retry-after"]) >= 1
        held_up.set()
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200] * 3
        assert (await client.post("/predict", content=red_photo)).status_code == 200


@pytest.mark.anyio
async def test_an_answer_that_comes_too_late(tiny_models: Path, red_photo: bytes, held_up: threading.Event) -> None:
    async with asking(tiny_models, limits={"deadline_s": 1}) as client:
        late = await client.post("/predict", content=red_photo)
        assert error_of(late, 504) == "not answered within 1 s"
        assert late.headers["retry-after"] == "1"
        assert 'nv_inference_pending_request_count{model="tiny",version="1"} 0.0' in (await client.get("/metrics")).text
        held_up.set()
        assert (await client.post("/predict", content=red_photo)).status_code == 200


@pytest.mark.anyio
async def test_more_requests_of_one_client_than_it_may_have(
    tiny_models: Path, red_photo: bytes, held_up: threading.Event
) -> None:
    async with asking(tiny_models, limits={"per_client": 2}) as client:
        first = [asyncio.ensure_future(client.post("/predict", content=red_photo)) for _ in range(2)]
        # both are counted in the turns of the loop that follow, before anything is read
        await asyncio.sleep(0.05)
        refused = await client.post("/predict", content=red_photo)
        assert error_of(refused, 429) == "this client has 2 requests open already"
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/readyz")).status_code == 200, "open to balancers"
        held_up.set()
        assert [answer.status_code for answer in await asyncio.gather(*first)] == [200] * 2
        assert (await client.post("/predict", content=red_photo)).status_code == 200


@pytest.mark.anyio
async def test_photos_that_are_none_count_as_work_done(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the model would seem to be stuck while nothing else comes, and others would be refused."""
    service = assembled(tiny_models)
    await service.repository.start()
    model = service.repository.choose("tiny")
    counted: list[int] = []
    monkeypatch.setattr(model.admission, "measure", counted.append)
    await asyncio.gather(*(model.classify([b"no photo"]) for _ in range(20)))
    assert counted == [1] * 20


def test_too_few_open_files_for_the_connections_are_told(tiny_models: Path, start_server: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, hard))
    try:
        few, enough = start_server(tiny_models), start_server(tiny_models, "limits.connections=500")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    told = "600 open files are allowed, too few for limits.connections=1000, and clients past them have to wait: set "
    assert f"{told}ulimit -n 1100 or more, or limits.connections=500 or less" in few.log.read_text()
    assert "open files" not in enough.log.read_text()
