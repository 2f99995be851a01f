"""Traces: one span a request, true in time and number, under the caller's own span."""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mainspring.core.errors import StartupError
from mainspring.server.app import create_app, create_lifecycle
from mainspring.server.http.listening import HTTPServer
from mainspring.server.telemetry.tracing import SpanRecorder, start_tracing
from tests.server.conftest import MODEL_ID, RunningServer, options_for
from tests.server.sse_client import events
from tests.server.test_life import process, wait_until
from tests.support.tgi_rows import tgi

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = {"inputs": "secret words", "parameters": {"max_new_tokens": 4, "temperature": 0.5, "seed": 7}}


class TracedServer(RunningServer):
    """Keeps its spans in memory."""

    def __init__(self, directory: Path) -> None:
        super().__init__(options_for(directory))
        self.spans = InMemorySpanExporter()

    async def _serve(self) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.lifecycle = create_lifecycle(self._options, spans=SpanRecorder(provider))
        self._server = HTTPServer(create_app(self.lifecycle, 1_000_000))
        self._started.set()
        await self._server.serve(sockets=[self._listener])

    def span(self) -> ReadableSpan:
        """The only span since the last one."""
        wait_until(self.spans.get_finished_spans)
        (span,) = self.spans.get_finished_spans()
        self.spans.clear()
        return span


@pytest.fixture(scope="module")
def traced(model_directory: Path) -> Iterator[TracedServer]:
    with TracedServer(model_directory) as running:
        running.wait_until_ready()
        yield running


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_span_tells_of_its_request(traced: TracedServer) -> None:
    httpx.post(f"{traced.url}/generate", json=BODY, headers={"traceparent": CALLER})
    span = traced.span()
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "mainspring",
        "gen_ai.request.model": MODEL_ID,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 1,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 4,
    }
    assert attributes(span).items() >= expected.items()
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" in CALLER
    assert span.status.is_unset
    (first,) = span.events
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < first.timestamp < span.end_time
    assert "secret" not in span.to_json()


def test_chats_and_streams(traced: TracedServer) -> None:
    chat = {"messages": [{"role": "user", "content": "secret"}], "max_tokens": 3, "n": 2, "stream": True}
    events(httpx.post(f"{traced.url}/v1/chat/completions", json=chat))
    span = traced.span()
    assert span.name == f"chat {MODEL_ID}"
    assert attributes(span)["gen_ai.response.finish_reasons"] == ("length", "length")
    assert attributes(span)["gen_ai.request.choice.count"] == 2
    assert span.parent is None


@pytest.mark.parametrize("traceparent", ["", "nonsense", "ff-" + CALLER[3:], "00-" + "0" * 32 + CALLER[35:]])
def test_refusals_and_bad_callers(traced: TracedServer, traceparent: str) -> None:
    httpx.post(f"{traced.url}/generate", json={"inputs": ""}, headers={"traceparent": traceparent})
    span = traced.span()
    assert (attributes(span)["error.type"], span.parent) == ("invalid", None)
    assert not span.status.is_ok
    assert "gen_ai.request.max_tokens" not in attributes(span)


class Collector(otlp_grpc.TraceServiceServicer):
    """What an operator runs: takes spans by OTLP over gRPC."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.arrived = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.arrived.set()
        return otlp.ExportTraceServiceResponse()


@tgi("3 --otlp-endpoint", "3 --otlp-service-name")
def test_spans_reach_a_collector(model_directory: Path) -> None:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        flags = ("--otlp-endpoint", f"http://127.0.0.1:{port}", "--otlp-service-name", "mine")
        with process(model_directory, *flags) as (url, running):
            assert httpx.post(f"{url}/generate", json=BODY).is_success
            running.terminate()
            assert running.wait(20) == 0
        assert collector.arrived.wait(10)
    finally:
        server.stop(None)
    (resource,) = collector.requests[0].resource_spans
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "mine"
    (span,) = resource.scope_spans[0].spans
    assert span.name.startswith("text_completion ")


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(StartupError, match=r"pip install 'mainspring\[otel\]'"):
        start_tracing("http://127.0.0.1:1", "x")
