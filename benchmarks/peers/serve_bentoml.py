"""BentoML with its adaptive batching, in one worker.

BUNDLE=... bentoml serve --port PORT benchmarks.peers.serve_bentoml:Classifier
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from finetune.bundle import open_bundle
from finetune.preprocess import load_pixels
from finetune.serving.predictor import open_predictor


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 256})
class Classifier:
    def __init__(self) -> None:
        self.predictor = open_predictor(open_bundle(Path(os.environ["BUNDLE"])), "cpu")

    @bentoml.api(batchable=True, max_batch_size=4, max_latency_ms=10_000, route="/predict")
    def predict(self, photos: list[Path]) -> list[dict[str, Any]]:
        pixels = [load_pixels(photo.read_bytes(), self.predictor.preprocessing) for photo in photos]
        return [self.predictor.explain(row, 5).model_dump() for row in self.predictor.run(np.stack(pixels))]
