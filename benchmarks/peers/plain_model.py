"""A bundle's model as most people open one: onnxruntime with its own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from finetune.bundle import INPUT, open_bundle
from finetune.preprocess import Pixels, load_pixels

TOP = 5


class PlainModel:
    def __init__(self, bundle: Path) -> None:
        found = open_bundle(bundle)
        self.labels, self.preprocessing = found.info.model.labels, found.info.model.preprocessing
        self.session = onnxruntime.InferenceSession(str(found.model), providers=["CPUExecutionProvider"])

    def load(self, raw: bytes) -> Pixels:
        return load_pixels(raw, self.preprocessing)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """images: (N, size, size, 3); returns N rows of probabilities."""
        return list(self.session.run(None, {INPUT: images})[0])

    def explain(self, row: np.ndarray) -> dict[str, Any]:
        top = [{"label": self.labels[n], "probability": float(row[n])} for n in np.argsort(-row)[:TOP]]
        return {**top[0], "top": top}
