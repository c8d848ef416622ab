"""FastAPI around an onnxruntime session, as most people write it: POST /predict with one photo.

python benchmarks/peers/serve_fastapi.py BUNDLE PORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from finetune.bundle import open_bundle
from finetune.preprocess import load_pixels
from finetune.serving.predictor import open_predictor

predictor = open_predictor(open_bundle(Path(sys.argv[1])), "cpu")
app = FastAPI()


def classify(raw: bytes) -> dict[str, Any]:
    (row,) = predictor.run(load_pixels(raw, predictor.preprocessing)[None])
    return predictor.explain(row, 5).model_dump()


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    return {"predictions": [await run_in_threadpool(classify, await request.body())]}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
