"""Where clients come in: each gets a place among the open connections, or is turned away, before it says anything."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from finetune.serving.connection import refusal
from finetune.serving.open_connections import Guest, OpenConnections
from finetune.serving.unread import Unread

log = logging.getLogger(__name__)

# When the server ends: for clients that have connected, and speak TLS.
LAST_HANDSHAKES_S = 1.0
# Of a client that has gone again before it was let in, or of its network (accept(2)).
GONE = {
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
}
# Where the system has no room for a connection.
TRY_AGAIN_S = 1.0


class Door:
    """Lets clients in at ports that it does not open itself; used from one event loop."""

    def __init__(
        self,
        guest: Callable[[], Guest],
        places: OpenConnections,
        unread: Unread,
        tls: ssl.SSLContext | None,
        **timeouts: float,
    ) -> None:
        """guest: makes a connection's protocol; timeouts: as asyncio names those of TLS."""
        self._guest, self._places, self._unread = guest, places, unread
        self._tls: dict[str, Any] = {"ssl": tls, **timeouts} if tls else {}
        self._opened: dict[socket.socket, asyncio.Task[None]] = {}
        self._coming: set[asyncio.Task[None]] = set()
        self._closing = False

    def open(self, listener: socket.socket, backlog: int) -> None:
        listener.setblocking(False)
        listener.listen(backlog)
        self._opened[listener] = asyncio.get_running_loop().create_task(self._accept(listener))

    async def close(self) -> None:
        """Let in who has connected, and nobody else."""
        self._closing = True
        for listener, accepting in self._opened.items():
            # closing a port resets the connections that wait to be accepted, whose clients may have asked already
            with contextlib.suppress(OSError):
                while True:
                    await self._let_in(*listener.accept())
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            # one that has just been accepted is let in
            await asyncio.sleep(0)
            accepting.cancel()
        if self._coming:
            await asyncio.wait(self._coming, timeout=LAST_HANDSHAKES_S)
        for coming in self._coming:
            coming.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(listener)
            except OSError as error:
                if listener.fileno() < 0 or self._closing:
                    return
                if error.errno in GONE:
                    await asyncio.sleep(0)
                else:
                    # no more files or memory: it passes, but not within a turn of the loop
                    log.warning("who connects has to wait: %s", error.strerror)
                    await asyncio.sleep(TRY_AGAIN_S)
            else:
                try:
                    await self._let_in(client, address)
                except Exception:
                    # whatever is wrong with one, others want to come in
                    log.exception("a client could not be let in")
                    client.close()

    async def _let_in(self, client: socket.socket, address: tuple[Any, ...]) -> None:
        client.setblocking(False)
        loop, guest = asyncio.get_running_loop(), self._guest()
        if self._places.take(guest, address[0], loop.time()):
            guest.coming = loop.create_task(self._make_connection(guest, client))
            self._coming.add(guest.coming)
            guest.coming.add_done_callback(self._coming.discard)
        else:
            self._turn_away(client, address[0])
        # others have their turn, and the task begins
        await asyncio.sleep(0)

    async def _make_connection(self, guest: Guest, client: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: guest, client, **self._tls)
        except BaseException as error:
            self._places.leave(guest)
            # else it has gone, is late or speaks no TLS
            if not isinstance(error, OSError):
                raise

    def _turn_away(self, client: socket.socket, address: str) -> None:
        """Tell it why, but for TLS, which would take a connection."""
        why = f"this server keeps at most {self._places.most} connections open"
        self._unread.refused(503, why, address)
        with client:
            if not self._tls:
                with contextlib.suppress(OSError):
                    client.send(refusal(503, why))
