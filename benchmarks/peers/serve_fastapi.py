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

from benchmarks.peers.plain_model import PlainModel

model = PlainModel(Path(sys.argv[1]))
app = FastAPI()


def classify(raw: bytes) -> dict[str, Any]:
    (row,) = model.run(model.load(raw)[None])
    return model.explain(row)


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    return {"predictions": [await run_in_threadpool(classify, await request.body())]}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
