"""OpenTelemetry, which FastAPI speaks itself: a span a request, to wherever the usual variables point."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from importlib.util import find_spec
from typing import Any, Literal

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

from finetune.errors import FinetuneError

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"
# Asked every few seconds by machines; their traces would hide all others.
UNTRACED = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
# For the last spans, after grace_s; a collector that works takes thousands within it.
LAST_SPANS_S = 1.0


def telemetry(kind: Literal["none", "otlp"]) -> TelemetryConfig:
    """Return FastAPI's settings; raises FinetuneError where "otlp" has no package to send with, or no address."""
    # metrics are Prometheus' here, and logs have their own place; spans are sent by us, who do not wait for a collector
    settings: TelemetryConfig = {
        "tracing": False,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
    }
    if kind == "none":
        return settings
    if os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        log.warning("telemetry=otlp sends nothing, as OTEL_TRACES_EXPORTER=none says")
        return settings
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise FinetuneError("telemetry=otlp takes more packages: pip install 'finetune-service[telemetry]'")
    if not any(os.environ.get(name) for name in ENDPOINTS):
        example = f"{ENDPOINTS[0]}=http://localhost:4318"
        raise FinetuneError(f"telemetry=otlp has nowhere to send to: set {example}, or telemetry=none")
    name = next((name for name in PROTOCOLS if os.environ.get(name)), None)
    if name and os.environ[name] != HTTP:
        raise FinetuneError(f"telemetry=otlp speaks {HTTP}, and not {name}={os.environ[name]}; unset it")
    from finetune.serving.spans import open_provider

    settings |= {
        "tracing": True,
        "tracer_provider": open_provider(),
        "exclude": lambda scope: scope.get("path") in UNTRACED,
    }
    return settings


async def send_last(settings: TelemetryConfig) -> None:
    """Send what spans there are left, no longer than that: a collector may take a connection and never answer."""
    provider: Any = settings.get("tracer_provider")
    if provider is None:
        return
    # one that is not waited for to its end does not keep the process either
    sending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    sending.start()
    await asyncio.to_thread(sending.join, LAST_SPANS_S)
    if sending.is_alive():
        log.warning("the collector did not take the last spans within %g s; they are lost", LAST_SPANS_S)


def join_span(identity: str) -> dict[str, str]:
    """Tell the span of this request, where there is one, the request's id; return what the log says of its trace."""
    span = trace.get_current_span()
    span.set_attribute("finetune.request_id", identity)
    context = span.get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id)} if context.is_valid else {}
