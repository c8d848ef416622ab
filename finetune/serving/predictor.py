"""From photos to answers with an exported model; the same code serves, predicts in batches and judges parity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from finetune.bundle import INPUT, OUTPUT, Bundle
from finetune.errors import FinetuneError
from finetune.parallel import ordered_map, usable_cores
from finetune.preprocess import Pixels, Preprocessing, Readable, load_pixels
from finetune.progress import track
from finetune.providers import TENSORRT_BATCH
from finetune.runtime import Device, open_session

# Photos that run at once. On a CPU the activations of a few stay in its cache, and a request of many photos costs no
# more memory than a request of few and lets others run in between.
CPU_BATCH, GPU_BATCH = 4, TENSORRT_BATCH
# At one time; each holds activations of its own.
MOST_CPU_RUNS = 8
# What a GPU runs: cuDNN looks for its algorithms anew at every number of photos that it has not seen.
GPU_BATCHES = (1, 2, 4, 8, 16, GPU_BATCH)


class Score(BaseModel):
    """One class and how probable it is, 0 to 1."""

    label: str
    probability: float


class Prediction(BaseModel):
    """The answer for one photo; top: the most probable classes, best first."""

    label: str
    probability: float
    top: list[Score]


class Predictor:
    """An open model. `run` is safe to call from several threads."""

    def __init__(
        self,
        model: Path,
        labels: tuple[str, ...],
        preprocessing: Preprocessing,
        device: Device = "auto",
        threads: int | None = None,
        engine_cache: Path | None = None,
        gpu_memory_mb: int | None = None,
    ) -> None:
        self.labels, self.preprocessing = labels, preprocessing
        self.session = open_session(model, device, threads, engine_cache, gpu_memory_mb)
        self.on_gpu = self.session.provider in ("cuda", "tensorrt")

    @property
    def batch_size(self) -> int:
        """How many photos should be given to `run` at most."""
        return GPU_BATCH if self.on_gpu else CPU_BATCH

    @property
    def runs(self) -> int:
        """How many calls of `run` at one time keep the device busy; more only wait for each other.

        On a CPU the threads of one run wait for each other at every layer, and other runs fill these gaps.
        """
        return 1 if self.on_gpu else min(2 * usable_cores(), MOST_CPU_RUNS)

    def warm_up(self, most: int | None = None) -> None:
        """Run blank photos through the model on its device; raises where the device cannot do it after all.

        most: photos that `run` will be given at most, `batch_size` by default; a GPU sees every number it will run.
        """
        size, most = self.preprocessing.image_size, most or self.batch_size
        between = [photos for photos in GPU_BATCHES if 1 < photos < most] if self.on_gpu else []
        for photos in (1, *between, most):
            answers = self.run(np.zeros((photos, size, size, 3), dtype=np.uint8))
            if not np.isfinite(answers).all():
                provider = self.session.provider
                raise FinetuneError(f"on {provider} the model answers blank photos with numbers that are none")

    def load(self, file: Readable) -> Pixels:
        """Decode a photo on this machine, in any format that training reads; raises ImageError with the reason."""
        return load_pixels(file, self.preprocessing)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """images: (N, image_size, image_size, 3) uint8 RGB; returns probabilities (N, classes)."""
        photos = len(images)
        if self.on_gpu:
            images = _fill_up(images)
        (probabilities,) = self.session.ort.run([OUTPUT], {INPUT: images})
        answers: NDArray[np.float32] = probabilities
        return answers[:photos]

    def answer(self, files: Sequence[Readable], what: str) -> NDArray[np.float32]:
        """Return probabilities (N, classes) of photos in order; what: said of it while it goes on."""
        pixels = track(ordered_map(self.load, files), what, total=len(files))
        rows = []
        while batch := list(islice(pixels, self.batch_size)):
            rows.append(self.run(np.stack(batch)))
        return np.concatenate(rows)

    def explain(self, probabilities: NDArray[np.float32], top: int) -> Prediction:
        """probabilities: (classes,) of one photo; returns its `top` most probable classes by name."""
        order = np.argsort(-probabilities, kind="stable")[: max(1, top)]
        scores = [Score(label=self.labels[number], probability=float(probabilities[number])) for number in order]
        return Prediction(label=scores[0].label, probability=scores[0].probability, top=scores)


def open_predictor(
    bundle: Bundle,
    device: Device,
    threads: int | None = None,
    engine_cache: Path | None = None,
    gpu_memory_mb: int | None = None,
) -> Predictor:
    """Open a bundle's model on a device."""
    card = bundle.info.model
    return Predictor(bundle.model, card.labels, card.preprocessing, device, threads, engine_cache, gpu_memory_mb)


def _fill_up(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add blank photos up to the next number that a GPU runs; more than the largest is left as it is."""
    wanted = next((photos for photos in GPU_BATCHES if photos >= len(images)), len(images))
    return np.concatenate([images, np.zeros((wanted - len(images), *images.shape[1:]), np.uint8)])


def on_each_provider(bundle: Bundle, device: Device) -> list[Predictor]:
    """Open a bundle's model on the device that is named; auto: on the CPU and on what else works here."""
    found = open_predictor(bundle, device)
    if device != "auto" or found.session.provider == "cpu":
        return [found]
    return [open_predictor(bundle, "cpu"), found]
