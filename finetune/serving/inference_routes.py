"""The Open Inference Protocol, version 2, over HTTP: what KServe, Triton and their clients speak.

https://github.com/kserve/open-inference-protocol, with Triton's extensions for binary data, classification, model
configuration, statistics and the model repository.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

import finetune
from finetune.bundle import INPUT, OUTPUT
from finetune.config import LimitsConfig
from finetune.errors import ImageError
from finetune.serving.asking import Row, ask
from finetune.serving.compression import compress
from finetune.serving.live import LiveModel
from finetune.serving.protocol import HEADER_LENGTH, InferRequest, parse_request, render_response
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository
from finetune.serving.tensors import Tensor

ENCODED = "encoded_images"
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
# Larger bodies are parsed on a thread, as they would keep everybody else waiting.
PARSED_HERE_BYTES = 50_000
# Smaller answers would grow, or gain nothing.
COMPRESSED_BYTES = 1_000
BODY = {
    "requestBody": {
        "required": True,
        "description": f"`{INPUT}` UINT8 [N, H, W, 3], decoded, or `{ENCODED}` BYTES [N], files as they are",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def inference_router(repository: Repository, limits: LimitsConfig, parsing: Executor) -> APIRouter:
    """parsing: threads for what takes long to parse."""
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

    @router.get("")
    @router.get("/", include_in_schema=False)
    async def server() -> dict[str, Any]:
        """Name the server, its extensions, and where each model runs and why there."""
        models = [model.describe() for model in repository.everything]
        devices = [{key: model[key] for key in ("name", "version", "provider", "why")} for model in models]
        return {
            "name": "finetune-service",
            "version": finetune.__version__,
            "extensions": EXTENSIONS,
            "parameters": {"models": devices},
        }

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Describe a model's inputs and outputs."""
        return _metadata(repository.choose(name, version), repository.models.get(name, {}))

    @router.get("/models/{name}/config")
    @router.get("/models/{name}/versions/{version}/config")
    async def config(name: str, version: str | None = None) -> dict[str, Any]:
        """Describe a model as Triton's configuration does."""
        return _config(repository.choose(name, version))

    @router.get("/models/{name}/ready", response_class=Response)
    @router.get("/models/{name}/versions/{version}/ready", response_class=Response)
    async def ready(name: str, version: str | None = None) -> Response:
        """Answer 200 while a model answers."""
        repository.choose(name, version)
        return Response()

    @router.get("/models/stats")
    @router.get("/models/{name}/stats")
    @router.get("/models/{name}/versions/{version}/stats")
    async def statistics(name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Count what models did since they were loaded."""
        models = repository.everything if name is None else [repository.choose(name, version)]
        return {"model_stats": [model.metrics.statistics() for model in models]}

    @router.post("/models/{name}/infer", openapi_extra=BODY, response_class=Response)
    @router.post("/models/{name}/versions/{version}/infer", openapi_extra=BODY, response_class=Response)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Classify photos."""
        repository.choose(name, version)
        body = await request.body()
        header_length = request.headers.get(HEADER_LENGTH)
        if len(body) <= PARSED_HERE_BYTES:
            asked = parse_request(body, header_length)
        else:
            asked = await asyncio.get_running_loop().run_in_executor(parsing, parse_request, body, header_length)
        model = repository.choose(name, version)
        photos, answering = _answering(model, asked, limits.photos)
        # an unknown output is refused before the model runs
        asked.wanted((OUTPUT,))
        deadline_s = min(limits.deadline_s, asked.timeout_s or limits.deadline_s)
        rows = await ask(request, model, photos, deadline_s, answering)
        outputs = {OUTPUT: np.stack(_require_readable(rows))}
        answer, headers = render_response(asked, model.name, model.version, outputs, {OUTPUT: model.predictor.labels})
        if len(answer) >= COMPRESSED_BYTES:
            answer, encoding = compress(answer, request.headers.get("accept-encoding"))
            if encoding is not None:
                headers["Content-Encoding"] = encoding
                headers["Vary"] = "Accept-Encoding"
        return Response(answer, headers=headers)

    @router.post("/repository/index")
    async def index(request: Request) -> list[dict[str, str]]:
        """List every version that is served, and what could not be."""
        return repository.index()

    @router.post("/repository/models/{name}/load", response_class=Response)
    async def load(name: str) -> Response:
        """Open what is new of a model on disk, at once; takes the key of an admin."""
        await repository.load(name)
        return Response()

    @router.post("/repository/models/{name}/unload", response_class=Response)
    async def unload(name: str) -> Response:
        """Let a model go until it is loaded again; takes the key of an admin."""
        await repository.unload(name)
        return Response()

    return router


def _answering(model: LiveModel, asked: InferRequest, most: int) -> tuple[int, Awaitable[list[Row]]]:
    """Return the number of photos of a request, and what will answer them; raises Refusal 400 or 413."""
    if len(asked.inputs) != 1 or not set(asked.inputs) <= {INPUT, ENCODED}:
        raise Refusal(400, f"give one input: {INPUT} (UINT8 [N, H, W, 3]) or {ENCODED} (BYTES [N])")
    (tensor,) = asked.inputs.values()
    photos = tensor.shape[0] if tensor.shape else 0
    if photos < 1:
        raise Refusal(400, f"{tensor.name} has no photo")
    if photos > most:
        raise Refusal(413, f"too many photos in one request; at most {most} are taken")
    if tensor.name == INPUT:
        return photos, model.run(_decoded(tensor, model.predictor.preprocessing.image_size))
    if tensor.datatype != "BYTES" or tensor.shape[1:] not in ((), (1,)):
        raise Refusal(400, f"{ENCODED} must be BYTES [N], it is {tensor.datatype} {list(tensor.shape)}")
    return photos, model.classify(list(tensor.values))


def _decoded(tensor: Tensor, side_px: int) -> Any:
    if tensor.datatype != "UINT8" or tensor.shape[1:] != (side_px, side_px, 3):
        raise Refusal(
            400, f"{INPUT} must be UINT8 [N, {side_px}, {side_px}, 3], it is {tensor.datatype} {list(tensor.shape)}"
        )
    return tensor.values


def _require_readable(rows: list[Row]) -> list[Any]:
    errors = [f"photo {number}: {row}" for number, row in enumerate(rows) if isinstance(row, ImageError)]
    if errors:
        raise Refusal(400, "; ".join(errors))
    return rows


def _metadata(model: LiveModel, versions: dict[int, LiveModel]) -> dict[str, Any]:
    side_px = model.predictor.preprocessing.image_size
    return {
        "name": model.name,
        "versions": [str(number) for number in sorted(versions)] or [model.version],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": INPUT, "datatype": "UINT8", "shape": [-1, side_px, side_px, 3]},
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, len(model.predictor.labels)]}],
    }


def _config(model: LiveModel) -> dict[str, Any]:
    side_px = model.predictor.preprocessing.image_size
    decoded = {"name": INPUT, "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [side_px, side_px, 3]}
    encoded = {"name": ENCODED, "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(model.version)]}},
        "max_batch_size": model.most_photos,
        "input": [{**decoded, "optional": True}, {**encoded, "optional": True}],
        "output": [
            {
                "name": OUTPUT,
                "data_type": "TYPE_FP32",
                "dims": [len(model.predictor.labels)],
                "label_filename": "labels.txt",
            }
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": round(1000 * model.delay_ms)},
    }
