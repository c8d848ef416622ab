"""From photos to answers with an exported model; the same code serves, predicts in batches and judges parity."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from finetune.bundle import INPUT, OUTPUT, Bundle
from finetune.cores import CpuSession, at_work
from finetune.errors import FinetuneError, ImageError
from finetune.parallel import ordered_map, usable_cores
from finetune.preprocess import Pixels, Preprocessing, Readable, load_pixels
from finetune.progress import track
from finetune.providers import TENSORRT_BATCH
from finetune.runtime import Device, Session, open_session

# Photos that run at once. On a CPU each core does most with photos of its own, and a request of many photos costs no
# more memory than a request of few and lets others run in between.
CPU_BATCH, GPU_BATCH = 1, TENSORRT_BATCH
Probabilities = NDArray[np.float32]

log = logging.getLogger(__name__)


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
    """An open model that has answered on its device. `run` is safe to call from several threads.

    runs: how many calls of it at one time keep the device busy; more only wait for each other. batch_size: how many
    photos should be given to `run` at most.
    """

    def __init__(
        self,
        model: Path,
        labels: tuple[str, ...],
        preprocessing: Preprocessing,
        device: Device = "auto",
        threads: int | None = None,
        engine_cache: Path | None = None,
        gpu_memory_mb: int | None = None,
        batch: int | None = None,
    ) -> None:
        """batch: photos that `run` will be given at most; None takes what suits the device."""
        self.labels, self.preprocessing = labels, preprocessing
        self._threads, self._batch = threads, batch
        self.session = open_session(model, device, threads, engine_cache, gpu_memory_mb, self._try)

    def _try(self, session: Session) -> None:
        self.session, self.on_gpu = session, session.provider in ("cuda", "tensorrt")
        self.runs = 1 if self.on_gpu else self._threads or usable_cores()
        self.batch_size = self._batch or (GPU_BATCH if self.on_gpu else CPU_BATCH)
        self.warm_up()

    def warm_up(self) -> None:
        """Run blank photos through the model, on a GPU every number of them; raises where the device cannot do it."""
        size = self.preprocessing.image_size
        for photos in _up_to(self.batch_size) if self.on_gpu else dict.fromkeys((1, self.batch_size)):
            for answers in self._run_each(np.zeros((photos, size, size, 3), dtype=np.uint8)):
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

    def _run_each(self, images: NDArray[np.uint8]) -> list[Probabilities]:
        """Run in every way that `run` may choose."""
        if isinstance(self.session.ort, CpuSession):
            return [probabilities for (probabilities,) in self.session.ort.run_each([OUTPUT], {INPUT: images})]
        return [self.run(images)]

    def answer(self, files: Sequence[Readable], what: str) -> Probabilities:
        """Return probabilities (N, classes) of photos in order; what: said of it while it goes on.

        Raises ImageError or OSError for the first photo that cannot be read.
        """
        rows = []
        for row in track(self.answers(files), what, total=len(files)):
            if isinstance(row, Exception):
                raise row
            rows.append(row)
        return np.stack(rows)

    def answers(self, files: Iterable[Readable]) -> Iterator[Probabilities | ImageError | OSError]:
        """Yield the probabilities (classes,) of each photo in order, or why it cannot be read.

        `batch_size` of them run at once; alone, each is decoded and run by one core, while others do the same.
        """
        if self.batch_size == 1:
            yield from ordered_map(self._answer_alone, files)
            return
        opened = ordered_map(self._open, files)
        while taken := list(islice(opened, self.batch_size)):
            images = [pixels for pixels in taken if not isinstance(pixels, Exception)]
            rows = iter(self.run(np.stack(images)) if images else ())
            for pixels in taken:
                yield pixels if isinstance(pixels, Exception) else next(rows)

    def _answer_alone(self, file: Readable) -> Probabilities | ImageError | OSError:
        with at_work():
            pixels = self._open(file)
            return pixels if isinstance(pixels, Exception) else self.run(pixels[None])[0]

    def _open(self, file: Readable) -> Pixels | ImageError | OSError:
        try:
            return self.load(file)
        except (ImageError, OSError) as error:
            return error

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
    batch: int | None = None,
) -> Predictor:
    """Open a bundle's model on a device, and let it answer there."""
    card = bundle.info.model
    predictor = Predictor(
        bundle.model, card.labels, card.preprocessing, device, threads, engine_cache, gpu_memory_mb, batch
    )
    if predictor.on_gpu and bundle.info.asked.get("optimised"):
        log.warning(
            "%s version %s was exported with optimised=true, for CPUs: a GPU leaves those of its layers that it has no "
            "kernels for to the CPU, and reports %s; export it without",
            *(bundle.name, bundle.version, predictor.session.provider),
        )
    return predictor


def require_room(device: Device, photos: int | None, key: str) -> None:
    """Raise FinetuneError where a device cannot run so many at once; key: what they were asked for by."""
    if device == "tensorrt" and photos is not None and photos > TENSORRT_BATCH:
        raise FinetuneError(
            f"{key}={photos} is more than the {TENSORRT_BATCH} photos that TensorRT's engines are compiled for; "
            f"use {key}={TENSORRT_BATCH} or less"
        )


def _fill_up(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Add blank photos up to the next number that a GPU runs."""
    missing = _up_to(len(images))[-1] - len(images)
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])


def _up_to(photos: int) -> list[int]:
    """Return the numbers of photos that a GPU runs in place of so many or fewer.

    Powers of two: cuDNN looks for its algorithms anew at every number that it has not seen.
    """
    return [1 << power for power in range((photos - 1).bit_length() + 1)]


def on_each_provider(bundle: Bundle, device: Device) -> list[Predictor]:
    """Open a bundle's model on the device that is named; auto: on the CPU and on what else works here."""
    found = open_predictor(bundle, device)
    if device != "auto" or found.session.provider == "cpu":
        return [found]
    return [open_predictor(bundle, "cpu"), found]
