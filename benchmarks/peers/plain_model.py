"""A bundle's model as most people open one: onnxruntime with its own settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from finetune.bundle import INPUT, open_bundle
from finetune.preprocess import Pixels, load_pixels

TOP = 5
# by the variable DEVICE
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class PlainModel:
    def __init__(self, bundle: Path) -> None:
        found = open_bundle(bundle)
        self.labels, self.preprocessing = found.info.model.labels, found.info.model.preprocessing
        provider = PROVIDERS[os.environ["DEVICE"]]
        if provider != PROVIDERS["cpu"]:
            onnxruntime.preload_dlls()
        self.session = onnxruntime.InferenceSession(str(found.model), providers=[provider])
        # onnxruntime goes on without one that it cannot load
        if self.session.get_providers()[0] != provider:
            raise SystemExit(f"onnxruntime could not load its {provider}")

    def load(self, raw: bytes) -> Pixels:
        return load_pixels(raw, self.preprocessing)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """images: (N, size, size, 3); returns N rows of probabilities."""
        return list(self.session.run(None, {INPUT: images})[0])

    def explain(self, row: np.ndarray) -> dict[str, Any]:
        top = [{"label": self.labels[n], "probability": float(row[n])} for n in np.argsort(-row)[:TOP]]
        return {**top[0], "top": top}
