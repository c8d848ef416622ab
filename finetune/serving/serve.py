"""`finetune serve`: every model of a repository over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI

from finetune.config import ServeConfig
from finetune.errors import FinetuneError
from finetune.parallel import usable_cores
from finetune.serving import logs
from finetune.serving.app import create_app
from finetune.serving.connection import connection_type
from finetune.serving.grpc_server import GrpcServer
from finetune.serving.keys import read_keys
from finetune.serving.live import LiveModel, open_live
from finetune.serving.metrics import Metrics
from finetune.serving.repository import Repository
from finetune.serving.routes import Target
from finetune.serving.turns import Turns
from finetune.serving.unread import Unread

log = logging.getLogger(__name__)

# Beside connections: models, the log, sockets that listen.
OTHER_FILES = 100
# When the server ends: for clients that have connected, and speak TLS.
LAST_HANDSHAKES_S = 1


def main(config: ServeConfig) -> str:
    """Serve until SIGTERM or Ctrl-C; what is asked by then is answered first. A second signal ends it at once."""
    logs.set_up(logs.form_of(config.logs))
    try:
        _serve(config)
        # by the log, which nothing that cannot be written keeps from ending
        log.info("stopped")
        return ""
    finally:
        # what it ends of is the last line
        logs.flush()


def _serve(config: ServeConfig) -> None:
    failures: list[Exception] = []

    def stop(failure: Exception) -> None:
        failures.append(failure)
        server.should_exit = True

    _warn_of_few_files(config.limits.connections)
    service = assemble(config, stop)
    server = Server(_uvicorn_config(config, service), service, config)
    with _listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if config.tls_cert else "http"
        log.info("serving %s at %s://%s:%d", config.models, scheme, shown, port)
        # uvicorn raises the signal again after its orderly shutdown
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    if failures:
        raise failures[0]


class Service(NamedTuple):
    """An application, and what it answers from."""

    app: FastAPI
    repository: Repository
    metrics: Metrics
    beside: GrpcServer | None


def assemble(config: ServeConfig, on_failure: Callable[[Exception], None]) -> Service:
    """Build what answers requests, apart from connections and signals; nothing is opened before the application starts.

    on_failure: told what keeps the models from being opened. Raises FinetuneError for a repository or keys that cannot
    be used.
    """
    metrics = Metrics()
    cores, parsing = Turns(usable_cores()), ThreadPoolExecutor(2, "parse")

    def open_model(folder: Path, target: Target) -> LiveModel:
        return open_live(folder, target, config, cores, metrics)

    repository = Repository(config, open_model, metrics)
    keys = read_keys(config.keys)
    beside = GrpcServer(config, repository, metrics, keys) if config.grpc_port else None
    app = create_app(config, repository, metrics, keys, parsing, beside, on_failure)
    return Service(app, repository, metrics, beside)


class Server(uvicorn.Server):
    """Says first that it is not ready, for balancers to send nobody here any more, and only then takes no requests."""

    def __init__(self, config: uvicorn.Config, service: Service, serving: ServeConfig) -> None:
        super().__init__(config)
        self._repository, self._beside, self._drain_s = service.repository, service.beside, serving.drain_s
        # a client that has connected and says nothing is no connection to uvicorn before
        within = {"ssl_handshake_timeout": serving.limits.header_s}
        self._tls: dict[str, Any] = {"ssl": config.ssl, **within} if config.ssl else {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._captured_signals:
            log.warning("a second signal: ending at once")
            logging.shutdown()
            os._exit(128 + sig)
        self._captured_signals.append(sig)
        self._repository.drain()
        # a signal's handler runs between two lines of anything; the loop is told, and looks when it can
        self._loop.call_soon_threadsafe(self._end_after_draining)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, which does not say how long a client may take for TLS's handshake."""
        await self.lifespan.startup()
        backlog = self.config.backlog
        self.servers = [
            await self._loop.create_server(self._connection, sock=listener, backlog=backlog, **self._tls)
            for listener in sockets or []
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._beside is not None:
            # the application waits for it at its own end; both end in one time of grace
            self._ending = asyncio.create_task(self._beside.stop())
        # closing a port resets the connections that wait to be accepted, whose clients may have asked already
        waiting = [client for listener in sockets or [] for client in _last_clients(listener)]
        for server in self.servers:
            server.close()
        connecting = [self._loop.connect_accepted_socket(self._connection, client, **self._tls) for client in waiting]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*connecting, return_exceptions=True), LAST_HANDSHAKES_S)
        await super().shutdown(sockets)

    def _connection(self) -> asyncio.Protocol:
        kind = self.config.http_protocol_class
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    def _end_after_draining(self) -> None:
        self._loop.call_later(self._drain_s, setattr, self, "should_exit", True)


def _uvicorn_config(config: ServeConfig, service: Service) -> uvicorn.Config:
    limits = config.limits
    try:
        loaded = uvicorn.Config(
            service.app,
            http=connection_type(limits.header_s, limits.body_s, limits.connections, Unread(service.metrics)),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=math.ceil(limits.idle_s),
            timeout_graceful_shutdown=config.grace_s,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
        )
        loaded.load()
    except (OSError, ssl.SSLError) as error:
        raise FinetuneError(
            f"tls_cert={config.tls_cert} and tls_key={config.tls_key} cannot be used: {error}"
        ) from None
    return loaded


def _warn_of_few_files(connections: int) -> None:
    """Tell of a limit of the system's that is reached first: past it a connection is reset, without an answer."""
    # not known on Windows, where there is no such limit
    if sys.platform == "win32":
        return
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        log.warning(
            "%d open files are allowed, too few for limits.connections=%d, and connections past them are reset: set "
            "ulimit -n %d or more, or limits.connections=%d or less",
            *(allowed, connections, needed, max(1, allowed - OTHER_FILES)),
        )


def _last_clients(listener: socket.socket) -> list[socket.socket]:
    """Accept all who have connected, and let nobody else."""
    clients = []
    with contextlib.suppress(OSError):
        while True:
            clients.append(listener.accept()[0])
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    return clients


def _listen(host: str, port: int) -> socket.socket:
    """Bind the port before anything is loaded; raises FinetuneError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # bound alone, Linux would let another server bind it too
        listener.listen()
    except OSError as error:
        listener.close()
        raise FinetuneError(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}; "
            "choose another port= (0 takes any free one) or host="
        ) from None
    return listener
