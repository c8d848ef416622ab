"""A bundle behind Ray Serve: `serve run ray_serve:app` beside models/flowers; docs/deploy.md says what was run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from finetune.bundle import open_bundle
from finetune.errors import ImageError
from finetune.preprocess import load_pixels
from finetune.serving.live import SERVED_FORMATS
from finetune.serving.predictor import open_predictor


@serve.deployment(num_replicas=2, max_ongoing_requests=32, max_queued_requests=128, ray_actor_options={"num_cpus": 1})
class Classifier:
    def __init__(self, model: str) -> None:
        self.predictor = open_predictor(open_bundle(Path(model)), device="auto", threads=1)

    @serve.batch(max_batch_size=4, batch_wait_timeout_s=0)
    async def run(self, photos: list[Any]) -> list[Any]:
        return list(await asyncio.to_thread(self.predictor.run, np.stack(photos)))

    async def __call__(self, request: Request) -> Any:
        body = await request.body()
        try:
            pixels = await asyncio.to_thread(load_pixels, body, self.predictor.preprocessing, SERVED_FORMATS)
        except ImageError as error:
            return JSONResponse({"error": str(error)}, 422)
        return self.predictor.explain(await self.run(pixels), top=5).model_dump()


app = Classifier.bind("models/flowers")
