"""The Open Inference Protocol, version 2, over HTTP: what KServe, Triton and their clients speak.

https://github.com/kserve/open-inference-protocol, with Triton's extensions for binary data, classification, model
configuration, statistics and the model repository.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from finetune.bundle import OUTPUT
from finetune.config import LimitsConfig
from finetune.errors import ImageError
from finetune.serving.bodies import Patience
from finetune.serving.compression import compress
from finetune.serving.described import AllStatistics, Configuration, IndexEntry, ModelMetadata, ServerMetadata
from finetune.serving.direct import DirectRoute
from finetune.serving.inference import (
    ENCODED,
    configuration,
    describe_model,
    describe_server,
    infer,
    require_no_content,
)
from finetune.serving.inference_schema import ANSWERED, ASKED, INDEX, LOAD
from finetune.serving.live import LiveModel
from finetune.serving.photos import from_base64
from finetune.serving.protocol import (
    HEADER_LENGTH,
    InferRequest,
    parse_parameters,
    parse_ready,
    parse_request,
    render_response,
)
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository

# Larger bodies are parsed on a thread, as they would keep everybody else waiting: these take 4 ms at worst.
PARSED_HERE_BYTES = 30_000
# Smaller answers would grow, or gain nothing.
COMPRESSED_BYTES = 1_000


def inference_router(repository: Repository, limits: LimitsConfig, parsing: Executor) -> APIRouter:
    """parsing: threads for what takes long to parse."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("", response_model=ServerMetadata)
    @router.get("/", include_in_schema=False)
    async def server() -> dict[str, Any]:
        """Name the server, its extensions, and where each model runs and why there."""
        return describe_server(repository)

    # before the routes of a name, as stats would be one
    @router.get("/models/stats", response_model=AllStatistics)
    async def all_statistics() -> dict[str, Any]:
        """Count what all models did since they were loaded."""
        return _statistics(repository.everything)

    # a function for each path, as a `version` that may be missing would become a parameter of the query
    @router.get("/models/{name}/stats", response_model=AllStatistics)
    async def statistics(name: str) -> dict[str, Any]:
        """Count what each version of a model, or of a route, did since it was loaded."""
        return _statistics(repository.find_all(name))

    @router.get("/models/{name}/versions/{version}/stats", response_model=AllStatistics)
    async def statistics_of_version(name: str, version: str) -> dict[str, Any]:
        """Count what a version of a model did since it was loaded."""
        return _statistics([repository.find(name, version)])

    @router.get("/models/{name}", response_model=ModelMetadata)
    async def metadata(name: str) -> dict[str, Any]:
        """Describe a model's inputs and outputs."""
        return describe_model(repository.find(name), repository.find_all(name))

    @router.get("/models/{name}/versions/{version}", response_model=ModelMetadata)
    async def metadata_of_version(name: str, version: str) -> dict[str, Any]:
        """Describe the inputs and outputs of a version of a model."""
        return describe_model(repository.find(name, version), repository.find_all(name))

    @router.get("/models/{name}/config", response_model=Configuration)
    async def config(name: str) -> dict[str, Any]:
        """Describe a model as Triton's configuration does."""
        return configuration(repository.find(name), repository.find_all(name))

    @router.get("/models/{name}/versions/{version}/config", response_model=Configuration)
    async def config_of_version(name: str, version: str) -> dict[str, Any]:
        """Describe a version of a model as Triton's configuration does."""
        return configuration(repository.find(name, version), repository.find_all(name))

    @router.get("/models/{name}/ready", response_class=Response)
    async def ready(name: str) -> Response:
        """Answer 200 while a model answers."""
        repository.require(name)
        return Response()

    @router.get("/models/{name}/versions/{version}/ready", response_class=Response)
    async def ready_of_version(name: str, version: str) -> Response:
        """Answer 200 while a version of a model answers."""
        repository.require(name, version)
        return Response()

    # with the prefix of its own: a nested route does not know that of the router around it, and metrics name it
    direct = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=DirectRoute)

    @direct.post("/models/{name}/infer", openapi_extra=ASKED, responses=ANSWERED, response_class=Response)
    async def classify(request: Request, name: str) -> Response:
        """Classify photos."""
        return await answer(request, name, None)

    @direct.post(
        "/models/{name}/versions/{version}/infer", openapi_extra=ASKED, responses=ANSWERED, response_class=Response
    )
    async def classify_with_version(request: Request, name: str, version: str) -> Response:
        """Classify photos with a version of a model."""
        return await answer(request, name, version)

    async def answer(request: Request, name: str, version: str | None) -> Response:
        held = repository.hold(name, version)
        body = await request.body()
        patience = Patience(request.receive, limits.deadline_s)
        header_length = request.headers.get(HEADER_LENGTH)
        if len(body) <= PARSED_HERE_BYTES:
            asked = _parse(body, header_length)
        else:
            work = asyncio.get_running_loop().run_in_executor(parsing, _parse, body, header_length)
            asked = await patience.wait_for(work)
        model = held or repository.choose(name, version)
        outputs = await infer(model, asked, limits, patience, request.state.facts)
        began = time.perf_counter()
        content, headers = render_response(asked, model.name, model.version, outputs, {OUTPUT: model.predictor.labels})
        model.metrics.formatted(time.perf_counter() - began)
        if len(content) >= COMPRESSED_BYTES:
            content, encoding = compress(content, request.headers.get("accept-encoding"))
            if encoding is not None:
                headers["Content-Encoding"] = encoding
                headers["Vary"] = "Accept-Encoding"
        return Response(content, headers=headers)

    @router.post("/repository/index", response_model=list[IndexEntry], openapi_extra=INDEX)
    async def index(request: Request) -> list[dict[str, str]]:
        """List every version that is served, and what could not be."""
        only_ready = parse_ready(await request.body())
        return [row for row in repository.index() if row["state"] == "READY" or not only_ready]

    @router.post("/repository/models/{name}/load", openapi_extra=LOAD, response_class=Response)
    async def load(request: Request, name: str) -> Response:
        """Open what is new of a model on disk, at once; takes the key of an admin."""
        require_no_content(parse_parameters(await request.body()))
        await repository.load(name)
        return Response()

    @router.post("/repository/models/{name}/unload", response_class=Response)
    async def unload(name: str) -> Response:
        """Let a model go until it is loaded again; takes the key of an admin."""
        await repository.unload(name)
        return Response()

    both = APIRouter()
    both.include_router(router)
    both.include_router(direct)
    return both


def _statistics(models: Iterable[LiveModel]) -> dict[str, Any]:
    return {"model_stats": [model.metrics.statistics() for model in models]}


def _parse(body: bytes, header_length: str | None) -> InferRequest:
    asked = parse_request(body, header_length)
    if header_length is not None or ENCODED not in asked.inputs:
        return asked
    # JSON cannot carry a file's bytes
    tensor, files = asked.inputs[ENCODED], []
    for number, element in enumerate(tensor.values if tensor.datatype == "BYTES" else ()):
        file = from_base64(element.decode())
        if isinstance(file, ImageError):
            raise Refusal(400, f"photo {number}: {file}")
        files.append(file)
    return replace(asked, inputs={**asked.inputs, ENCODED: replace(tensor, values=files)}) if files else asked
