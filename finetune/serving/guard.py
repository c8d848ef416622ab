"""Who may ask what, and how much at one time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune.serving.admission import client
from finetune.serving.clients import name_client
from finetune.serving.keys import Keys, Role
from finetune.serving.refusal import Refusal

# What is there for balancers and for a person with a browser, and shows nothing of the models.
OPEN = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json")
OPEN_BELOW = "/docs-assets/"
ADMIN_BELOW = "/v2/repository/models/"


def role_of(path: str) -> Role | None:
    """Return whose key a path takes, None where it takes none."""
    if path in OPEN or path.startswith(OPEN_BELOW):
        return None
    return "admin" if path.startswith(ADMIN_BELOW) else "predict"


class Guard:
    """Lets a request through that carries the key its route takes, and no more of one client's than are allowed."""

    def __init__(self, app: ASGIApp, keys: Keys, per_client: int | None, refuse: Callable[[Refusal], ASGIApp]) -> None:
        """per_client: requests of one client at one time; refuse: makes the answer to the others."""
        self.app, self.keys, self.per_client, self._refuse = app, keys, per_client, refuse
        self._asking: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        role = role_of(scope.get("path", ""))
        if scope["type"] != "http" or role is None:
            await self.app(scope, receive, send)
            return
        try:
            name = self.keys.require(Headers(scope=scope), role)
            who = name_client(name, str((scope.get("client") or ("",))[0]))
            if self.per_client is not None and self._asking[who] >= self.per_client:
                raise Refusal(429, f"this client has {self.per_client} requests open already", retry_after_s=1)
        except Refusal as refusal:
            await self._refuse(refusal)(scope, receive, send)
            return
        if name:
            scope["state"]["facts"]["key"] = name
        client.set(who)
        self._asking[who] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._asking[who] -= 1
            if not self._asking[who]:
                del self._asking[who]
