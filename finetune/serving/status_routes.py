"""What balancers, monitors and people look at: is it ready, what does it do, what can it be asked."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

from finetune.serving.described import Alive, Listing, Ready
from finetune.serving.metrics import Metrics
from finetune.serving.repository import Repository

PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# What /docs shows itself with, and as what.
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}


def status_router(repository: Repository, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["status"])
    # read once: no path of a client's is ever joined to a folder
    start_page = files("finetune.serving").joinpath("page.html").read_text(encoding="utf-8")
    assets = {name: files("fastapi_offline").joinpath("static", name).read_bytes() for name in ASSETS}

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", response_model=Alive)
    async def healthz() -> dict[str, str]:
        """Answer 200 while the process lives."""
        return {"status": "alive"}

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", response_model=Ready)
    async def readyz() -> dict[str, str]:
        """Answer 200 while every model answers on its device, until the server is told to end."""
        repository.require_ready()
        return {"status": "ready"}

    @router.head("/v2/health/live", include_in_schema=False)
    @router.get("/v2/health/live", response_class=Response)
    async def live() -> Response:
        """Answer 200 while the process lives."""
        return Response()

    @router.head("/v2/health/ready", include_in_schema=False)
    @router.get("/v2/health/ready", response_class=Response)
    async def ready() -> Response:
        """Answer 200 while every model answers on its device, until the server is told to end."""
        repository.require_ready()
        return Response()

    @router.get("/models", response_model=Listing)
    async def models() -> dict[str, Any]:
        """List the served models: their versions, labels, input size, and where they run."""
        return {"models": [model.describe() for model in repository.everything], "names": repository.names}

    @router.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        response_class=Response,
    )
    async def prometheus() -> Response:
        """Count everything, for Prometheus."""
        body, kind = metrics.text()
        return Response(body, media_type=kind)

    @router.head("/", include_in_schema=False)
    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(start_page, headers={"Content-Security-Policy": PAGE_POLICY})

    @router.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        shown = get_swagger_ui_html(
            # relative, so that the page works behind a gateway's path prefix too
            openapi_url="openapi.json",
            title="finetune-service",
            swagger_js_url="docs-assets/swagger-ui-bundle.js",
            swagger_css_url="docs-assets/swagger-ui.css",
            swagger_favicon_url="docs-assets/favicon.png",
        )
        shown.headers["Content-Security-Policy"] = DOCS_POLICY
        return shown

    @router.head("/docs-assets/{name}", include_in_schema=False)
    @router.get("/docs-assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return Response(assets[name], media_type=ASSETS[name], headers={"Cache-Control": "public, max-age=86400"})

    return router
