"""Connections that cannot be held open, or fed, for nothing: what uvicorn leaves to a gateway."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from finetune.serving.envelope import HEADERS
from finetune.serving.open_connections import Guest, OpenConnections, Standing
from finetune.serving.unread import Unread

# Of a request line and its headers together, or of what follows a body; browsers and clients send a few kilobytes.
MAX_HEADER_BYTES = 64 * 1024
# Requests that are sent on without waiting for the answers to those before; next to no client does so at all.
MAX_PIPELINED = 100
# When the server ends, a client may just be sending what it sends over an open connection.
LAST_REQUEST_S = 1.0
# When the server ends: for a client to close a connection over TLS, too.
GOODBYE_S = 0.5
UNREADABLE = "this is no HTTP request that can be read"
TOO_LARGE = f"the headers are larger than {MAX_HEADER_BYTES // 1024} KiB"


class HeadersTooLarge(Exception):
    """A request line and its headers, whole, are larger than is taken."""


def connection_type(header_s: float, body_s: float, places: OpenConnections, unread: Unread) -> type[HttpToolsProtocol]:
    """Return uvicorn's HTTP/1.1 connection with limits.

    header_s: seconds in which a request's headers must be there, once its first byte is, or the connection is made; and
    that a client gets to end a body which nobody waits for any more, or to read why it was refused while it sends on.
    body_s: that a client gets to take what is written at one time.
    places: each has one there, which it leaves. unread: is told of what is refused here.
    """

    class Connection(HttpToolsProtocol, Guest):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._clock: asyncio.TimerHandle | None = None
            self._writing: asyncio.TimerHandle | None = None
            # bytes since the parser last came to the end of headers, of a part of a body, or of a request; not what it
            # made of the same piece after that
            self._pending_bytes = 0
            self._in_body = self._has_body = self._deaf = self._is_last = False
            self._running: RequestResponseCycle | None = None
            # asks for nothing, or else has begun to; since when
            self._is_idle, self._since = True, self.loop.time()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # writing pauses as soon as anything has to wait: a small rest would keep a connection open for ever, too;
            # with 0, uvloop's TLS would wait where there is nothing
            transport.set_write_buffer_limits(1)
            self._start_clock()

        def data_received(self, data: bytes) -> None:
            if self._deaf:
                return
            if self._is_idle:
                self._is_idle, self._since = False, self.loop.time()
            self._unset_keepalive_if_required()
            self._pending_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._go_on_without_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                is_large = isinstance(error.__context__, HeadersTooLarge)
                self._refuse(*((431, TOO_LARGE) if is_large else (400, UNREADABLE)))
            if self._deaf or self.transport.is_closing():
                return
            if self._pending_bytes > MAX_HEADER_BYTES:
                self._refuse(431, TOO_LARGE)
            elif self._clock is None and not self._is_asked and not self.timeout_keep_alive_task:
                # what begins no request, or goes on with one that was refused, would else keep it open for ever
                self._start_clock()

        def on_message_begin(self) -> None:
            if len(self.pipeline) >= MAX_PIPELINED:
                raise ValueError("too many requests in a row")
            super().on_message_begin()
            self._since = self.loop.time()
            if self._clock is None:
                self._start_clock()

        def on_headers_complete(self) -> None:
            self._stop_clock()
            self._pending_bytes = 0
            if self._header_bytes() > MAX_HEADER_BYTES:
                raise HeadersTooLarge
            if self.parser.should_upgrade():
                # the parser would take the body for another protocol
                return
            super().on_headers_complete()
            self._in_body, self._has_body = True, False

        def on_body(self, body: bytes) -> None:
            self._pending_bytes, self._has_body = 0, True
            super().on_body(body)

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return
            self._pending_bytes, self._in_body = 0, False
            super().on_message_complete()
            if self.cycle is not None and self.cycle.response_complete:
                self._stop_clock()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
                self._is_idle, self._since = True, self.loop.time()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._is_asked:
                return
            if self._in_body:
                self._leave_body()
            elif self._clock is None:
                self._is_idle, self._since = True, self.loop.time()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self.loop.call_later(body_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_writing_clock()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            places.leave(self)
            self._stop_clock()
            self._stop_writing_clock()
            if self._running is not None:
                # uvicorn tells the newest request only, which may still wait for its turn
                self._running.disconnected = True
                self._running.message_event.set()
            super().connection_lost(exc)

        def shutdown(self) -> None:
            self._is_last = True
            if self._is_asked:
                self.cycle.keep_alive = False
            else:
                self.loop.call_later(LAST_REQUEST_S, self._end_if_idle)

        def standing(self) -> tuple[Standing, float]:
            # there is none before TLS's handshake is done
            is_unread = self.transport is not None and self.transport.get_write_buffer_size() > 0
            if self.transport is None or self._is_idle or self.transport.is_closing():
                return Standing.UNREAD if is_unread else Standing.IDLE, self._since
            if self._in_body or not self._is_asked:
                return Standing.HALF_SENT, self._since
            return Standing.UNREAD if is_unread else Standing.ASKING, self._since

        def cut_off(self) -> None:
            if self.transport is None:
                self.coming.cancel()
            else:
                # closing would wait for the client, to read what is left or to close over TLS, too
                self.transport.abort()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._running = cycle
            writing = {"write": self.transport.write, "is_closing": self.transport.is_closing}
            cycle.transport = SimpleNamespace(**writing, close=self._close_behind_answer)  # type: ignore[assignment]
            super()._start_asgi_task(cycle, app)

        @property
        def _is_asked(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _header_bytes(self) -> int:
            line = len(b"%s %s HTTP/1.1\r\n\r\n" % (self.parser.get_method(), self.url))
            return line + sum(len(b"%s: %s\r\n" % header) for header in self.headers)

        def _leave_body(self) -> None:
            """Wait for the end of a body whose request is answered, for another may follow; but not for as long."""
            self._unset_keepalive_if_required()
            if not self._has_body and self.expect_100_continue:
                # nobody knows whether the body or another request comes next
                self.transport.close()
            elif self._clock is None:
                self._start_clock()

        def _close_behind_answer(self) -> None:
            """Close, but let a client that may still be sending read its answer, which a reset would take from it."""
            is_sending = (self._in_body or self._deaf) and not self.pipeline
            # closing over TLS waits for the client by itself
            if not is_sending or self.transport.is_closing() or not self.transport.can_write_eof():
                self.transport.close()
                return
            self._deaf = True
            self.transport.write_eof()
            self.flow.resume_reading()
            if self._is_last:
                self.loop.call_later(LAST_REQUEST_S, self.transport.close)
            elif self._clock is None:
                self._start_clock()

        def _go_on_without_upgrade(self, rest: bytes) -> None:
            """Take a request as if it had not offered another protocol, as Java's client does with each first one."""
            if self.parser.get_method() == b"CONNECT":
                self._refuse(400, UNREADABLE)
                return
            line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            kept = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.data_received(b"\r\n".join([line, *kept, b"", rest]))

        def _start_clock(self) -> None:
            self._clock = self.loop.call_later(header_s, self._late)

        def _stop_clock(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _stop_writing_clock(self) -> None:
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _late(self) -> None:
            if self.flow.read_paused:
                # it is us who do not read
                self._start_clock()
            elif self._is_idle or self._in_body or self._deaf:
                # browsers and balancers connect beforehand, and may then have nothing to ask; others were told already
                self.transport.close()
            else:
                self._refuse(408, f"the headers did not come within {header_s:g} s")

        def _refuse(self, status: int, message: str) -> None:
            """Answer and close; what was asked in full before is answered first, and is the last."""
            self._stop_clock()
            if self.transport.is_closing():
                return
            unread.refused(status, message, self.client[0] if self.client else "")
            if self._in_body:
                self.transport.close()
                return
            self._deaf = True
            if self._is_asked:
                self.cycle.keep_alive = False
                return
            self.transport.write(refusal(status, message))
            self._close_behind_answer()

        def _end_if_idle(self) -> None:
            if not self._is_asked:
                self.transport.close()
                self.loop.call_later(GOODBYE_S, self._end_if_sent)

        def _end_if_sent(self) -> None:
            """Wait no longer for a client to close over TLS, too: one that asks for nothing may never look."""
            if not self.transport.get_write_buffer_size():
                self.transport.abort()

    return Connection


def refusal(status: int, message: str) -> bytes:
    """Return the answer to what never was a request, after which the connection is closed."""
    body = json.dumps({"error": message}).encode()
    lines = {**HEADERS, "Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} \r\n{head}\r\n".encode() + body
