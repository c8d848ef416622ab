"""What a model has done since it was loaded, in the form of the Open Inference Protocol's statistics extension.

The same numbers are given to Prometheus under Triton's names: dashboards and scaling rules made for Triton work.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any, Literal

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, UnknownMetricFamily

from finetune.serving.request_times import RequestTimes

# Triton's: refused before it ran; its client has gone; the model could not run; anything else.
Failure = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
FAILURES: tuple[Failure, ...] = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

# Triton's names and words, but where another thing is counted, in the order of `Statistics.counters`.
COUNTERS = (
    ("nv_inference_request_success", "Number of successful inference requests, all batch sizes"),
    ("nv_inference_count", "Number of inferences performed (does not include cached requests)"),
    ("nv_inference_exec_count", "Number of model executions performed (does not include cached requests)"),
    ("nv_inference_request_duration_us", "Cumulative inference request duration in microseconds"),
    ("nv_inference_queue_duration_us", "Cumulative inference queuing duration in microseconds"),
    ("nv_inference_compute_input_duration_us", "Cumulative compute input duration in microseconds"),
    ("nv_inference_compute_infer_duration_us", "Cumulative compute inference duration in microseconds"),
    ("nv_inference_compute_output_duration_us", "Cumulative inference compute output duration in microseconds"),
)
FAILED = ("nv_inference_request_failure", "Number of failed inference requests, all batch sizes")
PENDING = ("nv_inference_pending_request_count", "Photos that are decoded, wait or run (Triton: requests that wait)")


class Duration:
    """How often something was done, and how long it took in all."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count, self.ns = 0, 0

    def add(self, seconds: float) -> None:
        """Take in what was done once."""
        self.count += 1
        self.ns += round(seconds * 1e9)

    def as_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


class Statistics:
    """One model version's counts; safe to use from several threads.

    As Triton counts: queue and compute times have one entry for each request that succeeded, inference_count is photos,
    execution_count and batch_stats are batches. A request's photos wait and run beside each other, in batches with
    those of other requests: of each part it has the longest time that one of its photos took.
    """

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version = name, version
        self._success, self._queue = Duration(), Duration()
        self._input, self._infer, self._output_ns = Duration(), Duration(), 0
        self._failures: dict[Failure, Duration] = {reason: Duration() for reason in FAILURES}
        self._batches: dict[int, Duration] = {}
        self._photos, self.photos_pending, self._last_ms = 0, 0, 0
        self._lock = Lock()

    def ran(self, photos: int, seconds: float) -> None:
        """photos: of one batch, each of which was in it for all of these seconds."""
        with self._lock:
            batch = self._batches.get(photos)
            if batch is None:
                batch = self._batches[photos] = Duration()
            batch.add(seconds)

    def formatted(self, seconds: float) -> None:
        """A request that has succeeded was written; over gRPC nobody measures that."""
        with self._lock:
            self._output_ns += round(seconds * 1e9)

    def pending(self, delta: int) -> None:
        with self._lock:
            self.photos_pending += delta

    def succeeded(self, photos: int, request_s: float, times: RequestTimes) -> None:
        with self._lock:
            self._photos += photos
            self._success.add(request_s)
            self._queue.add(times.waited_s)
            self._input.add(times.decoded_s)
            self._infer.add(times.ran_s)
            self._last_ms = time.time_ns() // 1_000_000

    def failed(self, reason: Failure, request_s: float) -> None:
        with self._lock:
            self._failures[reason].add(request_s)
            self._last_ms = time.time_ns() // 1_000_000

    def as_json(self) -> dict[str, Any]:
        """Return this version's entry in `model_stats`."""
        nothing = Duration().as_json()
        with self._lock:
            failed = self._failures.values()
            return {
                "name": self.name,
                "version": self.version,
                "last_inference": self._last_ms,
                "inference_count": self._photos,
                "execution_count": self._executions(),
                "inference_stats": {
                    "success": self._success.as_json(),
                    "fail": {"count": sum(one.count for one in failed), "ns": sum(one.ns for one in failed)},
                    "queue": self._queue.as_json(),
                    "compute_input": self._input.as_json(),
                    "compute_infer": self._infer.as_json(),
                    "compute_output": {"count": self._success.count, "ns": self._output_ns},
                    "cache_hit": nothing,
                    "cache_miss": nothing,
                },
                # photos are decoded before there is a batch, and answers are written after it
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": {"count": batch.count, "ns": 0},
                        "compute_infer": batch.as_json(),
                        "compute_output": {"count": batch.count, "ns": 0},
                    }
                    for size, batch in sorted(self._batches.items())
                ],
            }

    def counters(self) -> tuple[int, ...]:
        """Return what COUNTERS name, durations in microseconds."""
        with self._lock:
            durations = (self._success, self._queue, self._input, self._infer)
            counts = (self._success.count, self._photos, self._executions())
            return (*counts, *(duration.ns // 1000 for duration in durations), self._output_ns // 1000)

    def failures(self) -> dict[Failure, int]:
        with self._lock:
            return {reason: failed.count for reason, failed in self._failures.items()}

    def _executions(self) -> int:
        return sum(batch.count for batch in self._batches.values())


def triton_families(models: Iterable[Statistics]) -> Iterator[Metric]:
    """Yield the statistics of models under Triton's names.

    prometheus_client ends the name of every counter with _total, Triton's have no such ending: these families have no
    type here, and `Metrics.text` gives it to them.
    """
    labels = ("model", "version")
    families = [UnknownMetricFamily(*words, labels=labels) for words in COUNTERS]
    failed = UnknownMetricFamily(*FAILED, labels=(*labels, "reason"))
    waiting = GaugeMetricFamily(*PENDING, labels=labels)
    for model in models:
        names = (model.name, model.version)
        for family, count in zip(families, model.counters(), strict=True):
            family.add_metric(names, count)
        for reason, count in model.failures().items():
            failed.add_metric((*names, reason), count)
        waiting.add_metric(names, model.photos_pending)
    yield from (*families, failed, waiting)
