"""Traces, received by a collector of our own."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from finetune.cli import run
from finetune.serving.spans import SpanExporter, open_provider
from tests.ports import free_port
from tests.serving.conftest import Start


class Collector(ThreadingHTTPServer):
    def __init__(self, port: int = 0) -> None:
        self.spans: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", port), _Receive)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    entries = [*resource.resource.attributes, *span.attributes]
                    values = {entry.key: entry.value.string_value for entry in entries}
                    self.server.spans.append((span.name, {**values, "trace": span.trace_id.hex()}))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    collector = Collector(port)
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.shutdown()
    collector.server_close()
    thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def test_a_request_leaves_a_trace_that_goes_on_from_its_callers(
    tiny_models: Path, collector: Collector, start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    server = start_server(tiny_models, "telemetry=otlp")
    raw = (tiny_models.parent / "photos" / "red" / "0.jpg").read_bytes()
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Request-ID": "mine"}
    asked = f"{server.address}/predict?top=1&model=tiny"
    assert httpx.post(asked, content=raw, headers=headers).status_code == 200
    server.process.terminate()
    assert server.process.wait(20) == 0
    ((name, attributes),) = collector.spans
    assert name == "POST /predict"
    assert attributes["trace"] == trace
    assert attributes["finetune.model"] == "tiny/1"
    assert attributes["service.name"] == "finetune-service"
    assert attributes["url.query"] == "REDACTED"
    assert attributes["finetune.request_id"] == "mine"
    (logged,) = [entry for line in server.log.read_text().splitlines() if "status" in (entry := json.loads(line))]
    assert (logged["request_id"], logged["trace_id"]) == ("mine", trace)


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SERVICE_NAME", "flowers"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=flowers")]
)
def test_the_service_has_the_name_that_a_variable_gives_it(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv(name, value)
    provider = open_provider()
    provider.get_tracer("test").start_span("one").end()
    provider.shutdown()
    ((_, attributes),) = collector.spans
    assert attributes["service.name"] == "flowers"


def test_a_collector_that_never_answers_does_not_keep_it(
    tiny_models: Path, start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "600")
        server = start_server(tiny_models, "telemetry=otlp", "grace_s=1", "logs=text")
        assert httpx.get(f"{server.address}/models").status_code == 200
        server.process.terminate()
        # OpenTelemetry's own end takes 30 s, or as long as the exporter may try
        assert server.process.wait(25) == 0
    *_, lost, stopped = server.log.read_text().splitlines()
    assert lost == "the collector did not take the last spans within 1 s; they are lost"
    assert stopped == "stopped"


def test_a_collector_that_is_away_is_told_of_once_and_once_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    # for one pause, and no second
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2.5")
    spans = [TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span(f"{n}") for n in range(2)]
    exporter = SpanExporter()
    results = [exporter.export(spans) for _ in range(3)]
    with collecting(port) as back:
        results += [exporter.export(spans), exporter.export(spans)]
        assert [name for name, _ in back.spans] == ["0", "1"] * 2
    results.append(exporter.export(spans))
    exporter.shutdown()
    assert [result is SpanExportResult.SUCCESS for result in results] == [False] * 3 + [True] * 2 + [False]
    away, again, once_more = caplog.messages
    for told in (away, once_more):
        assert told.startswith("spans cannot be sent, and are lost: ")
        assert "refused" in told
    assert again == "spans are sent again; 6 were lost"


def test_nowhere_to_send_to_is_said(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert run(["serve", f"models={tiny_models}", "port=0", "telemetry=otlp", "logs=text"]) == 2
    assert "telemetry=otlp has nowhere to send to: set OTEL_EXPORTER_OTLP_ENDPOINT" in capsys.readouterr().err


def test_a_protocol_that_is_not_spoken_is_said(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert run(["serve", f"models={tiny_models}", "port=0", "telemetry=otlp", "logs=text"]) == 2
    told = "telemetry=otlp speaks http/protobuf, and not OTEL_EXPORTER_OTLP_PROTOCOL=grpc; unset it"
    assert told in capsys.readouterr().err
