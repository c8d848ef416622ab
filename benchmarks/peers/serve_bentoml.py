"""BentoML with its adaptive batching; each worker has a model of its own.

BUNDLE=... DEVICE=cpu WORKERS=1 bentoml serve --port PORT benchmarks.peers.serve_bentoml:Classifier
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from benchmarks.peers.plain_model import PlainModel


@bentoml.service(workers=int(os.environ["WORKERS"]), traffic={"timeout": 60, "max_concurrency": 256})
class Classifier:
    def __init__(self) -> None:
        self.model = PlainModel(Path(os.environ["BUNDLE"]))

    @bentoml.api(batchable=True, max_batch_size=4, max_latency_ms=10_000, route="/predict")
    def predict(self, photos: list[Path]) -> list[dict[str, Any]]:
        pixels = [self.model.load(photo.read_bytes()) for photo in photos]
        return [self.model.explain(row) for row in self.model.run(np.stack(pixels))]
