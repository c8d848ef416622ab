"""POST /predict: photos as people and scripts have them, answers by name."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from concurrent.futures import Executor
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from finetune.config import LimitsConfig
from finetune.errors import ImageError
from finetune.serving.asking import ask
from finetune.serving.bodies import Patience
from finetune.serving.direct import DirectRoute
from finetune.serving.predictor import Prediction
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository

# Of brackets in a body, of which each would become an object of many times its size; base64 has none.
MAX_NESTS = 100
# Of quotes beside those of photos.
MAX_QUOTES = 100


class Asked(BaseModel):
    """What a client may choose; each word is documented at /docs."""

    model: str | None = Field(None, description="which model; needed only where there are several")
    version: str | None = Field(None, description="which of its versions; the latest by default")
    top: int = Field(5, ge=1, le=1000, description="how many classes to list for each photo")


class Unreadable(BaseModel):
    """What stands in place of a prediction where one photo of several cannot be read."""

    error: str


class Answer(BaseModel):
    """One entry a photo, in the order of the request."""

    model: str
    version: str
    predictions: list[Prediction | Unreadable]


def predict_router(repository: Repository, limits: LimitsConfig, parsing: Executor) -> APIRouter:
    """parsing: threads for what takes long to parse."""
    router = APIRouter(tags=["predict"], route_class=DirectRoute)

    @router.post("/predict", openapi_extra=_body(limits.photos), response_model=Answer)
    async def predict(request: Request, query: Annotated[Asked, Query()]) -> Response:
        """Classify one photo or several. A photo that cannot be read has an error of its own; 422 where none can."""
        # an unknown name is refused before the photos are uploaded
        held = repository.hold(query.model, query.version)
        photos = await _read_photos(request, limits.photos, parsing)
        chosen = held or repository.choose(query.model, query.version)
        answering = chosen.classify([raw for _, raw in photos])
        patience = Patience(request.receive, limits.deadline_s)
        rows = await ask(chosen, len(photos), answering, patience, request.state.facts)
        began = time.perf_counter()
        predictions: list[Prediction | Unreadable] = []
        for (name, _), row in zip(photos, rows, strict=True):
            if isinstance(row, ImageError):
                predictions.append(Unreadable(error=f"{name}: {row}" if name else str(row)))
            else:
                predictions.append(chosen.predictor.explain(row, query.top))
        errors = [entry.error for entry in predictions if isinstance(entry, Unreadable)]
        if len(errors) == len(photos):
            raise Refusal(422, "; ".join(errors))
        chosen.metrics.formatted(time.perf_counter() - began)
        answer = Answer(model=chosen.name, version=chosen.version, predictions=predictions)
        return Response(to_json(answer), media_type="application/json")

    return router


def _body(most: int) -> dict[str, Any]:
    """Return what /docs says of the body; most: photos in one request."""
    binary = {"type": "string", "format": "binary"}
    photos = {"type": "array", "minItems": 1, "maxItems": most}
    form = {
        "type": "object",
        "minProperties": 1,
        "properties": {"photos": {**photos, "items": binary}},
        "additionalProperties": binary,
    }
    document = {
        "type": "object",
        "required": ["photos"],
        "properties": {"photos": {**photos, "items": {"type": "string", "format": "byte"}}},
    }
    return {
        "requestBody": {
            "required": True,
            "description": "one image as it is, a form with one part a photo, under any name, or JSON with base64",
            "content": {
                "image/*": {"schema": binary},
                "application/octet-stream": {"schema": binary},
                "multipart/form-data": {"schema": form, "encoding": {"photos": {"contentType": "image/*"}}},
                "application/json": {"schema": document},
            },
        }
    }


async def _read_photos(request: Request, most: int, parsing: Executor) -> list[tuple[str, bytes]]:
    """Return each photo's name and bytes; a raw body has no name."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        photos = await asyncio.get_running_loop().run_in_executor(parsing, _from_json, await request.body(), most)
    elif kind.startswith("multipart/"):
        photos = await _from_form(request, most)
    else:
        return [("", await request.body())]
    if len(photos) > most:
        raise _too_many(most)
    return photos


async def _from_form(request: Request, most: int) -> list[tuple[str, bytes]]:
    try:
        async with request.form(max_files=most, max_fields=most) as form:
            parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            photos = [(part.filename or f"photo {n}", await part.read()) for n, part in enumerate(parts, start=1)]
    except HTTPException as problem:
        if problem.detail.startswith("Too many files"):
            raise _too_many(most) from None
        if problem.detail.startswith("Too many fields"):
            hint = "send each photo as a part with a filename"
            raise Refusal(413, f"the form has more than {most} parts that are no files; {hint}") from None
        raise Refusal(problem.status_code, problem.detail) from None
    except ValueError:
        # names in what its charset= cannot decode
        raise Refusal(400, "the form cannot be read") from None
    if not photos:
        raise Refusal(422, "the form has no file; send each photo as a part with a filename")
    return photos


def _from_json(body: bytes, most: int) -> list[tuple[str, bytes]]:
    # before each becomes an object; base64 has no quotes of its own
    if body.count(b'"') > 2 * most + MAX_QUOTES:
        raise _too_many(most)
    if body.count(b"[") + body.count(b"{") > MAX_NESTS:
        raise Refusal(422, 'the body must be {"photos": ["...", ...]}, with nothing else in it')
    try:
        document = from_json(body)
    except ValueError as error:
        raise Refusal(400, f"the body cannot be read as JSON: {error}") from None
    photos = document.get("photos") if isinstance(document, dict) else None
    if not isinstance(photos, list) or not photos or not all(isinstance(photo, str) for photo in photos):
        raise Refusal(422, 'the body must be {"photos": ["...", ...]}, each photo a file in base64')
    return [(f"photo {n}", _from_base64(n, photo)) for n, photo in enumerate(photos, start=1)]


def _from_base64(number: int, text: str) -> bytes:
    # browsers make data: addresses; what stands before the comma says what the bytes themselves say better
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(422, f"photo {number} is no base64 (addresses of photos are not fetched)") from None


def _too_many(most: int) -> Refusal:
    return Refusal(413, f"too many photos in one request; at most {most} are taken")
