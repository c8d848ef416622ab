"""Traces, received by a collector of our own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from finetune.cli import run
from tests.serving.conftest import Start


class Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Receive)

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
                    values = {entry.key: entry.value.string_value for entry in span.attributes}
                    self.server.spans.append((span.name, {**values, "trace": span.trace_id.hex()}))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, daemon=True)
    thread.start()
    yield collector
    collector.shutdown()
    collector.server_close()
    thread.join()


def test_a_request_leaves_a_trace_that_goes_on_from_its_callers(
    tiny_models: Path, collector: Collector, start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    server = start_server(tiny_models, "telemetry=otlp")
    raw = (tiny_models.parent / "photos" / "red" / "0.jpg").read_bytes()
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert httpx.post(f"{server.address}/predict", content=raw, headers=headers).status_code == 200
    server.process.terminate()
    assert server.process.wait(20) == 0
    ((name, attributes),) = collector.spans
    assert name == "POST /predict"
    assert attributes["trace"] == trace
    assert attributes["finetune.model"] == "tiny/1"


def test_nowhere_to_send_to_is_said(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert run(["serve", f"models={tiny_models}", "port=0", "telemetry=otlp", "logs=text"]) == 2
    assert "telemetry=otlp has nowhere to send to: set OTEL_EXPORTER_OTLP_ENDPOINT" in capsys.readouterr().err
