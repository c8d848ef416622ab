"""Where a connection's limits lie, byte by byte, and how it ends once one is passed, as a client sees it."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from finetune.serving.connection import MAX_HEADER_BYTES
from tests.serving.conftest import Server, Start, start, until

# Far beyond what a test takes: what waits for it fails the test.
IDLE_S = 600
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ["limits.body_mb=1", "limits.header_s=2", "limits.body_s=1", f"limits.idle_s={IDLE_S}"]
    running = start(tiny_models, tmp_path_factory.mktemp("limits") / "log", *limits, "logs=json")
    yield running
    running.process.kill()
    running.process.wait()


def connect(server: Server) -> socket.socket:
    client = socket.create_connection(server.place, timeout=60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read(client: socket.socket) -> bytes:
    """Return what comes until the server ends its side; one that resets the connection fails the test."""
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        part = client.recv(65536)
        assert part, received
        received += part
    return received


def takes_nobody(server: Server) -> bool:
    try:
        connect(server).close()
    except ConnectionRefusedError:
        return True
    return False


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", received)]


def sized(size: int, *headers: bytes) -> bytes:
    """Return a request of so many bytes, all of them headers."""
    head = b"\r\n".join([b"GET /healthz HTTP/1.1", b"Host: x", *headers, b""])
    lines, rest = divmod(size - len(head) - len(b"\r\n"), 1000)
    head += (b"A: " + b"a" * 995 + b"\r\n") * (lines - 1) + b"A: " + b"a" * (995 + rest) + b"\r\n\r\n"
    assert len(head) == size
    return head


def refusals(server: Server, status: int) -> float:
    text = httpx.get(f"{server.address}/metrics").text
    return sum(map(float, re.findall(rf'(?m)^finetune_refusals_total{{reason="{status}"}} (\S+)$', text)))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("piece", [4000, 10**6])
@pytest.mark.parametrize(
    ("size", "status"),
    [(MAX_HEADER_BYTES, 200), (MAX_HEADER_BYTES + 1, 431), (100_000, 431), (900_000, 431)],
)
def test_headers_are_taken_up_to_the_limit_however_they_come(
    server: Server, size: int, status: int, piece: int, is_first: bool
) -> None:
    request = sized(size, b"Connection: close")
    with connect(server) as client:
        if not is_first:
            client.sendall(ALIVE)
            assert statuses(read_until(client, b'{"status":"alive"}')) == [200]
        for at in range(0, len(request), piece):
            client.sendall(request[at : at + piece])
        assert statuses(read(client)) == [status]
    server.require_no_fault()


def test_one_that_is_too_large_among_many_is_refused_alone_and_once(server: Server) -> None:
    told = refusals(server, 431)
    with connect(server) as client:
        client.sendall(ALIVE * 3 + sized(MAX_HEADER_BYTES + 1) + ALIVE + bytes(MAX_HEADER_BYTES))
        assert statuses(read(client)) in ([200, 200, 200], [200, 200, 200, 431])
    assert refusals(server, 431) == told + 1


@pytest.mark.parametrize("sent", [b"", b"abc"])
def test_a_body_that_does_not_come_in_time_ends_the_connection(server: Server, sent: bytes) -> None:
    with connect(server) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + sent)
        received = read(client)
        assert statuses(received) == [408]
        assert b"connection: close\r\n" in received
        # it may go on for a while, and then there is nobody any more
        client.sendall(b"x")
        until(lambda: server.connections == 0)


def test_one_that_sends_on_can_read_that_it_was_late(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.settimeout(0.01)
        received = b""
        while not received:
            client.sendall(b"1\r\nx\r\n")
            try:
                received = client.recv(65536)
            except TimeoutError:
                continue
        client.settimeout(60)
        client.sendall(b"1\r\nx\r\n" * 1000)
        assert statuses(received + read(client)) == [408]


def test_one_that_was_refused_early_is_waited_for_no_longer_than_for_headers(server: Server) -> None:
    told = refusals(server, 408)
    with connect(server) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
        assert statuses(read(client)) == [413], "and closed"
    assert refusals(server, 408) == told, "one refusal is told once"


def test_one_that_ends_its_body_after_the_refusal_goes_on(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
        first = client.recv(65536)
        client.sendall(bytes(5_000_000) + sized(2000, b"Connection: close"))
        assert statuses(first + read(client)) == [413, 200]


def test_one_that_wants_no_other_answer_can_read_a_refusal_while_it_sends(server: Server) -> None:
    with connect(server) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5000000\r\n\r\n"
            + bytes(5_000_000)
        )
        assert statuses(read(client)) == [413]


def test_an_answer_does_not_end_the_connection_of_a_request_that_asks_whether_to_send(
    server: Server, red_photo: bytes
) -> None:
    """Which comes while the one before is answered."""
    first = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(red_photo), red_photo)
    second = first.replace(b"\r\n\r\n", b"\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n", 1)
    with connect(server) as client:
        client.sendall(first + second.removesuffix(red_photo))
        received = read_until(client, b"HTTP/1.1 100 Continue\r\n\r\n")
        client.sendall(red_photo)
        assert statuses(received + read(client)) == [200, 100, 200]


def test_one_that_sends_on_after_its_refusal_does_not_hold_up_the_end(tiny_models: Path, start_server: Start) -> None:
    # far beyond what a test takes
    own = start_server(tiny_models, "limits.body_mb=1", "limits.header_s=600", "limits.body_s=600", "grace_s=600")
    with connect(own) as client:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head + b"186a0\r\n" + bytes(100_000) + b"\r\n")
        until(lambda: "finetune_requests_in_flight 2.0" in httpx.get(f"{own.address}/metrics").text)
        own.process.send_signal(signal.SIGTERM)
        until(lambda: takes_nobody(own))
        client.sendall(b"f4240\r\n" + bytes(1_000_000))
        assert statuses(read(client)) == [413]
        assert own.process.wait(60) == 0
