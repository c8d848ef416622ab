"""OpenTelemetry, which FastAPI speaks itself: a span a request, to wherever the usual variables point."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

from fastapi.telemetry import TelemetryConfig

from finetune.errors import FinetuneError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# Asked every few seconds by machines; their traces would hide all others.
UNTRACED = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")


def telemetry(kind: Literal["none", "otlp"]) -> TelemetryConfig:
    """Return FastAPI's settings; raises FinetuneError where "otlp" has no package to send with, or no address."""
    if kind == "none":
        return {"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False}
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise FinetuneError("telemetry=otlp takes more packages: pip install 'finetune-service[telemetry]'")
    if not any(os.environ.get(name) for name in ENDPOINTS):
        example = f"{ENDPOINTS[0]}=http://localhost:4318"
        raise FinetuneError(f"telemetry=otlp has nowhere to send to: set {example}, or telemetry=none")
    # metrics are Prometheus' here, and logs have their own place
    return {
        "tracing": True,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": True,
        "exclude": lambda scope: scope.get("path") in UNTRACED,
    }
