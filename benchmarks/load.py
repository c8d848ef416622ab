"""Load for a server on loopback, with little of its own: raw HTTP/1.1 over kept connections. One photo a request.

python benchmarks/load.py PORT PHOTO SECONDS clients N [KIND]     N clients, each asks again when it is answered
python benchmarks/load.py PORT PHOTO SECONDS rate R [KIND]        R requests a second at random moments, answered or not

KIND: the content type; "multipart/form-data; boundary=edge; field=NAME" sends the photo as a part of a form.

Prints JSON: answered (a second), refused (503, a second), failed, and p50 and p99 in ms of those that were answered,
null where none was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from typing import cast

import uvloop

HEAD = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
# Of each measurement, before it counts.
WARM_UP_S = 1.0


class Connection(asyncio.Protocol):
    """One kept connection; its answers are read where they arrive, as each task more would cost the server's cores."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are none by inheritance
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, ended, body = self._received.partition(b"\r\n\r\n")
        if not ended or self._answer is None:
            return
        size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) == size:
            self._received, answer, self._answer = b"", self._answer, None
            answer.set_result(head)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._answer is not None:
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))

    async def ask(self, request: bytes) -> bytes:
        """Return the head of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


class Load:
    def __init__(self, port: int, request: bytes) -> None:
        self.port, self.request = port, request
        self.latencies: list[float] = []
        self.refused = self.failed = 0
        self.counts = False

    async def closed(self, clients: int, stop: float) -> None:
        await asyncio.gather(*(self._client(stop) for _ in range(clients)))

    async def open(self, rate: float, stop: float) -> None:
        idle: list[Connection] = []
        tasks: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while due < stop:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._one(idle, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += random.expovariate(rate)
        await asyncio.gather(*tasks)

    async def _connected(self, kept: Connection | None) -> Connection:
        if kept is not None and not kept.lost:
            return kept
        return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self.port))[1]

    async def _client(self, stop: float) -> None:
        connection = None
        while (began := time.perf_counter()) < stop:
            connection = await self._connected(connection)
            await self._ask(connection, began)
        if connection is not None:
            connection.close()

    async def _one(self, idle: list[Connection], due: float) -> None:
        connection = await self._connected(idle.pop() if idle else None)
        await self._ask(connection, due)
        idle.append(connection)

    async def _ask(self, connection: Connection, began: float) -> None:
        try:
            status = (await connection.ask(self.request))[9:12]
        except OSError:
            # closed in place of an answer: as failed as a 500
            status = b""
        if not self.counts:
            return
        if status == b"200":
            self.latencies.append(time.perf_counter() - began)
        elif status == b"503":
            self.refused += 1
        else:
            self.failed += 1


async def measure(port: int, request: bytes, seconds: float, way: str, amount: float) -> dict[str, float | None]:
    random.seed(0)
    load = Load(port, request)
    began = time.perf_counter() + WARM_UP_S
    asyncio.get_running_loop().call_later(WARM_UP_S, setattr, load, "counts", True)
    if way == "clients":
        await load.closed(int(amount), began + seconds)
    else:
        await load.open(amount, began + seconds)
    taken = time.perf_counter() - began
    ordered = sorted(load.latencies)
    return {
        "answered": len(ordered) / taken,
        "refused": load.refused / taken,
        "failed": load.failed,
        "p50": 1000 * ordered[len(ordered) // 2] if ordered else None,
        "p99": 1000 * ordered[int(0.99 * len(ordered))] if ordered else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("photo", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("way", choices=("clients", "rate"))
    parser.add_argument("amount", type=float)
    parser.add_argument("kind", nargs="?", default="image/jpeg")
    given = parser.parse_args()
    request = request_of(given.photo.read_bytes(), given.kind)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            measured = runner.run(measure(given.port, request, given.seconds, given.way, given.amount))
        except ConnectionRefusedError as error:
            raise SystemExit(f"load.py: nobody listens on port {given.port}") from error
    print(json.dumps(measured))


def request_of(body: bytes, kind: str) -> bytes:
    kind, _, name = kind.partition("; field=")
    if name:
        edge = kind.partition("boundary=")[2]
        part = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="0.jpg"\r\n'
        body = f"{part}Content-Type: image/jpeg\r\n\r\n".encode() + body + f"\r\n--{edge}--\r\n".encode()
    return HEAD.format(kind=kind, size=len(body)).encode() + body


if __name__ == "__main__":
    main()
