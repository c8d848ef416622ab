"""What one served model does, photo by photo: its histograms, its statistics and its drift in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune.serving.drift import Drift
from finetune.serving.request_times import RequestTimes
from finetune.serving.statistics import Failure, Statistics

# 1 ms to 10 s: a photo on a GPU, and a queue that nobody should stand in.
SECONDS = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6, 1, 1.5, 2.5, 5, 10)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
# Each class of a model is a series that Prometheus keeps for weeks.
COUNTED_CLASSES = 100
OTHER = "other"
MODEL = ("model", "version")


class Families:
    """The metrics that every model has, in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, words: str, buckets: Sequence[float] = SECONDS) -> Histogram:
            return Histogram(name, words, MODEL, registry=registry, buckets=buckets)

        self.decode = histogram("finetune_decode_seconds", "Decoding and resizing one photo.")
        self.wait = histogram(
            "finetune_wait_seconds", "One photo's wait for a core, or on a GPU, decoded, for its batch."
        )
        self.run = histogram("finetune_run_seconds", "One batch through the model.")
        self.batch = histogram("finetune_batch_photos", "Photos in one batch; the sum is all photos.", BATCH_SIZES)
        self.confidence = histogram("finetune_confidence", "Probability of the predicted class.", CONFIDENCES)
        self.pending = Gauge(
            "finetune_pending_photos", "Photos that are decoded, wait or run.", MODEL, registry=registry
        )
        self.ready = Gauge(
            "finetune_model_ready",
            "1 while the model answers, 0 while it fails on its device.",
            MODEL,
            registry=registry,
        )
        self.predictions = Counter(
            "finetune_predictions",
            f"Photos by predicted class: the model's first {COUNTED_CLASSES} classes, the rest as '{OTHER}'.",
            (*MODEL, "label"),
            registry=registry,
        )

    @property
    def of_models(self) -> tuple[Histogram | Gauge, ...]:
        return self.decode, self.wait, self.run, self.batch, self.confidence, self.pending, self.ready


class ModelMetrics:
    """One loaded model version; every method is safe to call from several threads and costs microseconds.

    provider, why, precision: as the session and the bundle say. labels: the model's; the first 100 have a series each,
    by their order in the bundle, so that all servers of a model count the same ones.
    """

    def __init__(
        self,
        families: Families,
        name: str,
        version: str,
        info: dict[str, str],
        labels: Sequence[str],
        reference: NDArray[np.float32] | None,
    ) -> None:
        self.name, self.version, self.info = name, version, info
        fits = reference is not None and reference.shape[1:] == (len(labels),)
        self.drift = Drift(reference if fits else None)
        self._families = families
        self._labels = [label if number < COUNTED_CLASSES else OTHER for number, label in enumerate(labels)]
        self._statistics = Statistics(name, version)
        # looked up once: `labels` costs as much as all the rest
        self._decode, self._wait, self._run, self._batch, self._confidence = (
            family.labels(name, version)
            for family in (families.decode, families.wait, families.run, families.batch, families.confidence)
        )
        self._pending = families.pending.labels(name, version)
        self._ready = families.ready.labels(name, version)
        self.ready(True)
        self._predicted = [families.predictions.labels(name, version, label) for label in self._labels]

    def decoded(self, seconds: float) -> None:
        """A photo was decoded and resized in so long."""
        self._decode.observe(seconds)

    def waited(self, seconds: float) -> None:
        """A photo waited so long for a core, or a decoded one for its batch."""
        self._wait.observe(seconds)

    def ran(self, photos: int, seconds: float) -> None:
        """A batch of so many photos went through the model."""
        self._batch.observe(photos)
        self._run.observe(seconds)
        self._statistics.ran(photos, seconds)

    def formatted(self, seconds: float) -> None:
        """The probabilities of a request that succeeded were made an answer in so long."""
        self._statistics.formatted(seconds)

    def pending(self, delta: int) -> None:
        """So many photos more, or fewer, are decoded, wait or run."""
        self._pending.inc(delta)
        self._statistics.pending(delta)

    def ready(self, ready: bool) -> None:
        """It answers, or fails whatever it is asked."""
        self._ready.set(ready)

    def succeeded(self, photos: int, request_s: float, times: RequestTimes) -> None:
        """A request of so many photos was answered; request_s: from its arrival; times: of its photos."""
        self._statistics.succeeded(photos, request_s, times)

    def failed(self, reason: Failure, request_s: float = 0.0) -> None:
        """A request that had reached this model was not answered."""
        self._statistics.failed(reason, request_s)

    def answered(self, probabilities: NDArray[np.float32]) -> None:
        """The model said so, (N, classes); a row that is no number is left out."""
        classes, confidences = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
        if not all(map(math.isfinite, confidences)):
            # one NaN would stay in the sum of the histogram for ever
            known = [pair for pair in zip(classes, confidences, strict=True) if math.isfinite(pair[1])]
            classes, confidences = [number for number, _ in known], [confidence for _, confidence in known]
        for number, confidence in zip(classes, confidences, strict=True):
            self._predicted[number].inc()
            self._confidence.observe(confidence)
        self.drift.add(classes, confidences)

    def statistics(self) -> dict[str, Any]:
        """Return this version's entry in the `model_stats` of the statistics extension."""
        return self._statistics.as_json()

    @property
    def counted(self) -> Statistics:
        return self._statistics

    def forget(self) -> None:
        """Take this model's series out of the registry; what is still running may go on counting, unseen."""
        for family in self._families.of_models:
            family.remove(self.name, self.version)
        for label in set(self._labels):
            self._families.predictions.remove(self.name, self.version, label)
