"""POST /predict: photos as people and scripts have them, answers by name."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic_core import to_json

from finetune.config import LimitsConfig
from finetune.errors import ImageError
from finetune.serving.asking import ask
from finetune.serving.direct import DirectRoute
from finetune.serving.photos import read_photos
from finetune.serving.predictor import Prediction
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository


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
        photos, patience = await read_photos(request, limits, parsing)
        chosen = held or repository.choose(query.model, query.version)
        raws = [photo.raw for photo in photos if isinstance(photo.raw, bytes)]
        rows = iter(await ask(chosen, len(photos), chosen.classify(raws), patience, request.state.facts))
        began = time.perf_counter()
        predictions: list[Prediction | Unreadable] = []
        for name, raw in photos:
            row = next(rows) if isinstance(raw, bytes) else raw
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
