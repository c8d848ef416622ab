"""Spans on their way to a collector; one that is away or silent costs a line in the log, and no request anything.

Imported only where traces are asked for: OpenTelemetry's SDK need not be installed.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_TIMEOUT
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

import finetune

log = logging.getLogger(__name__)

# A collector that takes longer is behind: what waits for it meanwhile has a bound, and is lost beyond that.
TIMEOUT_S = "5"
# Between two lines about a collector that goes on failing.
TELL_AGAIN_S = 60.0


def open_provider() -> TracerProvider:
    """Return what makes spans and sends them where OpenTelemetry's variables point; to be shut down by the caller."""
    os.environ.setdefault(OTEL_EXPORTER_OTLP_TIMEOUT, TIMEOUT_S)
    ours = Resource.create({SERVICE_NAME: "finetune-service", SERVICE_VERSION: finetune.__version__})
    # what the variables name comes first
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(SpanProcessor(SpanExporter()))
    return provider


class SpanProcessor(BatchSpanProcessor):
    """Keeps queries from leaving, as the log does: clients put there what is not for everybody."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        super().on_start(span, parent_context)
        if span.attributes and "url.query" in span.attributes:
            span.set_attribute("url.query", "REDACTED")


class SpanExporter(trace_exporter.OTLPSpanExporter):
    """Says that spans are lost once a minute, and once when they are sent again, in place of three lines a batch."""

    def __init__(self) -> None:
        super().__init__()
        self._lost, self._told, self._reason = 0, -math.inf, ""
        self._logger = logging.getLogger(trace_exporter.__name__)
        self._logger.addFilter(self._keep_reason)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._reason = ""
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.warning("spans are sent again; %d were lost", self._lost)
            self._lost, self._told = 0, -math.inf
        else:
            self._lost += len(spans)
            if time.monotonic() - self._told > TELL_AGAIN_S:
                self._told = time.monotonic()
                log.warning("spans cannot be sent, and are lost: %s", self._reason)
        return result

    def shutdown(self) -> None:
        super().shutdown()  # type: ignore[no-untyped-call]
        self._logger.removeFilter(self._keep_reason)

    def _keep_reason(self, record: logging.LogRecord) -> bool:
        """Take a line of the exporter's own: the first of a batch says why, the others what became of it."""
        self._reason = self._reason or record.getMessage()
        return False
