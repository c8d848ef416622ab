"""What a server does, for Prometheus: GET /metrics.

Nothing here knows of HTTP. Every label comes from the program or from bundles, never from a client, so that no client
can make series without end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from finetune.serving.log_writer import lost_lines
from finetune.serving.model_metrics import MODEL, SECONDS, Families, ModelMetrics
from finetune.serving.statistics import triton_families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNTYPED_OF_TRITON = re.compile(rb"(?m)^(# TYPE nv_\w+) untyped$")


class Metrics:
    """One server's metrics, in a registry of their own; every method is safe to call from several threads.

    in_flight: requests that are being answered, with `inc`, `dec` and the context manager `track_inprogress`.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._requests = Counter(
            "finetune_requests", "Requests answered, over HTTP and gRPC.", ("route", "code"), registry=registry
        )
        self._seconds = Histogram(
            "finetune_request_seconds",
            "From arrival to the answer's end.",
            ("route",),
            registry=registry,
            buckets=SECONDS,
        )
        self.in_flight = Gauge("finetune_requests_in_flight", "HTTP requests being answered.", registry=registry)
        self._refusals = Counter("finetune_refusals", "Requests refused.", ("reason",), registry=registry)
        self._load_failures = Counter(
            "finetune_model_load_failures", "Times that a model could not be loaded.", ("model",), registry=registry
        )
        self._ready = Gauge("finetune_ready", "1 while every model answers and no end is near.", registry=registry)
        self._draining = Gauge("finetune_draining", "1 once it was told to end; it still answers.", registry=registry)
        self._families = Families(registry)
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._routes: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._lock = Lock()
        self._registry = registry
        registry.register(_OfModels(self))

    def text(self) -> tuple[bytes, str]:
        """Return the body and the content type of GET /metrics."""
        body = generate_latest(_WithoutTimes(self._registry))
        return UNTYPED_OF_TRITON.sub(rb"\1 counter", body), CONTENT_TYPE

    def request(self, route: str, code: int, seconds: float) -> None:
        """A request was answered; route: the template of its path, never the path itself."""
        children = self._routes.get((route, code))
        if children is None:
            children = self._requests.labels(route, code), self._seconds.labels(route)
            self._routes[route, code] = children
        children[0].inc()
        children[1].observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was refused; reason: a word of the program's."""
        self._refusals.labels(reason).inc()

    def loaded(
        self,
        name: str,
        version: str,
        provider: str,
        why: str,
        precision: str,
        labels: Sequence[str],
        reference: NDArray[np.float32] | None = None,
    ) -> ModelMetrics:
        """A model has answered on its provider; return where to count what it does, which starts at 0.

        reference: the right answers in its bundle, (photos, classes), for the drift; None where it has none.
        """
        with self._lock:
            self._forget(name, version)
            info = {"provider": provider, "why": why, "precision": precision}
            model = ModelMetrics(self._families, name, version, info, labels, reference)
            # a model that has come back has failed before, one that never did starts at 0
            self._load_failures.labels(name)
            self._models[name, version] = model
        return model

    def unloaded(self, name: str, version: str) -> None:
        """A model is no longer served; its series end."""
        with self._lock:
            self._forget(name, version)

    def load_failed(self, name: str) -> None:
        """A model's folder could not be loaded."""
        self._load_failures.labels(name).inc()

    def ready(self, ready: bool) -> None:
        self._ready.set(ready)

    def draining(self, draining: bool) -> None:
        self._draining.set(draining)

    @property
    def models(self) -> list[ModelMetrics]:
        """Every loaded model's, in the order of loading."""
        with self._lock:
            return list(self._models.values())

    def _forget(self, name: str, version: str) -> None:
        model = self._models.pop((name, version), None)
        if model is not None:
            model.forget()


class _OfModels:
    """Collects what is worked out when it is asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        models = self._metrics.models

        def gauge(name: str, words: str, *more: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(name, words, labels=(*MODEL, *more))

        info = gauge("finetune_model_info", "1 for each loaded model.", "provider", "why", "precision")
        psi = gauge("finetune_drift_psi", "Population stability index of recent answers to val and test.", "of")
        alert = gauge("finetune_drift_alert", "1 where the index exceeds 0.25 and chance.", "of")
        photos = gauge("finetune_drift_photos", "Photos of equal weight that recent answers stand for.")
        for model in models:
            names = (model.name, model.version)
            info.add_metric((*names, *model.info.values()), 1)
            if not model.drift.has_reference:
                continue
            photos.add_metric(names, model.drift.photos)
            for of, shift in (("classes", model.drift.of_classes), ("confidence", model.drift.of_confidence)):
                psi.add_metric((*names, of), shift.psi)
                alert.add_metric((*names, of), shift.alert)
        lost = CounterMetricFamily("finetune_log_lines_lost", "Lines that could not be written.", value=lost_lines())
        yield from (info, psi, alert, photos, lost)
        yield from triton_families(model.counted for model in models)


class _WithoutTimes:
    """A registry without the time at which each series began, a third of all lines otherwise."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
