"""One version of one model that is open, warm and answering."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import Bundle, open_bundle
from finetune.config import HIDDEN_NAMES, BatchConfig, LimitsConfig, ServeConfig
from finetune.errors import FinetuneError, ImageError
from finetune.golden import read_answers
from finetune.parallel import usable_cores
from finetune.preprocess import Pixels, load_pixels
from finetune.serving.admission import Admission
from finetune.serving.batcher import Batcher, Probabilities
from finetune.serving.health import Health
from finetune.serving.lanes import Apart, Lane, LaneTimings, Together
from finetune.serving.metrics import Metrics
from finetune.serving.model_metrics import ModelMetrics
from finetune.serving.placement import Placement
from finetune.serving.predictor import Predictor
from finetune.serving.refusal import Refusal
from finetune.serving.routes import Target
from finetune.serving.turns import Turns

# What cameras, phones and browsers make. Pillow's rarer decoders are no risk a server should take.
SERVED_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")

Photo = TypeVar("Photo")

log = logging.getLogger(__name__)


class LiveModel:
    """Answers photos, those of several requests together; used from one event loop.

    Nobody closes it: requests that were given it keep it, and with the last of them its session and thread go. So
    nothing that it holds may hold it in turn.
    """

    def __init__(
        self,
        target: Target,
        bundle: Bundle,
        predictor: Predictor,
        cores: Turns,
        batch: BatchConfig,
        limits: LimitsConfig,
        metrics: ModelMetrics,
    ) -> None:
        """target: what it is served as; cores: threads that several models share."""
        self.name, self.version = target.model, str(target.version)
        self.bundle, self.predictor, self.metrics = bundle, predictor, metrics
        self.health = Health(f"{self.name} version {self.version}", predictor, metrics)
        self.request_photos = limits.photos
        self.delay_ms = batch.delay_ms
        together = predictor.batch_size * min(predictor.runs, usable_cores())
        self.admission = Admission(limits.queue_photos, limits.wait_s, together)
        self._lane = self._open_lane(cores, int(1e6 * limits.megapixels), _Timings(metrics, self.admission))

    async def classify(self, photos: Sequence[bytes]) -> list[Probabilities | ImageError]:
        """Return, for each file in order, its probabilities (classes,) or why it cannot be read.

        Raises Refusal 503 where too much is waiting. Cancelled, its photos leave the queue.
        """
        return await self._answer(photos, self._lane.classify)

    async def run(self, images: NDArray[np.uint8]) -> list[Probabilities | ImageError]:
        """Return the probabilities of each of the decoded photos (N, image_size, image_size, 3), as `classify` does."""
        return await self._answer(images, self._lane.run)

    def describe(self) -> dict[str, Any]:
        card, session = self.bundle.info.model, self.predictor.session
        return {
            "name": self.name,
            "version": self.version,
            "labels": card.labels,
            "image_size": card.preprocessing.image_size,
            "precision": self.bundle.info.precision,
            "provider": session.provider,
            "why": session.why,
        }

    async def _answer(
        self, photos: Sequence[Photo] | NDArray[np.uint8], answer: Callable[[Any], Awaitable[Probabilities]]
    ) -> list[Probabilities | ImageError]:
        try:
            rows = await self._rows(photos, answer)
        except Refusal:
            raise
        except Exception:
            self.health.failed()
            raise
        answered = [row for row in rows if not isinstance(row, ImageError)]
        # photos that cannot be read say nothing of the model
        if answered:
            self.health.answered()
            self.metrics.answered(np.stack(answered))
        return rows

    async def _rows(
        self, photos: Sequence[Photo] | NDArray[np.uint8], answer: Callable[[Any], Awaitable[Probabilities]]
    ) -> list[Probabilities | ImageError]:
        with self.admission.admit(len(photos)) as leave:

            async def one(photo: Any) -> Probabilities | ImageError:
                self.metrics.pending(1)
                try:
                    return await answer(photo)
                except ImageError as error:
                    self.admission.measure(1)
                    return error
                finally:
                    self.metrics.pending(-1)
                    leave()

            if len(photos) == 1:
                rows: list[Any] = [await one(photos[0])]
            else:
                # all of them end before a failure is passed on, so that none is left behind unheard
                rows = await asyncio.gather(*map(one, photos), return_exceptions=True)
        for row in rows:
            if isinstance(row, BaseException) and not isinstance(row, ImageError):
                raise row
            if isinstance(row, np.ndarray) and not np.isfinite(row).all():
                raise ArithmeticError(f"{self.name} version {self.version} answers with numbers that are none")
        return rows

    def _open_lane(self, cores: Turns, max_pixels: int, timings: LaneTimings) -> Lane:
        predictor, preprocessing = self.predictor, self.predictor.preprocessing

        def decode(raw: bytes) -> Pixels:
            return load_pixels(raw, preprocessing, SERVED_FORMATS, max_pixels)

        if predictor.batch_size == 1 and predictor.runs >= usable_cores():
            return Apart(self.name, predictor, decode, cores, timings)
        batcher = Batcher(predictor.run, predictor.batch_size, self.delay_ms / 1000, timings, predictor.runs)
        return Together(self.name, batcher, decode, cores, timings)


class _Timings(NamedTuple):
    """Hears of every batch."""

    metrics: ModelMetrics
    admission: Admission

    def decoded(self, seconds: float) -> None:
        self.metrics.decoded(seconds)

    def waited(self, seconds: float) -> None:
        self.metrics.waited(seconds)

    def ran(self, photos: int, seconds: float) -> None:
        self.metrics.ran(photos, seconds)
        self.admission.measure(photos)


def open_live(
    folder: Path, target: Target, config: ServeConfig, placement: Placement, cores: Turns, metrics: Metrics
) -> LiveModel:
    """Open one version, prove that its files are those that were exported, and let it answer on its device.

    Raises FinetuneError, or what onnxruntime raises.
    """
    if target.model in HIDDEN_NAMES:
        raise FinetuneError(f"{HIDDEN_NAMES[target.model]}: give the model {target.model} another name")
    bundle = open_bundle(folder)
    predictor = placement.open(bundle)
    if predictor.batch_size == 1 and config.batch.delay_ms:
        log.warning("batch.delay_ms=%g changes nothing as long as batch.photos=1", config.batch.delay_ms)
    answers = read_answers(folder)
    counted = metrics.loaded(
        target.model,
        str(target.version),
        predictor.session.provider,
        predictor.session.why,
        bundle.info.precision,
        predictor.labels,
        None if answers is None else answers.probabilities,
    )
    return LiveModel(target, bundle, predictor, cores, config.batch, config.limits, counted)
