"""Health routes and metrics: what operators and orchestrators ask, in every phase."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mainspring.server.http.answers import json_response
from mainspring.server.lifecycle import Lifecycle
from mainspring.server.tgi.types import ErrorResponse


async def health(request: Request) -> Response:
    """TGI's `/health` and `/ping`: 200 without a body, or 503."""
    if _lifecycle(request).ready:
        return Response(status_code=200)
    return json_response(ErrorResponse("unhealthy", "healthcheck"), status=503)


async def live(request: Request) -> Response:
    """The process answers; nothing else is said."""
    return Response(status_code=200)


async def ready(request: Request) -> Response:
    """200 while requests are answered; else 503. Both name the phase."""
    lifecycle = _lifecycle(request)
    return json_response({"phase": lifecycle.phase}, status=200 if lifecycle.ready else 503)


async def metrics(request: Request) -> Response:
    """Prometheus text."""
    return Response(_lifecycle(request).metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _lifecycle(request: Request) -> Lifecycle:
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle


ROUTES = [
    Route("/", health, methods=["GET"]),
    Route("/health", health, methods=["GET"]),
    Route("/ping", health, methods=["GET"]),
    Route("/livez", live, methods=["GET"]),
    Route("/readyz", ready, methods=["GET"]),
    Route("/startupz", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
