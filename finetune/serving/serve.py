"""`finetune serve`: every model of a repository over HTTP."""

from __future__ import annotations

import contextlib
import logging
import socket

import uvicorn

from finetune.bundle import find_bundles
from finetune.config import ServeConfig
from finetune.errors import FinetuneError
from finetune.serving.app import create_app
from finetune.serving.served import Served

log = logging.getLogger(__name__)


def main(config: ServeConfig) -> str:
    """Serve until SIGTERM or Ctrl-C; running requests are finished first."""
    bundles = find_bundles(config.models)
    failures: list[Exception] = []

    def stop(failure: Exception) -> None:
        failures.append(failure)
        server.should_exit = True

    threads = None if config.threads == "auto" else config.threads
    served = Served(bundles, config.device, threads, stop, config.engine_cache)
    app = create_app(served, config.max_body_mb, config.max_photos)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=config.grace_s,
            server_header=False,
            lifespan="on",
        )
    )
    with _listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log.info("serving %s at http://%s:%d", ", ".join(bundle.name for bundle in bundles), shown, port)
        # uvicorn raises the signal again after its orderly shutdown
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    if failures:
        raise failures[0]
    return "stopped"


def _listen(host: str, port: int) -> socket.socket:
    """Bind the port before anything is loaded; raises FinetuneError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise FinetuneError(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}; "
            "choose another port= (0 takes any free one) or host="
        ) from None
    return listener
