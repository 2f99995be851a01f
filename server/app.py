"""The one place that puts the server together: engine client, lifecycle, routes; and runs it until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import chain

import pluggy
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Scope

from mainspring.core.config import EngineConfig
from mainspring.core.errors import ErrorKind, RequestError, StartupError
from mainspring.core.grammar.messages import AUTO
from mainspring.core.plugins import load_plugins
from mainspring.core.request import Ready
from mainspring.server.answer_formats import AnswerFormats, plugin_formats
from mainspring.server.engine.client import EngineClient, Observer
from mainspring.server.http import clouds, docs, probes
from mainspring.server.http.access import Access, check_exposure
from mainspring.server.http.answers import json_response
from mainspring.server.http.auth import Authentication, KeyRing
from mainspring.server.http.certificate import Certificate
from mainspring.server.http.connection import ConnectionLimits, HeaderLimits
from mainspring.server.http.listening import HTTPServer, listen
from mainspring.server.http.quota import Quotas
from mainspring.server.http.request_ids import RequestIds
from mainspring.server.lifecycle import Lifecycle, RequestLimits, build_model, engine_state
from mainspring.server.openai import errors as openai_errors
from mainspring.server.openai import routes as openai_routes
from mainspring.server.openai.types import ErrorBody, ErrorResponse
from mainspring.server.progress import ProgressBars
from mainspring.server.source import ModelSource
from mainspring.server.summary import Summary
from mainspring.server.telemetry import loop_lag
from mainspring.server.telemetry.outcome import Spans
from mainspring.server.telemetry.prometheus import Metrics
from mainspring.server.telemetry.step_metrics import StepMetrics
from mainspring.server.telemetry.tracing import Callers, SpanRecorder, start_tracing
from mainspring.server.tgi import errors as tgi_errors
from mainspring.server.tgi import routes as tgi_routes
from mainspring.server.tgi.types import ErrorResponse as TGIErrorResponse

_log = logging.getLogger(__name__)
_COLLECTION_THRESHOLDS = (20_000, 20, 100)
"""A prompt is a list of up to millions of numbers, and a collection walks through all of it while the event loop waits.
The default (700, 10, 10) walks through each one several times in its short life.
"""
_SWITCH_SECONDS = 0.0005
"""How long a thread that parses keeps the interpreter from the event loop, which asks for it again after every read and
write: with the default of 5 ms, fifty connections at once wait a second.
"""


@dataclass(frozen=True, slots=True)
class Traces:
    """Where spans are sent, and under what name."""

    endpoint: str
    service_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Everything that `serve` is told."""

    source: ModelSource
    engine: EngineConfig
    host: str = "127.0.0.1"
    port: int = 3000
    access: Access = field(default_factory=Access)
    certificate: Certificate | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    drain_seconds: float = 90.0
    pre_stop_seconds: float = 0.0
    """Between the signal to stop and the drain: not ready, but serving those who have not heard of it yet."""
    vllm_metric_names: bool = False
    compute_type: str | None = None
    """For the header x-compute-type; None takes the backend's name."""
    traces: Traces | None = None
    formats: AnswerFormats = field(default_factory=AnswerFormats)
    """How the model writes calls of tools and its thoughts."""
    grammar_engine: str | None = AUTO
    """What reads grammars; None: requests with one are refused."""
    processor_defaults: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What logits processors get where requests do not say, by their names and those of their parameters."""
    notes: tuple[str, ...] = ()
    """What the operator asked for and does not get, one sentence each."""


def create_app(
    lifecycle: Lifecycle, payload_limit: int, extra_routes: Sequence[BaseRoute] = (), *, access: Access | None = None
) -> Starlette:
    """The ASGI application. Its lifespan starts the engine and ends it; it answers from the first moment."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        lifecycle.begin()
        watch = asyncio.create_task(loop_lag.watch(lifecycle.metrics.loop_lag), name="loop-lag")
        try:
            yield
        finally:
            watch.cancel()
            await lifecycle.close()

    app = Starlette(
        routes=[*probes.ROUTES, *tgi_routes.ROUTES, *openai_routes.ROUTES, *clouds.ROUTES, *docs.ROUTES, *extra_routes],
        middleware=list(_middleware(access or Access())),
        exception_handlers={HTTPException: _unrouted, Exception: _defect},
        lifespan=lifespan,
    )
    app.state.lifecycle = lifecycle
    app.state.payload_limit = payload_limit
    app.state.reading = asyncio.Lock()
    return app


def _middleware(access: Access) -> Iterator[Middleware]:
    """From the outside in: even refusals have ids, and a browser may read them."""
    yield Middleware(RequestIds)
    yield Middleware(Callers)
    yield Middleware(HeaderLimits)
    if access.origins:
        yield Middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id"],
        )
    yield Middleware(Authentication, keys=access.keys, public=access.public)
    if access.quota:
        yield Middleware(Quotas, quota=access.quota, refuse=_overloaded)


def create_lifecycle(
    options: ServerOptions,
    observers: Sequence[Observer] = (),
    *,
    announce: Callable[[Ready, float], None] | None = None,
    spans: Spans | None = None,
) -> Lifecycle:
    """The engine client with what watches it. Must be called inside the event loop."""
    bars = ProgressBars(sys.stderr)
    steps = StepMetrics()
    engine = EngineClient(options.engine, on_progress=bars.show, observers=[steps.observe, *observers])
    metrics = Metrics(options.source.model_id, lambda: engine_state(engine), options.vllm_metric_names)
    metrics.registry.register(steps)
    build = build_model(
        options.source, options.engine, options.limits, options.compute_type, formats=options.formats,
        grammar_engine=options.grammar_engine, processor_defaults=options.processor_defaults,
    )  # fmt: skip
    return Lifecycle(engine, options.source, metrics, build, loaded=bars.close, announce=announce, spans=spans)


async def serve(options: ServerOptions) -> int:
    """Listen, load, serve, drain. Returns the exit code; raises StartupError when it cannot even listen."""
    stop = _told_to_stop(options.access.keys)  # first: whoever finds the port open may already stop the server
    if options.certificate is not None:
        options.certificate.check()
    gc.set_threshold(*_COLLECTION_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_SECONDS)
    listener = listen(options.host, options.port)
    check_exposure(listener, options.access)
    recorder = None
    if options.traces is not None:
        recorder = start_tracing(options.traces.endpoint, options.traces.service_name)
    try:
        lifecycle, app = _compose(options, listener, recorder)
    except StartupError:
        listener.close()
        raise
    server = HTTPServer(app, options.connections, options.certificate)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await _first_of(stop, lifecycle.ended, serving)
    if stop.is_set():
        stop.clear()
        if lifecycle.ready:  # else nobody sends anything yet
            lifecycle.leave()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(options.pre_stop_seconds):
                    await _first_of(stop, lifecycle.ended)
        await lifecycle.drain(options.drain_seconds)
    server.should_exit = True
    await serving
    if recorder is not None:
        await asyncio.to_thread(recorder.close)
    if lifecycle.startup_error is not None:
        raise lifecycle.startup_error
    return lifecycle.exit_code


async def _first_of(stop: asyncio.Event, ended: asyncio.Event, serving: asyncio.Task[None] | None = None) -> None:
    """Returns when the server is told to stop (again), cannot go on, or has ended."""
    events = [asyncio.create_task(event.wait()) for event in (stop, ended)]
    try:
        await asyncio.wait([*events, *([serving] if serving else [])], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in events:
            task.cancel()


def _told_to_stop(keys: KeyRing) -> asyncio.Event:
    """Set by SIGTERM and SIGINT. SIGHUP reads the file of keys again, where there is one."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if keys.file is not None:
        loop.add_signal_handler(signal.SIGHUP, _reload_keys, keys)
    return stop


def _reload_keys(keys: KeyRing) -> None:
    try:
        keys.reload()
        _log.info("the keys were read again")
    except StartupError as error:
        _log.error("%s; the keys stay as they were", error)


def _compose(
    options: ServerOptions, listener: socket.socket, recorder: SpanRecorder | None
) -> tuple[Lifecycle, Starlette]:
    """The application with what plugins add to it."""
    plugins = load_plugins()
    for problem in plugins.problems:
        _log.warning("%s", problem)
    options = _with_plugin_formats(options, plugins.manager)
    summary = _summary(options, listener)
    _log.debug("listening at %s, loading %s", summary.url, options.source.model_id)
    observers = [*chain.from_iterable(plugins.manager.hook.mainspring_observers())]
    lifecycle = create_lifecycle(options, observers, announce=summary.show, spans=recorder)
    extra_routes = [*chain.from_iterable(plugins.manager.hook.mainspring_routes())]
    return lifecycle, create_app(lifecycle, options.limits.payload_limit, extra_routes, access=options.access)


def _with_plugin_formats(options: ServerOptions, manager: pluggy.PluginManager) -> ServerOptions:
    """Raises StartupError for a format that nobody has, before anything is loaded."""
    found = plugin_formats(manager)
    for problem in found.problems:
        _log.warning("%s", problem)
    formats = replace(options.formats, tool_plugins=found.tools, reasoning_plugins=found.reasoning)
    formats.choose(None)
    return replace(options, formats=formats)


def _summary(options: ServerOptions, listener: socket.socket) -> Summary:
    scheme = "http" if options.certificate is None else "https"
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return Summary(
        url=f"{scheme}://{shown}:{port}",
        model_id=options.source.model_id,
        needs_key=bool(options.access.keys),
        notes=options.notes,
        stream=sys.stderr,
    )


async def _unrouted(request: Request, error: Exception) -> Response:
    """404 and 405, in the shape of the protocol that the path belongs to."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    text = f"{request.method} is not allowed here" if status == 405 else "there is no such route"
    if request.scope["path"].startswith("/v1/"):
        code = "method_not_allowed" if status == 405 else "not_found"
        return json_response(ErrorResponse(ErrorBody(text, "invalid_request_error", None, code)), status=status)
    return json_response(TGIErrorResponse(text, "not_found"), status=status)


async def _defect(request: Request, error: Exception) -> Response:
    """A defect of ours: the log has the trace, the client the documented shape."""
    return _error_response(request.scope, RequestError(ErrorKind.INTERNAL, "the server failed on this request"))


def _overloaded(scope: Scope, error: RequestError) -> Response:
    lifecycle: Lifecycle = scope["app"].state.lifecycle
    lifecycle.metrics.failed(error.kind)
    return _error_response(scope, error)


def _error_response(scope: Scope, error: RequestError) -> Response:
    of_openai = scope["path"].startswith("/v1/")
    return openai_errors.error_response(error) if of_openai else tgi_errors.error_response(error)
