"""Connections that cannot be held open for nothing: what uvicorn leaves to a gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Of a request line and its headers together; browsers and clients send a few kilobytes.
MAX_HEADER_BYTES = 64 * 1024


def connection_type(header_s: float, connections: int) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP/1.1 connection with limits.

    header_s: seconds in which a request's headers must be there, once its first byte is, or the connection is made.
    connections: open ones at most; one more gets 503 and is closed.
    """

    class Connection(HttpToolsProtocol):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._headers_due: asyncio.TimerHandle | None = None
            self._header_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > connections:
                self._refuse(503, f"this server keeps at most {connections} connections open")
            else:
                self._expect_headers()

        def data_received(self, data: bytes) -> None:
            if self._headers_due is not None:
                self._header_bytes += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self._headers_due is None and (self.cycle is None or self.cycle.response_complete):
                # bytes between two requests that begin none would else stop uvicorn's clock for idle connections
                self._expect_headers()
            elif self._headers_due is not None and self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(431, f"the headers are larger than {MAX_HEADER_BYTES // 1024} KiB")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._headers_due is None:
                self._expect_headers()

        def on_headers_complete(self) -> None:
            self._stop_clock()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is no HTTP request that can be read")

        def _expect_headers(self) -> None:
            self._header_bytes = 0
            self._headers_due = self.loop.call_later(
                header_s, self._refuse, 408, f"the headers did not come within {header_s:g} s"
            )

        def _stop_clock(self) -> None:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def _refuse(self, status: int, message: str) -> None:
            self._stop_clock()
            if self.transport.is_closing():
                return
            if self.cycle is None or self.cycle.response_complete:
                body = json.dumps({"error": message}).encode()
                head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
            self.transport.close()

    return Connection
