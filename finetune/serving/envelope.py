"""What every answer carries and leaves behind: an id, headers that browsers obey, a metric and a line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.serving.logs import request_id
from finetune.serving.metrics import Metrics
from finetune.serving.refusal import TURNED_AWAY
from finetune.serving.telemetry import join_span

log = logging.getLogger("finetune.access")

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Asked every few seconds by machines; a line for each would hide all others.
QUIET = {"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
# as ASGI has them
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Envelope:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, templates: Iterable[str], is_draining: Callable[[], bool]
    ) -> None:
        """templates: the paths of the application's routes.

        is_draining: whether connections should be closed after their answer, as the server is about to end.
        """
        self.app, self.metrics, self._is_draining = app, metrics, is_draining
        self._patterns = {path: compile_path(path)[0] for path in templates}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identity = identify(Headers(scope=scope))
        trace = join_span(identity)
        # what handlers find out, for the line in the log
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        began, status = time.perf_counter(), 0
        token = request_id.set(identity)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                given = {name for name, _ in headers}
                headers += [header for header in RAW_HEADERS if header[0] not in given]
                timing = f"total;dur={1000 * (time.perf_counter() - began):.1f}"
                headers += [(b"x-request-id", identity.encode()), (b"server-timing", timing.encode())]
                if scope.get("scheme") == "https":
                    headers.append((b"strict-transport-security", b"max-age=31536000"))
                if self._is_draining():
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            with self.metrics.in_flight.track_inprogress():
                await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            # the time of grace is over; what takes the place of an answer may still reach the client
            if not status:
                problem = JSONResponse({"error": "the server has ended before this was answered"}, 503)
                await problem(scope, receive, send_with_headers)
        except Exception:
            # internals go to the log, not to the client
            log.exception("%s %s failed", scope["method"], scope["path"][:200])
            if not status:
                problem = JSONResponse({"error": "internal error; the server's log has the details"}, 500)
                await problem(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - began
            route = self._route(scope)
            self.metrics.request(route, status, seconds)
            if route not in QUIET:
                if status in TURNED_AWAY:
                    self.metrics.refused(str(status))
                said = {"status": status, "ms": round(1000 * seconds, 1), "client": _client(scope)}
                fields = {**said, **trace, **facts}
                log.info("%s %s", scope["method"], scope["path"][:200], extra={"fields": fields})
            request_id.reset(token)

    def _route(self, scope: Scope) -> str:
        """Return the template of a request's path; of one that was turned away before, what it would have led to."""
        if "route" in scope:
            return str(scope["route"].path)
        found = (path for path, pattern in self._patterns.items() if pattern.match(scope["path"]))
        return next(found, "other")


def identify(headers: Headers) -> str:
    """Return a request's id: the client's own where it can be taken, else a new one."""
    given = headers.get("x-request-id", "")
    return given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
