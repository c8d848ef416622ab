"""Clients at their worst: sockets that stall, lie, babble or vanish. After each the server answers as before."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import Server, Start, start, until

HEADER_S, BODY_S = 2.0, 2.5
ENDED = b"<closed>"


def kept(tiny_models: Path, log: Path, *words: str) -> Iterator[Server]:
    running = start(tiny_models, log, "limits.body_mb=1", "logs=json", *words)
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def patient_one(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from kept(tiny_models, tmp_path_factory.mktemp("patient") / "log")


@pytest.fixture(scope="module")
def strict_one(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = (f"limits.header_s={HEADER_S}", f"limits.body_s={BODY_S}")
    yield from kept(tiny_models, tmp_path_factory.mktemp("strict") / "log", *limits)


@pytest.fixture
def server(patient_one: Server, red_photo: bytes) -> Iterator[Server]:
    """A server that must be well after each test."""
    yield patient_one
    require_well(patient_one, red_photo)


@pytest.fixture
def strict(strict_one: Server, red_photo: bytes) -> Iterator[Server]:
    """The same, which waits for nobody for long: for tests in which that time passes."""
    yield strict_one
    require_well(strict_one, red_photo)


def require_well(server: Server, photo: bytes) -> None:
    until(lambda: in_flight(server) == 0)
    server.require_well(photo)


def in_flight(server: Server) -> float:
    """Return the number of requests that are being answered, this one aside."""
    text = httpx.get(f"{server.address}/metrics").text
    return float(re.findall(r"(?m)^finetune_requests_in_flight (\S+)$", text)[0]) - 1


def connect(server: Server) -> socket.socket:
    return socket.create_connection(server.place, timeout=10)


def read(client: socket.socket, answers: int = 0) -> bytes:
    """Return what comes until the server closes the connection, or until so many answers are there."""
    received = b""
    while not answers or len(re.findall(rb"HTTP/1.1 \d", received)) < answers or not whole(received):
        try:
            part = client.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return received + ENDED
        received += part
    return received


def whole(received: bytes) -> bool:
    head, _, body = received[received.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    return len(body) == int(re.findall(rb"(?i)content-length: (\d+)", head)[0])


def tell(server: Server, *parts: bytes, answers: int = 0) -> bytes:
    with connect(server) as client:
        for part in parts:
            client.sendall(part)
        return read(client, answers)


def send_until_cut_off(client: socket.socket, data: bytes, pause_s: float = 0) -> None:
    """Send the same again and again; fails the test where the server lets it."""

    def is_cut_off() -> bool:
        try:
            client.sendall(data)
        except OSError:
            return True
        time.sleep(pause_s)
        return False

    until(is_cut_off, within_s=20)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", received)]


def post(photo: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: x", *headers]
    if not any(line.startswith("Transfer-Encoding") for line in headers):
        lines.append(f"Content-Length: {len(photo) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + photo


ALIVE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_headers_that_do_not_come_are_waited_for_no_longer(strict: Server) -> None:
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        begun = (b"GET", b"GET / HTTP/1.1\r\nHost:", b"POST /predict HTTP/1.1\r\nContent-Le")
        clients = [stack.enter_context(connect(strict)) for _ in begun]
        for client, part in zip(clients, begun, strict=True):
            client.sendall(part)
        for client in clients:
            received = read(client)
            assert statuses(received) == [408]
            assert b"the headers did not come within 2 s" in received
            assert b"nosniff" in received
    assert time.monotonic() - began > 0.9 * HEADER_S


def test_who_connects_and_says_nothing_is_no_refusal(tiny_models: Path, start_server: Start) -> None:
    """As browsers do beforehand, and balancers for what may come."""
    server = start_server(tiny_models, "limits.header_s=1", "logs=json")
    assert tell(server) == ENDED
    assert 'reason="408"' not in httpx.get(f"{server.address}/metrics").text
    # one that is told of comes behind what is not
    assert statuses(tell(server, b"GET")) == [408]
    until(lambda: "refused: " in server.log.read_text())
    assert server.log.read_text().count("refused: ") == 1


def test_headers_that_drip_are_cut_off(strict: Server) -> None:
    with connect(strict) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        send_until_cut_off(client, b"A: b\r\n", pause_s=0.02)


def test_a_body_that_does_not_come_is_waited_for_no_longer(strict: Server) -> None:
    with connect(strict) as client:
        client.sendall(post(b"abc", length=1_000_000))
        received = read(client, 1)
        assert statuses(received) == [408]
        assert b"the body did not come within 2.5 s" in received
        # one who drips on is not listened to for ever
        send_until_cut_off(client, b"x", pause_s=0.02)


@pytest.mark.parametrize("kind", ["", "Content-Type: multipart/form-data; boundary=b", "Content-Encoding: gzip"])
@pytest.mark.parametrize("reset", [False, True])
def test_clients_that_vanish_half_way(server: Server, kind: str, reset: bool) -> None:
    whole_request = post(b"--b\r\nContent-Disposition: form-data; na" * 20, *[kind] * bool(kind))
    for length in (1, 10, 30, 70, 100, 150, len(whole_request) - 1, len(whole_request)):
        with connect(server) as client:
            client.sendall(whole_request[:length])
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_body_in_a_hundred_thousand_chunks(server: Server) -> None:
    head = post(b"", "Transfer-Encoding: chunked")
    with server.grows_by_less_than(30):
        received = tell(server, head, b"1\r\nx\r\n" * 100_000, b"0\r\n\r\n", answers=1)
    assert statuses(received) == [422]


def test_one_who_sends_chunks_for_ever_is_stopped(strict: Server) -> None:
    with strict.grows_by_less_than(30), connect(strict) as client:
        client.sendall(post(b"", "Transfer-Encoding: chunked"))
        chunks = b"".join(b"%x\r\n%s\r\n" % (100, b"x" * 100) for _ in range(2000))
        send_until_cut_off(client, chunks)


@pytest.mark.parametrize("endless", [b"a: b\r\n", b"x" * 100], ids=["many", "one long"])
def test_headers_after_a_body_are_bounded(server: Server, endless: bytes) -> None:
    with server.grows_by_less_than(30), connect(server) as client:
        client.sendall(post(b"1\r\na\r\n0\r\n" + b"A: ", "Transfer-Encoding: chunked"))
        send_until_cut_off(client, endless * 1000)


@pytest.mark.parametrize(
    "long",
    [b"GET /?" + b"a" * 70_000, b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000, b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 12_000],
)
def test_headers_of_more_than_64_kilobytes(server: Server, long: bytes) -> None:
    received = tell(server, long)
    assert statuses(received) == [431]
    assert b'{"error": "the headers are larger than 64 KiB"}' in received


def test_headers_of_less_are_taken(server: Server) -> None:
    padded = ALIVE.replace(b"\r\n\r\n", b"\r\nA: " + b"a" * 60_000 + b"\r\n\r\n")
    assert statuses(tell(server, padded, answers=1)) == [200]


def test_requests_in_a_row_are_answered_in_order(server: Server, red_photo: bytes) -> None:
    row = post(red_photo, "X-Request-ID: first") + ALIVE + post(b"words", "X-Request-ID: third") + ALIVE
    received = tell(server, row, answers=4)
    assert statuses(received) == [200, 200, 422, 200]
    assert received.index(b"x-request-id: first") < received.index(b"alive") < received.index(b"x-request-id: third")


def test_a_flood_of_requests_in_a_row_is_cut_off(server: Server) -> None:
    with server.grows_by_less_than(30):
        received = tell(server, b"GET /healthz HTTP/1.1\r\n\r\n" * 2000)
    assert set(statuses(received)) == {200}
    assert 50 <= len(statuses(received)) <= 200
    assert received.endswith(ENDED)


@pytest.mark.parametrize("between", [b"\r\n", b"\r\n\r\n\r\n"])
def test_line_ends_between_requests_are_nothing(server: Server, between: bytes) -> None:
    assert statuses(tell(server, ALIVE, between, ALIVE, answers=2)) == [200, 200]


def test_a_line_end_does_not_keep_a_connection_open(strict: Server) -> None:
    with connect(strict) as client:
        client.sendall(ALIVE)
        assert statuses(read(client, 1)) == [200]
        client.sendall(b"\r\n")
        assert statuses(read(client)) == [408]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_closed(server: Server, nonsense: bytes) -> None:
    received = tell(server, nonsense)
    assert statuses(received) == [400]
    assert b'{"error": "this is no HTTP request that can be read"}' in received
    assert received.endswith(ENDED)


def test_a_broken_chunk_ends_the_connection(server: Server) -> None:
    assert tell(server, post(b"zz\r\n", "Transfer-Encoding: chunked")) == ENDED


def test_what_was_asked_before_nonsense_is_answered_first(server: Server, red_photo: bytes) -> None:
    received = tell(server, post(red_photo) + b"\x00\r\n\r\n")
    assert statuses(received) == [200]
    assert received.endswith(ENDED)


def test_a_body_is_asked_for_where_the_client_waits_for_that(server: Server, red_photo: bytes) -> None:
    with connect(server) as client:
        client.sendall(post(b"", "Expect: 100-continue", length=len(red_photo)))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(red_photo)
        assert statuses(read(client, 1)) == [200]


def test_a_body_that_would_be_refused_is_not_asked_for(server: Server) -> None:
    received = tell(server, post(b"", "Expect: 100-continue", length=5_000_000))
    assert statuses(received) == [413]
    assert received.endswith(ENDED), "it cannot be known whether the body comes"


def test_the_answer_reaches_one_who_sends_far_too_much(server: Server) -> None:
    with connect(server) as client:
        client.sendall(post(b"", length=30_000_000))
        for _ in range(30):
            client.sendall(bytes(1_000_000))
        client.sendall(ALIVE)
        assert statuses(read(client, 2)) == [413, 200]


def test_an_old_client(server: Server, red_photo: bytes) -> None:
    received = tell(server, post(red_photo).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert statuses(received) == [200]
    assert b"connection: close" in received
    assert received.endswith(ENDED)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"])
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    with httpx.Client(base_url=server.address) as client:
        head, got = client.head(path), client.get(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.headers.get("content-type") == got.headers.get("content-type")


def test_an_offer_of_another_protocol_is_passed_over(server: Server, red_photo: bytes) -> None:
    """As java.net.http.HttpClient makes it with the first request of each connection."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA")
    assert statuses(tell(server, post(red_photo, *offer), ALIVE, answers=2)) == [200, 200]
    head, photo = post(b"", *offer, length=len(red_photo)), red_photo
    assert statuses(tell(server, head, photo[:100], photo[100:], answers=1)) == [200]
    chunked = post(b"%x\r\n%s\r\n0\r\n\r\n" % (len(photo), photo), *offer, "Transfer-Encoding: chunked")
    assert statuses(tell(server, chunked, answers=1)) == [200]
    socket_offer = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
    offering = ALIVE.replace(b"\r\n\r\n", "\r\n".join(["", *socket_offer, "", ""]).encode())
    assert statuses(tell(server, offering, answers=1)) == [200]


def test_a_client_that_reads_nothing_harms_nobody(server: Server, red_photo: bytes) -> None:
    with connect(server) as client:
        client.sendall(b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        server.require_well(red_photo)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_one_that_reads_nothing_is_cut_off(strict: Server) -> None:
    with connect(strict) as client:
        client.sendall(b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        until(lambda: strict.connections == 1)
        until(lambda: strict.connections == 0, within_s=20)


def test_a_client_that_reads_slowly_is_served(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while part := client.recv(50_000):
            received += part
            time.sleep(0.05)
    assert whole(received)
