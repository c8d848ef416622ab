"""LitServe with its batching: photos are decoded as requests come in and run together, up to 4 after up to 5 ms.

DEVICE=cpu WORKERS=1 python benchmarks/peers/serve_litserve.py BUNDLE PORT

Each worker decodes one photo after another and has a model of its own.
"""

import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from fastapi import UploadFile

from benchmarks.peers.plain_model import PlainModel


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = PlainModel(Path(sys.argv[1]))

    def decode_request(self, request: UploadFile) -> np.ndarray:
        return self.model.load(request.file.read())

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> list[np.ndarray]:
        return self.model.run(images)

    def unbatch(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        return rows

    def encode_response(self, row: np.ndarray) -> dict[str, Any]:
        return {"predictions": [self.model.explain(row)]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(max_batch_size=4, batch_timeout=0.005, api_path="/predict"),
        accelerator="cpu",
        workers_per_device=int(os.environ["WORKERS"]),
        timeout=60,
    )
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
