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
from typing import NamedTuple, cast

import uvicorn
from fastapi import FastAPI

from finetune.config import ServeConfig
from finetune.errors import FinetuneError
from finetune.parallel import usable_cores
from finetune.serving import logs
from finetune.serving.app import create_app
from finetune.serving.connection import connection_type
from finetune.serving.door import Door
from finetune.serving.grpc_server import GrpcServer
from finetune.serving.keys import read_keys
from finetune.serving.live import LiveModel, open_live
from finetune.serving.metrics import Metrics
from finetune.serving.open_connections import Guest, OpenConnections
from finetune.serving.placement import Placement
from finetune.serving.repository import Repository
from finetune.serving.routes import Target
from finetune.serving.turns import Turns
from finetune.serving.unread import Unread

log = logging.getLogger(__name__)

# Beside connections: models, the log, sockets that listen.
OTHER_FILES = 100
# For the log's last lines, where somebody does not want to wait any more.
SECOND_SIGNAL_S = 0.2


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
    server = Server(service, config)
    with _listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if config.tls_cert else "http"
        log.info("serving %s at %s://%s:%d", config.models, scheme, shown, port)
        # uvicorn raises the signal again after its orderly shutdown
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    # else the process would first do what nobody waits for any more
    service.cores.close()
    if failures:
        raise failures[0]


class Service(NamedTuple):
    """An application, and what it answers from."""

    app: FastAPI
    repository: Repository
    metrics: Metrics
    cores: Turns
    beside: GrpcServer | None


def assemble(config: ServeConfig, on_failure: Callable[[Exception], None]) -> Service:
    """Build what answers requests, apart from connections and signals; nothing is opened before the application starts.

    on_failure: told what keeps the models from being opened. Raises FinetuneError for a repository or keys that cannot
    be used.
    """
    metrics = Metrics()
    # a parser holds Python's lock until it is through: of two, one would hand it to the other, and not to the loop
    cores, parsing = Turns(usable_cores()), ThreadPoolExecutor(1, "parse")
    placement = Placement(config)

    def open_model(folder: Path, target: Target) -> LiveModel:
        return open_live(folder, target, config, placement, cores, metrics)

    repository = Repository(config, open_model, metrics)
    keys = read_keys(config.keys)
    beside = GrpcServer(config, repository, metrics, keys) if config.grpc_port else None
    app = create_app(config, repository, metrics, keys, parsing, beside, on_failure)
    return Service(app, repository, metrics, cores, beside)


class Server(uvicorn.Server):
    """Says first that it is not ready, for balancers to send nobody here any more, and only then takes no requests."""

    def __init__(self, service: Service, serving: ServeConfig) -> None:
        limits = serving.limits
        places, unread = OpenConnections(limits.connections), Unread(service.metrics)
        config = _uvicorn_config(serving, service, places, unread)
        super().__init__(config)
        self._repository, self._beside, self._drain_s = service.repository, service.beside, serving.drain_s
        # a client that closes, too, has read what was left for it before
        within = {"ssl_handshake_timeout": limits.header_s, "ssl_shutdown_timeout": limits.body_s}
        self._door = Door(self._connection, places, unread, config.ssl, **within)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._captured_signals:
            log.warning("a second signal: ending at once")
            logs.flush(SECOND_SIGNAL_S)
            os._exit(128 + sig)
        self._captured_signals.append(sig)
        self._repository.drain()
        # a signal's handler runs between two lines of anything; the loop is told, and looks when it can
        self._loop.call_soon_threadsafe(self._end_after_draining)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, to which a client is no connection before TLS's handshake is done."""
        await self.lifespan.startup()
        self.servers = []
        for listener in sockets or []:
            self._door.open(listener, self.config.backlog)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._beside is not None:
            # the application waits for it at its own end; both end in one time of grace
            self._ending = asyncio.create_task(self._beside.stop())
        await self._door.close()
        await super().shutdown(sockets)

    def _connection(self) -> Guest:
        kind = cast(Callable[..., Guest], self.config.http_protocol_class)
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _end_after_draining(self) -> None:
        self._loop.call_later(self._drain_s, setattr, self, "should_exit", True)


def _uvicorn_config(config: ServeConfig, service: Service, places: OpenConnections, unread: Unread) -> uvicorn.Config:
    limits = config.limits

    def ask_nobody() -> str:
        # Python would ask a terminal, and wait there
        raise FinetuneError(
            f"tls_key={config.tls_key} is encrypted, and nobody is asked for its pass phrase; give one that is not: "
            f"openssl pkey -in {config.tls_key} -out plain.key"
        )

    try:
        if config.tls_cert:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.tls_cert, config.tls_key, ask_nobody)
        loaded = uvicorn.Config(
            service.app,
            http=connection_type(limits.header_s, limits.body_s, places, unread),
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
    """Tell of a limit of the system's that is reached first: past it clients wait to be let in."""
    # not known on Windows, where there is no such limit
    if sys.platform == "win32":
        return
    import resource

    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        log.warning(
            "%d open files are allowed, too few for limits.connections=%d, and clients past them have to wait: set "
            "ulimit -n %d or more, or limits.connections=%d or less",
            *(allowed, connections, needed, max(1, allowed - OTHER_FILES)),
        )


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
