"""The calls over gRPC that run: no more than there is memory for, and none that is lost when the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.serving.refusal import Refusal

# Where Linux and macOS list what a process has open. Windows has nothing like it: there gRPC's own end of a server
# tells calls that it never began CANCELLED.
OPEN_FILES = Path("/dev/fd")


class Calls:
    """Counts calls from their beginning until their answer is sent; used from one event loop."""

    def __init__(self, most: int) -> None:
        self._most, self._running = most, 0
        self._ending = False
        self._none_runs = asyncio.Event()
        self._none_runs.set()

    def begin(self, context: Any) -> None:
        """Count a call until gRPC is through with it; raises Refusal 429 where too many run, 503 once they end."""
        if self._ending:
            raise Refusal(503, "this server is about to end")
        if self._running >= self._most:
            raise Refusal(429, f"{self._most} calls run already; come back later")
        self._running += 1
        self._none_runs.clear()
        context.add_done_callback(self._end)

    async def finish(self, grace_s: float) -> None:
        """Let no more begin, and wait for those that run, no longer than that."""
        self._ending = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none_runs.wait(), grace_s)

    def _end(self, _: Any) -> None:
        self._running -= 1
        if not self._running:
            self._none_runs.set()


def close_port(port: int) -> None:
    """Let nobody else connect to a port that gRPC listens at."""
    for own in _sockets(port):
        if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            own.shutdown(socket.SHUT_RDWR)


def hang_up(port: int) -> None:
    """Send nothing more to whoever is connected to a port of gRPC's, behind the answers that are on their way.

    gRPC's own end of a server answers CANCELLED to what has arrived and no handler has taken, as if the client had
    wanted it so; one whose connection ends finds all that was not answered UNAVAILABLE, and asks elsewhere.
    """
    for own in _sockets(port):
        # one that has just been closed by its client
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_WR)


def _sockets(port: int) -> Iterator[socket.socket]:
    """Yield gRPC's sockets of a port, which it shows nobody."""
    for opened in list(OPEN_FILES.iterdir()) if OPEN_FILES.is_dir() else ():
        try:
            number = os.dup(int(opened.name))
        except OSError:
            # it was open while they were listed
            continue
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            os.close(number)
            continue
        with socket.socket(fileno=number) as own:
            if own.family in (socket.AF_INET, socket.AF_INET6) and own.getsockname()[1] == port:
                yield own
