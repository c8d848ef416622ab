"""The HTTP application: its layers, its routes, and how every error is told."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

import finetune
from finetune.config import ServeConfig
from finetune.serving.bodies import BodyLimits, ClientLeft
from finetune.serving.checks import look_after
from finetune.serving.envelope import Envelope
from finetune.serving.grpc_server import GrpcServer
from finetune.serving.guard import Guard
from finetune.serving.inference_routes import inference_router
from finetune.serving.interface import declare_headers, declare_keys, description
from finetune.serving.keys import Keys
from finetune.serving.metrics import Metrics
from finetune.serving.predict_route import predict_router
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository
from finetune.serving.status_routes import status_router
from finetune.serving.telemetry import send_last, telemetry

log = logging.getLogger(__name__)

# What pages of other origins may read of an answer.
EXPOSED = ["Retry-After", "Server-Timing", "X-Request-ID"]
REFUSED = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 504)


class Problem(BaseModel):
    """Every error of this server has this body."""

    error: str


def create_app(
    config: ServeConfig,
    repository: Repository,
    metrics: Metrics,
    keys: Keys,
    parsing: Executor,
    beside: GrpcServer | None,
    on_failure: Callable[[Exception], None],
) -> FastAPI:
    """Build the application over a repository that is opened, in the background, when it starts.

    parsing: threads for what takes long to parse; beside: begins and ends with it; on_failure: told what keeps the
    repository from being opened or from answering any more, or that one from listening.
    """

    traces = telemetry(config.telemetry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not keys.known and not _is_loopback(config.host):
            log.warning("no keys: anybody who reaches %s:%d may predict", config.host, config.port)
        tending = asyncio.create_task(_tend(repository, metrics, beside, on_failure))
        yield
        if beside is not None:
            await beside.stop()
        tending.cancel()
        with suppress(asyncio.CancelledError):
            await tending
        repository.close()
        parsing.shutdown(wait=False, cancel_futures=True)
        await send_last(traces)

    app = FastAPI(
        title="finetune-service",
        version=finetune.__version__,
        description=description(config.limits),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # what it would lead to, it takes from a header that clients write
        redirect_slashes=False,
        responses={status: {"model": Problem} for status in REFUSED},
        telemetry=traces,
    )
    limits = config.limits
    # a form's photos stay in memory, as raw bodies do: the container's disk may be read-only
    MultiPartParser.spool_max_size = int(limits.body_mb * 1e6)

    def refuse(refusal: Refusal) -> JSONResponse:
        headers = (
            {} if refusal.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(refusal.retry_after_s)))}
        )
        if refusal.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": str(refusal)}, refusal.status, headers)

    async def as_refusal(_: Request, problem: Exception) -> JSONResponse:
        assert isinstance(problem, Refusal)
        return refuse(problem)

    app.add_exception_handler(Refusal, as_refusal)
    app.add_exception_handler(HTTPException, _as_error)
    app.add_exception_handler(RequestValidationError, _as_wrong_parameter)
    app.add_exception_handler(ClientDisconnect, _as_left)
    app.add_exception_handler(ClientLeft, _as_left)
    # the one added last is the outermost: the envelope, which has to know all routes
    app.add_middleware(BodyLimits, limits=limits, refuse=refuse)
    app.add_middleware(Guard, keys=keys, per_client=limits.per_client, refuse=refuse)
    if config.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    app.include_router(predict_router(repository, limits, parsing))
    app.include_router(status_router(repository, metrics))
    app.include_router(inference_router(repository, limits, parsing))
    # what FastAPI makes of the routes is kept by it, and so is what is added
    declare_keys(app.openapi(), keys.keyless)
    declare_headers(app.openapi())
    paths = app.openapi()["paths"]
    app.add_middleware(Envelope, metrics=metrics, templates=paths, is_draining=lambda: repository.draining)
    return app


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _tend(
    repository: Repository, metrics: Metrics, beside: GrpcServer | None, on_failure: Callable[[Exception], None]
) -> None:
    try:
        if beside is not None:
            await beside.start()
        await repository.start()
        watching = asyncio.create_task(repository.watch())
        try:
            await look_after(repository, metrics)
        finally:
            watching.cancel()
    except Exception as failure:
        # a task has no caller to raise to: the server is told, stops, and reports it
        on_failure(failure)


async def _as_error(_: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, HTTPException)
    # the router's own words, of a path that it does not know
    said = "no such path; /docs lists them" if problem.detail == "Not Found" else problem.detail
    return JSONResponse({"error": said}, problem.status_code, problem.headers)


async def _as_wrong_parameter(_: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, RequestValidationError)
    reasons = [f"{error['loc'][-1]}={_shown(error.get('input'))}: {error['msg'].lower()}" for error in problem.errors()]
    return JSONResponse({"error": "; ".join(reasons)}, 422)


def _shown(value: Any) -> str:
    return str(value)[:100]


async def _as_left(_: Request, __: Exception) -> JSONResponse:
    """Nobody reads this answer; without it, a closed browser would be logged as a fault of ours."""
    return JSONResponse({"error": "the client closed the connection"}, 499)
