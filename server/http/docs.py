"""The API's description: for programs at `/openapi.json`, for people at `/docs`, which loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from mainspring.server.http.answers import json_response
from mainspring.server.http.openapi import document

_PAGE = Path(__file__).with_name("docs.html")
_SCRIPT = Path(__file__).with_name("docs.js")
_POLICY = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"


async def openapi(request: Request) -> Response:
    """`GET /openapi.json`."""
    return json_response(document())


async def page(request: Request) -> Response:
    """`GET /docs`."""
    return HTMLResponse(_PAGE.read_bytes(), headers={"content-security-policy": _POLICY})


async def script(request: Request) -> Response:
    """What the page runs."""
    return Response(_SCRIPT.read_bytes(), media_type="text/javascript")


ROUTES = [
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/api-doc/openapi.json", openapi, methods=["GET"]),
    Route("/docs", page, methods=["GET"]),
    Route("/docs.js", script, methods=["GET"]),
]
