"""An id for every request: the client's own where it is well-formed. Answers and log lines carry it."""

from __future__ import annotations

import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mainspring.server.telemetry.logs import event, request_id

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_LONGEST_PATH = 200


class RequestIds:
    """Outermost of the middleware, so that refusals have ids too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        own_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", own_id)]
            await send(message)

        token = request_id.set(own_id.decode())
        begun = time.monotonic()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            # The raw path is ASCII without control characters, so that no client can write lines of its own.
            path = scope["raw_path"].decode("ascii", "replace")[:_LONGEST_PATH]
            milliseconds = round((time.monotonic() - begun) * 1000)
            event("http", method=scope["method"], path=path, status=status, e2e_ms=milliseconds)
            request_id.reset(token)
