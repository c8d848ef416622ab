"""Request bodies, bounded before anything reads them: how large, how slow, how many at one time, and inflated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.config import LimitsConfig
from finetune.serving.admission import client
from finetune.serving.clients import Places
from finetune.serving.compression import Inflater
from finetune.serving.refusal import Refusal

Result = TypeVar("Result")


class BodyLimits:
    """Hands on the body of each request as it comes, decompressed; a limit that is passed is raised as Refusal."""

    def __init__(self, app: ASGIApp, limits: LimitsConfig, refuse: Callable[[Refusal], ASGIApp]) -> None:
        """refuse: makes the answer to what is refused before the application sees it."""
        self.app, self.limits, self._refuse = app, limits, refuse
        self.max_bytes, self.held = int(limits.body_mb * 1e6), Places(int(limits.held_mb * 1e6))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._require_declared(headers.get("content-length", ""))
            body = _Body(self, receive, send, headers.get("content-encoding", "identity"))
        except Refusal as refusal:
            await self._refuse(refusal)(scope, receive, send)
            return
        try:
            await self.app(scope, body.receive, body.send)
        finally:
            self.held.hold(body.who, -body.bytes)

    def hold(self, who: str, more: int, total: int) -> None:
        """Account for more bytes of a client's body of so many in all; raises Refusal 413 or 503."""
        if total > self.max_bytes:
            raise Refusal(413, f"the body is larger than the {self.limits.body_mb:g} MB that are taken")
        if not self.held.has_room(who, more):
            raise Refusal(503, "too many requests are being read; come back later", retry_after_s=1)
        self.held.hold(who, more)

    def _require_declared(self, declared: str) -> None:
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise Refusal(413, f"{int(declared) / 1e6:.1f} MB in one request; {self.limits.body_mb:g} MB are taken")


class _Body:
    """One request's body. who: its client; bytes: those handed on so far."""

    def __init__(self, limits: BodyLimits, receive: Receive, send: Send, encoding: str) -> None:
        self.who, self.bytes = client.get(), 0
        self._limits, self._receive, self._send = limits, receive, send
        self._inflater = None if encoding.strip().lower() == "identity" else Inflater(encoding, limits.max_bytes)
        self._deadline = asyncio.get_running_loop().time() + limits.limits.body_s
        # whether all of it has come, and whether all of it was handed on
        self._came = self._complete = False
        self._is_late = False

    async def receive(self) -> Message:
        if self._complete:
            # what is left to come is that the client leaves, whenever it likes
            return await self._receive()
        chunk = b""
        if self._inflater is None or self._inflater.hungry:
            message = await self._next()
            if message["type"] != "http.request":
                return message
            self._came = not message.get("more_body", False)
            chunk = message.get("body", b"")
        else:
            # a few bytes may inflate for as long as a probe waits: all others get their turn between two steps
            await asyncio.sleep(0)
        chunk = self._inflated(chunk)
        self._limits.hold(self.who, len(chunk), self.bytes + len(chunk))
        self.bytes += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": not self._complete}

    async def send(self, message: Message) -> None:
        """Hand on a part of the answer, which is the last of its connection where the body did not come in time."""
        if self._is_late and message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await self._send(message)

    def _inflated(self, chunk: bytes) -> bytes:
        """Return what is next of the body, and note whether that is its end."""
        self._complete = self._came
        if self._inflater is not None:
            chunk = self._inflater.feed(chunk)
            self._complete = self._came and self._inflater.hungry
            if self._complete:
                self._inflater.finish()
        return chunk

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            self._is_late = True
            raise Refusal(408, f"the body did not come within {self._limits.limits.body_s:g} s") from None


class ClientLeft(Exception):
    """The client closed the connection; nobody waits for an answer any more."""


class Patience:
    """How long a request whose body was read is worth any work: until its client leaves or its time is up."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        """receive: the request's, as ASGI has it."""
        self._receive = receive
        self._began = asyncio.get_running_loop().time()
        self._seconds = seconds

    def shorten(self, seconds: float) -> None:
        """Let it end so many seconds after it began, if it would not end before."""
        self._seconds = min(self._seconds, seconds)

    async def wait_for(self, work: Awaitable[Result]) -> Result:
        """Return the result of `work`, which is cancelled at the end; raises ClientLeft, or Refusal 504."""
        loop = asyncio.get_running_loop()
        leaving = loop.create_task(self._leaves())
        working = True

        def leave(_: object) -> None:
            if working and not time_left.expired():
                # its time is up, now
                time_left.reschedule(loop.time())

        try:
            async with asyncio.timeout_at(self._began + self._seconds) as time_left:
                leaving.add_done_callback(leave)
                return await work
        except TimeoutError:
            if not time_left.expired():
                raise
            if leaving.done():
                raise ClientLeft from None
            raise Refusal(504, f"not answered within {self._seconds:g} s", retry_after_s=1) from None
        finally:
            working = False
            leaving.cancel()

    async def _leaves(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
