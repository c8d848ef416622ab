"""More clients than places, over TLS and without: those with few connections come in, and the bound is one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from finetune.serving.door import Door
from finetune.serving.open_connections import SETTLED_S, OpenConnections
from tests.serving.conftest import Server, Start, make_certificate, until
from tests.serving.test_connections import ALIVE, ENDED, post, read, statuses

# Nothing but a newcomer ends a connection within a test.
PATIENT = ("limits.header_s=300", "limits.body_s=300", "limits.idle_s=300", "logs=json")
READY = ALIVE.replace(b"/healthz", b"/readyz")
LARGE = b"GET /docs-assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
# The tests' own address is 127.0.0.1; on Linux all that begin with 127 are this machine's.
ANOTHER = "127.0.0.2"


@pytest.fixture
def clients() -> Iterator[contextlib.ExitStack]:
    """Keeps connections open until the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


def connect(server: Server, address: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(server.place, timeout=20, source_address=(address, 0))


def ask(server: Server, question: bytes, address: str = "127.0.0.1") -> list[int]:
    with connect(server, address) as client:
        client.sendall(question)
        return statuses(read(client, 1))


@pytest.mark.parametrize("said", [b"", b"G", post(b"abc", length=1000), LARGE * 20], ids=["no", "head", "body", "all"])
def test_connections_that_stall_shut_no_probe_out(
    said: bytes, tiny_models: Path, start_server: Start, clients: contextlib.ExitStack
) -> None:
    server = start_server(tiny_models, "limits.connections=10", *PATIENT)
    until(lambda: server.connections == 0)
    for _ in range(10):
        clients.enter_context(connect(server)).sendall(said)
    for _ in range(3):
        assert ask(server, ALIVE, ANOTHER) == ask(server, READY, ANOTHER) == [200]
        # behind one address with those that stall it takes a moment
        until(lambda: ask(server, ALIVE) == [200])
        until(lambda: ask(server, READY) == [200])


def test_a_flood_from_one_address_takes_nobody_elses_connection(
    tiny_models: Path, start_server: Start, clients: contextlib.ExitStack
) -> None:
    server = start_server(tiny_models, "limits.connections=6", *PATIENT)
    with connect(server, ANOTHER) as kept:
        kept.sendall(ALIVE)
        assert statuses(read(kept, 1)) == [200]
        time.sleep(1.5 * SETTLED_S)
        for _ in range(3):
            for _ in range(20):
                clients.enter_context(connect(server))
            kept.sendall(ALIVE)
            assert statuses(read(kept, 1)) == [200]
            until(lambda: server.connections <= 6)


def test_one_more_connection_takes_the_place_of_the_longest_idle(
    tiny_models: Path, start_server: Start, red_photo: bytes, clients: contextlib.ExitStack
) -> None:
    server = start_server(tiny_models, "limits.connections=4", *PATIENT)
    asking = post(red_photo)
    *halves, silent, answered = [clients.enter_context(connect(server)) for _ in range(4)]
    for half in halves:
        half.sendall(asking[:-1])
    answered.sendall(ALIVE)
    assert statuses(read(answered, 1)) == [200]
    for longest_idle in (silent, answered):
        until(lambda: server.connections == 4)
        time.sleep(1.5 * SETTLED_S)
        assert ask(server, ALIVE) == [200]
        assert read(longest_idle) == ENDED
        until(lambda: server.connections == 3)
        clients.enter_context(connect(server))
    for half in halves:
        half.sendall(asking[-1:])
        assert statuses(read(half, 1)) == [200], "those that ask go on"


def test_where_nobody_gives_way_one_more_is_refused_counted_and_told_of(
    tiny_models: Path, start_server: Start, red_photo: bytes
) -> None:
    server = start_server(tiny_models, "limits.connections=2", *PATIENT)
    until(lambda: server.connections == 0)
    # asleep, so that all come at one moment, in which none has been there for long
    server.process.send_signal(signal.SIGSTOP)
    with connect(server) as first, connect(server) as second, connect(server) as third:
        for client in (first, second):
            client.sendall(post(red_photo)[:-1])
        third.sendall(ALIVE)
        server.process.send_signal(signal.SIGCONT)
        received = read(third)
        assert statuses(received) == [503]
        assert b"this server keeps at most 2 connections open" in received
        for client in (first, second):
            client.sendall(red_photo[-1:])
            assert statuses(read(client, 1)) == [200]
        first.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'finetune_refusals_total{reason="503"} 1.0' in read(first, 1)
    until(lambda: "refused: " in server.log.read_text())
    (line,) = [line for line in server.log.read_text().splitlines() if "refused: " in line]
    entry = json.loads(line)
    assert entry["message"] == "refused: this server keeps at most 2 connections open"
    assert (entry["status"], entry["client"], entry["more"]) == (503, "127.0.0.1", 0)


def test_answers_that_are_not_read_are_within_the_bound(
    tiny_models: Path, start_server: Start, clients: contextlib.ExitStack
) -> None:
    server = start_server(tiny_models, "limits.connections=5", *PATIENT)
    for _ in range(3):
        for _ in range(5):
            client = clients.enter_context(socket.socket())
            # with which the second answer is too large for what the systems keep on their way
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(server.place)
            client.sendall(LARGE * 2)
        time.sleep(1.5 * SETTLED_S)
        until(lambda: ask(server, ALIVE) == [200])
        until(lambda: server.connections <= 5)


def test_where_no_more_files_may_be_open_clients_wait(tiny_models: Path, start_server: Start) -> None:
    server = start_server(tiny_models, "reload_s=0", *PATIENT)
    most = max(int(file.name) for file in Path(f"/proc/{server.process.pid}/fd").iterdir())
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (most + 1, hard))
    told = "who connects has to wait: Too many open files"
    with contextlib.ExitStack() as first_ones:

        def one_more_finds_no_place() -> bool:
            first_ones.enter_context(connect(server))
            return told in server.log.read_text()

        until(one_more_finds_no_place)
        late = connect(server)
    with late:
        late.sendall(ALIVE)
        assert statuses(read(late, 1)) == [200]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def connect_safely(server: Server, certificate: list[str]) -> ssl.SSLSocket:
    trusting = ssl.create_default_context(cafile=certificate[0].partition("=")[2])
    return trusting.wrap_socket(connect(server), server_hostname="127.0.0.1")


def test_who_says_nothing_at_all_over_tls_has_a_place_too(
    tiny_models: Path, start_server: Start, certificate: list[str], clients: contextlib.ExitStack
) -> None:
    server = start_server(tiny_models, "limits.connections=4", *PATIENT, *certificate)
    until(lambda: server.connections == 0)
    for _ in range(60):
        clients.enter_context(connect(server))
    # the last one has come in or been turned away
    until(lambda: waiting(server) == 0)
    until(lambda: server.connections <= 4)
    until(lambda: is_answered(server, certificate))
    assert server.connections <= 4


def waiting(server: Server) -> int:
    """Return how many have connected and are yet to be accepted: of a port that listens, what has been received."""
    rows = [row.split() for row in Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]]
    (mine,) = [row for row in rows if row[1].endswith(f":{server.place[1]:04X}") and row[3] == "0A"]
    return int(mine[4].partition(":")[2], 16)


def is_answered(server: Server, certificate: list[str]) -> bool:
    try:
        with connect_safely(server, certificate) as client:
            client.sendall(ALIVE)
            return statuses(read(client, 1)) == [200]
    except OSError:
        # turned away, as over TLS nothing can be said before its handshake
        return False


def test_idle_connections_over_tls_give_way_at_once(
    tiny_models: Path, start_server: Start, certificate: list[str], clients: contextlib.ExitStack
) -> None:
    server = start_server(tiny_models, "limits.connections=3", *PATIENT, *certificate)
    for _ in range(6):
        until(lambda: is_answered(server, certificate))
        with contextlib.suppress(OSError):
            client = clients.enter_context(connect_safely(server, certificate))
            client.sendall(ALIVE)
        # which says no goodbye, as nobody looks at it
        assert server.connections <= 3


def test_idle_connections_over_tls_do_not_keep_the_server_from_ending(
    tiny_models: Path, start_server: Start, certificate: list[str], clients: contextlib.ExitStack
) -> None:
    server = start_server(tiny_models, "grace_s=60", *PATIENT, *certificate)
    # one that has asked, one that never does, and one that does not even begin with TLS
    asked = clients.enter_context(connect_safely(server, certificate))
    asked.sendall(ALIVE)
    assert statuses(read(asked, 1)) == [200]
    clients.enter_context(connect_safely(server, certificate))
    clients.enter_context(connect(server))
    until(lambda: server.connections == 3)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0
    assert "error" not in {json.loads(line)["level"] for line in server.log.read_text().splitlines()}


@pytest.mark.parametrize(
    ("number", "waits"), [(errno.ENOBUFS, True), (errno.ENOMEM, True), (errno.ECONNABORTED, False)]
)
def test_a_system_without_room_is_not_asked_at_every_turn(
    number: int, waits: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    async def test() -> None:
        async def fail(_: socket.socket) -> None:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", fail)
        door = Door(Mock(), OpenConnections(9), Mock(), None)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            door.open(listener, 9)
            for _ in range(100):
                await asyncio.sleep(0)
            await door.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    said = [record.message for record in caplog.records]
    assert said == ([f"who connects has to wait: {os.strerror(number)}"] if waits else [])
    assert tries == 1 if waits else tries > 10
