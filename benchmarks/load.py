"""Load for a server on loopback, with little of its own: raw HTTP/1.1 over kept connections. One photo a request.

python benchmarks/load.py PORT PHOTO SECONDS clients N [KIND]     N clients, each asks again when it is answered
python benchmarks/load.py PORT PHOTO SECONDS rate R [KIND]        R requests a second at random moments, answered or not

KIND: the content type; "multipart/form-data; boundary=edge; field=NAME" sends the photo as a part of a form.

Prints JSON: answered (a second), refused (503, a second), failed, and p50 and p99 in ms of those that were answered.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path

HEAD = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
# Of each measurement, before it counts.
WARM_UP_S = 1.0


class Load:
    def __init__(self, port: int, request: bytes) -> None:
        self.port, self.request = port, request
        self.latencies: list[float] = []
        self.refused = self.failed = 0
        self.counts = False

    async def closed(self, clients: int, stop: float) -> None:
        await asyncio.gather(*(self._client(stop) for _ in range(clients)))

    async def open(self, rate: float, stop: float) -> None:
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        tasks: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while due < stop:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self._one(idle, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += random.expovariate(rate)
        await asyncio.gather(*tasks)

    async def _client(self, stop: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while (began := time.perf_counter()) < stop:
            await self._ask(reader, writer, began)
        writer.close()

    async def _one(self, idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]], due: float) -> None:
        connection = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", self.port)
        await self._ask(*connection, due)
        idle.append(connection)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, began: float) -> None:
        writer.write(self.request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(size)
        if not self.counts:
            return
        status = head[9:12]
        if status == b"200":
            self.latencies.append(time.perf_counter() - began)
        elif status == b"503":
            self.refused += 1
        else:
            self.failed += 1


async def measure(port: int, request: bytes, seconds: float, way: str, amount: float) -> dict[str, float]:
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
        "p50": 1000 * ordered[len(ordered) // 2],
        "p99": 1000 * ordered[int(0.99 * len(ordered))],
    }


def main() -> None:
    port, photo, seconds, way, amount = sys.argv[1:6]
    kind = sys.argv[6] if len(sys.argv) > 6 else "image/jpeg"
    kind, _, name = kind.partition("; field=")
    body = Path(photo).read_bytes()
    if name:
        edge = kind.partition("boundary=")[2]
        part = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="0.jpg"\r\n'
        body = f"{part}Content-Type: image/jpeg\r\n\r\n".encode() + body + f"\r\n--{edge}--\r\n".encode()
    request = HEAD.format(kind=kind, size=len(body)).encode() + body
    print(json.dumps(asyncio.run(measure(int(port), request, float(seconds), way, float(amount)))))


if __name__ == "__main__":
    main()
