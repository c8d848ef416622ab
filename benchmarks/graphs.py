"""What the benchmarks of exported graphs share: the graphs, photos to ask them about, and rates taken in turns."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from conformal_clip_data import textile_simulated_root
from numpy.typing import NDArray

from finetune.export.graph import exported_graph
from finetune.models.backbone import build_backbone, describe_backbone
from finetune.models.classifier import Classifier
from finetune.models.graph import INPUT
from finetune.preprocess import Preprocessing, load_pixels

IMAGE_SIZE = 224
# tf_efficientnet_lite0 has its real weights; of the other only the shape counts
NETWORKS = {"tf_efficientnet_lite0": "auto", "resnet50": "none"}


def export(name: str) -> onnx.ModelProto:
    """Return the graph of a network and an untrained head over its last layer."""
    torch.manual_seed(0)
    backbone, _ = build_backbone(name, IMAGE_SIZE, NETWORKS[name])
    return exported_graph(Classifier(describe_backbone(name), backbone, "last", 3).eval(), IMAGE_SIZE)[0]


def photos(number: int) -> NDArray[np.uint8]:
    """Return textile photos, (number, H, W, 3)."""
    preprocessing = Preprocessing(image_size=IMAGE_SIZE, fit="squash")
    files = sorted(Path(textile_simulated_root()).rglob("*.jpg"))
    return np.stack([load_pixels(path, preprocessing) for path in files[:: max(1, len(files) // number)][:number]])


def relative_rates(sessions: dict[str, Any], images: NDArray[np.uint8], turns: int) -> dict[str, float]:
    """Return how many times as fast as the first each session is: the median over turns, each session once a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        session.run(None, {INPUT: images})
    for _ in range(turns):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {INPUT: images})
            seconds[name].append(time.perf_counter() - started)
    first = next(iter(seconds.values()))
    return {
        name: statistics.median(one / other for one, other in zip(first, times, strict=True))
        for name, times in seconds.items()
    }
