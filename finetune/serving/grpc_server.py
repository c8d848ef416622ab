"""The Open Inference Protocol over gRPC, on a port of its own (grpc_port=), beside the HTTP interface."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers

from finetune.config import ServeConfig
from finetune.errors import FinetuneError
from finetune.serving.admission import client
from finetune.serving.asking import Facts
from finetune.serving.clients import name_client
from finetune.serving.envelope import identify
from finetune.serving.grpc_calls import Calls, address_of, close_port, end_untaken, hang_up
from finetune.serving.grpc_messages import parse, receive
from finetune.serving.grpc_methods import GrpcMethods
from finetune.serving.keys import Keys, Role
from finetune.serving.logs import request_id
from finetune.serving.metrics import Metrics
from finetune.serving.refusal import TURNED_AWAY, Refusal
from finetune.serving.repository import Repository

log = logging.getLogger("finetune.access")

# Looked for where modules are.
PROTOCOL = "finetune/serving/open_inference.proto"
# What the protocol's clients know each HTTP status as.
CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
SERVICE = "inference.GRPCInferenceService"
ADMIN = ("RepositoryModelLoad", "RepositoryModelUnload")
OPEN = ("ServerLive", "ServerReady")
# That run at one time, however large the messages may be.
FEWEST_CALLS = 8
# What gRPC writes with a traceback and a client can cause at will: metadata that are no UTF-8, and so no known key;
# leaving while the answer is on its way.
NOT_LOGGED = ("Invalid encoding on", "ExecuteBatchError raised in core")
# Between two looks whether gRPC's own server still runs.
LOOK_S = 0.5


class GrpcServer:
    """Answers the protocol's calls from the same repository, with the same keys and limits as HTTP."""

    def __init__(self, config: ServeConfig, repository: Repository, metrics: Metrics, keys: Keys) -> None:
        """Raises FinetuneError where grpc is not installed."""
        # its core writes past every formatter, and clients can cause that at will; read when grpc is imported
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            self._grpc = importlib.import_module("grpc")
            self._messages = self._grpc.protos(PROTOCOL)
        # the second is how grpc.protos says that grpcio-tools alone is missing
        except (ImportError, NotImplementedError):
            raise FinetuneError(
                f"grpc_port={config.grpc_port} takes two more packages: pip install 'finetune-service[grpc]'"
            ) from None
        self._config, self._repository, self._metrics, self._keys = config, repository, metrics, keys
        self._methods = GrpcMethods(self._messages, repository, config.limits)
        self._server: Any = None
        self._watching: asyncio.Task[None] | None = None
        # messages are read whole, so that each call may hold one of the largest
        limits = config.limits
        self._calls = Calls(max(FEWEST_CALLS, int(limits.held_mb // limits.body_mb)), limits.per_client)
        # servers that have failed, while the last of their calls run
        self._ending: set[asyncio.Task[None]] = set()
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)

    async def start(self) -> None:
        """Listen; raises FinetuneError where the port is taken."""
        self._server = await self._listen()
        self._watching = asyncio.create_task(self._watch())
        logging.getLogger(__name__).info("serving gRPC at %s", self._address)

    async def stop(self) -> None:
        """Begin no more calls, give those that run their time of grace, then hang up; may be asked more than once."""
        if self._watching is not None:
            self._watching.cancel()
        if self._server is not None:
            port = self._config.grpc_port
            assert port is not None
            close_port(port)
            await self._calls.finish(self._config.grace_s)
            hang_up(port)
            await asyncio.gather(self._server.stop(None), *self._ending)

    @property
    def _address(self) -> str:
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"{host}:{self._config.grpc_port}"

    async def _listen(self) -> Any:
        """Return gRPC's own server, at work; raises FinetuneError where the port is taken."""
        limits = self._config.limits
        options = [("grpc.max_receive_message_length", int(limits.body_mb * 1e6)), ("grpc.so_reuseport", 0)]
        server = self._grpc.aio.server(options=options)
        server.add_generic_rpc_handlers([self._handlers()])
        try:
            if self._config.tls_cert is None or self._config.tls_key is None:
                server.add_insecure_port(self._address)
            else:
                pair = (self._config.tls_key.read_bytes(), self._config.tls_cert.read_bytes())
                server.add_secure_port(self._address, self._grpc.ssl_server_credentials([pair]))
        except RuntimeError:
            raise FinetuneError(f"cannot listen on {self._address}; choose another grpc_port=") from None
        await server.start()
        return server

    async def _watch(self) -> None:
        """Listen again where gRPC's own server has failed, as it does of one call whose method is no UTF-8."""
        while True:
            try:
                while await self._server.wait_for_termination(LOOK_S):
                    pass
                return
            except Exception as error:
                kind = type(error).__name__
                logging.getLogger(__name__).error("gRPC's own server has failed (%s); another takes its place", kind)
            ending = asyncio.create_task(self._server.stop(self._config.grace_s))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            self._server = await self._listen_again()

    async def _listen_again(self) -> Any:
        """Return another server once it can listen; until then this one is not ready, over HTTP neither."""
        told = ""
        while True:
            try:
                server = await self._listen()
            except Exception as error:  # gRPC raises its own types
                # the port is not free at once, and a certificate may just be exchanged
                if str(error) != told:
                    told = str(error)
                    self._repository.hinder(f"gRPC does not listen: {told}")
                    logging.getLogger(__name__).error("gRPC does not listen: %s", told)
                await asyncio.sleep(LOOK_S / 10)
            else:
                self._repository.hinder(None)
                return server

    def _handlers(self) -> object:
        """Return every call's handler, each of a stream: of those gRPC reads a message only when it is asked for."""
        handler = self._grpc.stream_unary_rpc_method_handler
        found = {
            method.__name__: handler(self._enveloped(method), response_serializer=_serialized)
            for method in self._methods.all
        }
        return self._grpc.method_handlers_generic_handler(SERVICE, found)

    def _enveloped(self, method: Callable[[Any, Facts], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        """Return a call's handler: keys before it, a metric and a line in the log after it, refusals as statuses."""
        name = method.__name__
        kind = getattr(self._messages, f"{name}Request")
        role: Role = "admin" if name in ADMIN else "predict"

        async def answer(context: Any, headers: Headers, peer: str, facts: Facts) -> Any:
            if name in OPEN:
                return await method(None, facts)
            if key := self._keys.require(headers, role):
                facts["key"] = key
            who = name_client(key, peer)
            client.set(who)
            place = self._calls.begin(who, context)
            message = await self._calls.hear(place, receive(context), self._config.limits.body_s)
            return await method(await parse(message, kind), facts)

        async def handle(_: Any, context: Any) -> Any:
            headers = Headers(raw=_raw(context.invocation_metadata()))
            identity = identify(headers)
            token = request_id.set(identity)
            context.set_trailing_metadata((("x-request-id", identity),))
            # while there is one: gRPC forgets it with a call that is over
            peer = address_of(context.peer())
            facts: Facts = {}
            began, status = time.perf_counter(), 200
            try:
                made = await answer(context, headers, peer, facts)
                end_untaken(context, self._config.limits.body_s)
                return made
            except Refusal as refusal:
                status = refusal.status
                await context.abort(getattr(self._grpc.StatusCode, CODES.get(status, "INTERNAL")), str(refusal))
            except asyncio.CancelledError:
                # by the client, by gRPC of a message that is too large, or by us as the time of grace is over
                status = 503 if self._calls.ended else 499
                raise
            except Exception:
                status = 500
                log.exception("gRPC %s failed", name)
                said = "internal error; the server's log has the details"
                await context.abort(self._grpc.StatusCode.INTERNAL, said)
            finally:
                seconds = time.perf_counter() - began
                self._metrics.request(f"grpc/{name}", status, seconds)
                if status in TURNED_AWAY:
                    self._metrics.refused(str(status))
                if name not in OPEN:
                    fields = {"status": status, "ms": round(1000 * seconds, 1), "client": peer, **facts}
                    log.info("gRPC %s", name, extra={"fields": fields})
                request_id.reset(token)

        return handle


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _raw(metadata: Any) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value if isinstance(value, bytes) else value.encode()) for key, value in metadata or ()]


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(NOT_LOGGED)
