"""One OpenTelemetry span a request, sent over OTLP: when it came, how long it waited and ran, what it cost.

Attributes follow the GenAI semantic conventions (opentelemetry.io/docs/specs/semconv/gen-ai); content is never among
them. A `traceparent` header makes the span a child of the caller's. The OpenTelemetry packages are an extra and are
imported only when traces are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from mainspring.core.errors import StartupError
from mainspring.core.request import SamplingParams
from mainspring.server.telemetry.outcome import Outcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_CALLER: ContextVar[Mapping[str, str]] = ContextVar("caller")
"""`path`, and the W3C trace headers that came with the request."""
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_FLUSH_MILLISECONDS = 3000


class Callers:
    """Remembers, for the time of a request, who made it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_HEADERS}
        token = _CALLER.set({"path": scope["path"], **headers})
        try:
            await self._app(scope, receive, send)
        finally:
            _CALLER.reset(token)


class SpanRecorder:
    """Turns outcomes into spans. All are kept (TGI's sampler); a collector may thin them out."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("mainspring")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, outcome: Outcome) -> None:
        """One span. It is sent later, from a thread of its own."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        caller = _CALLER.get({})
        operation = "chat" if "chat" in caller.get("path", "") else "text_completion"
        span = self._tracer.start_span(
            f"{operation} {outcome.model}",
            context=self._propagator.extract(dict(caller)),
            kind=SpanKind.SERVER,
            attributes={"gen_ai.operation.name": operation, **_attributes(outcome)},
            start_time=_wall_nanoseconds(outcome.received),
        )
        if outcome.first_token:
            span.add_event("first token", timestamp=_wall_nanoseconds(outcome.first_token))
        if outcome.failure is not None:
            span.set_status(Status(StatusCode.ERROR, outcome.failure))
        span.end(_wall_nanoseconds(outcome.ended))

    def close(self) -> None:
        """Send what is left, within a bound."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)
        self._provider.shutdown()


def start_tracing(endpoint: str, service_name: str) -> SpanRecorder:
    """Spans go to `endpoint` by OTLP over gRPC. Raises StartupError where the packages for it are missing."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise StartupError("--otlp-endpoint needs OpenTelemetry; run `pip install 'mainspring[otel]'`") from error
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return SpanRecorder(provider)


def _attributes(outcome: Outcome) -> dict[str, str | int | float | Sequence[str]]:
    found: dict[str, str | int | float | Sequence[str] | None] = {
        "gen_ai.provider.name": "mainspring",
        "gen_ai.request.model": outcome.model,
        "gen_ai.response.model": outcome.model,
        "gen_ai.response.finish_reasons": outcome.finish_reasons or None,
        "gen_ai.usage.input_tokens": outcome.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": outcome.cached_tokens,
        "error.type": outcome.failure,
        "validation_time": outcome.validation_seconds,
        "queue_time": outcome.queue_seconds,
        "total_time": outcome.ended - outcome.received,
    }
    if outcome.first_token:
        found["gen_ai.response.time_to_first_chunk"] = outcome.first_token - outcome.received
    if outcome.params is not None:
        found |= _request_attributes(outcome.params, outcome.choices)
    return {name: value for name, value in found.items() if value is not None}


def _request_attributes(params: SamplingParams, choices: int) -> dict[str, int | float | None]:
    return {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k or None,
        # The protocol's integers are signed; a seed that does not fit is left out.
        "gen_ai.request.seed": params.seed if params.seed is not None and params.seed < 2**63 else None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": params.presence_penalty or None,
        "gen_ai.request.choice.count": choices,
    }


def _wall_nanoseconds(instant: float) -> int:
    """A monotonic instant on the clock that spans are told in."""
    return time.time_ns() - int((time.monotonic() - instant) * 1e9)
