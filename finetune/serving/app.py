"""The HTTP interface."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

import finetune
from finetune.errors import ImageError
from finetune.parallel import usable_cores
from finetune.preprocess import Pixels, Preprocessing, load_pixels
from finetune.serving.predictor import Prediction
from finetune.serving.served import Served

log = logging.getLogger(__name__)

# What cameras, phones and browsers make. Pillow's rarer decoders are no risk a server should take.
SERVED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "one image as it is, or multipart/form-data with one part a photo, under any name",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"photos": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}


class Answer(BaseModel):
    """One prediction a photo, in the order of the request."""

    model: str
    version: str
    predictions: list[Prediction]


class Problem(BaseModel):
    """Every error of this server has this body."""

    error: str


def create_app(served: Served, max_body_mb: float, max_photos: int) -> FastAPI:
    """Build the application over models that may still be loading; `served.start` is called at startup."""
    decoding = ThreadPoolExecutor(usable_cores(), "decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.start()
        yield
        decoding.shutdown(wait=True, cancel_futures=True)

    problems: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 404, 413, 422, 503)}
    app = FastAPI(
        title="finetune-service",
        version=finetune.__version__,
        description="Image classification with models exported by `finetune export`.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    max_bytes = int(max_body_mb * 1e6)
    # a form's photos stay in memory, as raw bodies do: the container's disk may be read-only
    MultiPartParser.spool_max_size = max_bytes
    app.add_middleware(BodyLimit, max_bytes=max_bytes)
    app.add_exception_handler(HTTPException, _as_error)
    app.add_exception_handler(RequestValidationError, _as_wrong_parameter)
    app.add_exception_handler(ClientDisconnect, _as_left)
    app.add_exception_handler(Exception, _as_fault)
    app.mount("/docs-assets", StaticFiles(packages=[("fastapi_offline", "static")]))

    @app.post("/predict", responses=problems, openapi_extra=BODY)
    async def predict(
        request: Request,
        model: Annotated[str | None, Query(description="which model; needed only where there are several")] = None,
        top: Annotated[int, Query(ge=1, le=1000, description="how many classes to list for each photo")] = 5,
    ) -> Answer:
        """Classify one photo or several."""
        if not served.ready:
            raise HTTPException(503, "the models are still loading", headers={"Retry-After": "1"})
        chosen = served.choose(model)
        photos = await _read_photos(request, max_photos)
        loop = asyncio.get_running_loop()
        preprocessing = chosen.predictor.preprocessing
        decoded = [loop.run_in_executor(decoding, _load, preprocessing, name, raw) for name, raw in photos]
        results = [await future for future in decoded]
        pixels = [result for result in results if not isinstance(result, str)]
        if len(pixels) < len(results):
            raise HTTPException(422, "; ".join(reason for reason in results if isinstance(reason, str)))
        predictor = chosen.predictor
        predictions: list[Prediction] = []
        for start in range(0, len(pixels), predictor.batch_size):
            images = np.stack(pixels[start : start + predictor.batch_size])
            rows = await loop.run_in_executor(chosen.thread, predictor.run, images)
            predictions += [predictor.explain(row, top) for row in rows]
        return Answer(model=chosen.name, version=chosen.version, predictions=predictions)

    @app.get("/models")
    async def models() -> dict[str, Any]:
        """List the served models with their labels and input size."""
        return {"models": [model.describe() for model in served.models]}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer 200 while the process lives."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": Problem}})
    async def readyz() -> dict[str, str]:
        """Answer 200 once every model has answered on its provider."""
        if not served.ready:
            raise HTTPException(503, "the models are still loading", headers={"Retry-After": "1"})
        return {"status": "ready"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        content = files("finetune.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(content, headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            # relative, so that the page works behind a gateway's path prefix too
            openapi_url="openapi.json",
            title="finetune-service",
            swagger_js_url="docs-assets/swagger-ui-bundle.js",
            swagger_css_url="docs-assets/swagger-ui.css",
            swagger_favicon_url="docs-assets/favicon.png",
        )

    return app


class BodyLimit:
    """Refuses a body of too large a declared length before reading it, any other once it has grown too large."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = RequestBodyLimitMiddleware(app, max_body_size=max_bytes)
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if declared.isdecimal() and int(declared) > self.max_bytes:
            megabytes = f"{int(declared) / 1e6:.1f} MB in one request; at most {self.max_bytes / 1e6:g} MB are taken"
            await JSONResponse({"error": megabytes}, 413)(scope, receive, send)
            return
        await self.app(scope, receive, send)


async def _read_photos(request: Request, max_photos: int) -> list[tuple[str, bytes]]:
    """Return each photo's name and bytes, from a multipart body, or a raw one, which has no name."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return [("", await request.body())]
    try:
        async with request.form(max_files=max_photos, max_fields=max_photos) as form:
            parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            photos = [(part.filename or f"photo {n}", await part.read()) for n, part in enumerate(parts, start=1)]
    except HTTPException as problem:
        if problem.detail.startswith("Too many files"):
            raise HTTPException(413, f"too many photos in one request; at most {max_photos} are taken") from None
        raise
    if not photos:
        raise HTTPException(422, "the form has no file; send each photo as a part with a filename")
    return photos


def _load(preprocessing: Preprocessing, name: str, raw: bytes) -> Pixels | str:
    """Return pixels, or why there are none; all photos of a request are judged before it is refused."""
    try:
        return load_pixels(raw, preprocessing, SERVED_FORMATS)
    except ImageError as error:
        return f"{name}: {error}" if name else str(error)


async def _as_error(_: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, HTTPException)
    detail = problem.detail
    if detail == "Content Too Large":
        detail = "the body is larger than this server takes (max_body_mb)"
    return JSONResponse({"error": detail}, problem.status_code, problem.headers)


async def _as_wrong_parameter(_: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, RequestValidationError)
    reasons = [f"{error['loc'][-1]}={error.get('input')}: {error['msg'].lower()}" for error in problem.errors()]
    return JSONResponse({"error": "; ".join(reasons)}, 422)


async def _as_left(_: Request, __: Exception) -> JSONResponse:
    """Nobody reads this answer; without it, a closed browser would be logged as a fault of ours."""
    return JSONResponse({"error": "the client closed the connection"}, 499)


async def _as_fault(_: Request, fault: Exception) -> JSONResponse:
    """Internals go to the log, not to the client; the exception itself is logged by the server."""
    return JSONResponse({"error": "internal error; the server's log has the details"}, 500)
