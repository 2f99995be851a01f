"""The one place that puts the server together: engine client, lifecycle, routes; and runs it until told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import chain

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mainspring.core.config import EngineConfig
from mainspring.core.errors import ErrorKind, RequestError, StartupError
from mainspring.core.plugins import load_plugins
from mainspring.server import probes
from mainspring.server.answers import json_response
from mainspring.server.chunks import StreamingProtocol
from mainspring.server.client import EngineClient, Observer
from mainspring.server.lifecycle import Lifecycle, RequestLimits, build_model, engine_state
from mainspring.server.openai import errors as openai_errors
from mainspring.server.openai import routes as openai_routes
from mainspring.server.openai.types import ErrorBody, ErrorResponse
from mainspring.server.progress import ProgressBars
from mainspring.server.prometheus import Metrics
from mainspring.server.source import ModelSource
from mainspring.server.tgi import errors as tgi_errors
from mainspring.server.tgi import routes as tgi_routes
from mainspring.server.tgi.types import ErrorResponse as TGIErrorResponse

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 5
"""For connections that still send their last bytes after the drain."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Everything that `serve` is told."""

    source: ModelSource
    engine: EngineConfig
    host: str = "127.0.0.1"
    port: int = 3000
    limits: RequestLimits = field(default_factory=RequestLimits)
    drain_seconds: float = 90.0
    access_log: bool = False
    vllm_metric_names: bool = False


def create_app(lifecycle: Lifecycle, payload_limit: int, extra_routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The ASGI application. Its lifespan starts the engine and ends it; it answers from the first moment."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        lifecycle.begin()
        try:
            yield
        finally:
            await lifecycle.close()

    app = Starlette(
        routes=[*probes.ROUTES, *tgi_routes.ROUTES, *openai_routes.ROUTES, *extra_routes],
        middleware=[Middleware(RequestIds)],
        exception_handlers={HTTPException: _unrouted, Exception: _defect},
        lifespan=lifespan,
    )
    app.state.lifecycle = lifecycle
    app.state.payload_limit = payload_limit
    return app


def create_lifecycle(options: ServerOptions, observers: Sequence[Observer] = ()) -> Lifecycle:
    """The engine client with what watches it. Must be called inside the event loop."""
    bars = ProgressBars(sys.stderr)
    engine = EngineClient(options.engine, on_progress=bars.show, observers=observers)
    metrics = Metrics(options.source.model_id, lambda: engine_state(engine), options.vllm_metric_names)
    build = build_model(options.source, options.engine.revision, options.limits, options.engine.max_waiting_requests)
    return Lifecycle(engine, options.source, metrics, build)


async def serve(options: ServerOptions) -> int:
    """Listen, load, serve, drain. Returns the exit code; raises StartupError when it cannot even listen."""
    listener = listen(options.host, options.port)
    plugins = load_plugins()
    for problem in plugins.problems:
        _log.warning("%s", problem)
    lifecycle = create_lifecycle(options, [*chain.from_iterable(plugins.manager.hook.mainspring_observers())])
    extra_routes = [*chain.from_iterable(plugins.manager.hook.mainspring_routes())]
    app = create_app(lifecycle, options.limits.payload_limit, extra_routes)
    server = HTTPServer(app, options.access_log)
    _log.info("listening on http://%s:%d, loading %s", *listener.getsockname()[:2], options.source.model_id)
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        _log.warning("whoever reaches this address can use the model: there is no authentication")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    waiting = [asyncio.create_task(stop.wait()), asyncio.create_task(lifecycle.ended.wait())]
    await asyncio.wait([serving, *waiting], return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    if stop.is_set():
        await lifecycle.drain(options.drain_seconds)
    server.should_exit = True
    await serving
    if lifecycle.startup_error is not None:
        raise lifecycle.startup_error
    return lifecycle.exit_code


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port that is taken is said before anything is loaded. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    listener.set_inheritable(True)
    return listener


class HTTPServer(uvicorn.Server):
    """uvicorn with its limits set and its signal handlers off: `serve` decides when to end."""

    def __init__(self, app: ASGIApp, access_log: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=StreamingProtocol,  # h11's parser: httptools takes headers of any size
                lifespan="on",
                log_level="info" if access_log else "warning",
                access_log=access_log,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
                server_header=False,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class RequestIds:
    """Gives every request an id, the client's own where it is well-formed, and says it in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


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
    failure = RequestError(ErrorKind.INTERNAL, "the server failed on this request")
    of_openai = request.scope["path"].startswith("/v1/")
    return openai_errors.error_response(failure) if of_openai else tgi_errors.error_response(failure)
