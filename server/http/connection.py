"""HTTP/1.1 connections with bounds that an ASGI application is too late to set, on uvicorn's h11 protocol.

A peer that dribbles its headers, sends a body that nobody will read, or opens connections without end costs a file
descriptor and a few kilobytes each until it is cut off here. Bodies that are read have their bounds in `body.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from mainspring.server.http.chunks import StreamingProtocol

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 100
READ_BYTES = 64 << 10
"""Taken from one connection at once, before others and the clients that wait for tokens have their turn. asyncio's own
256 KiB, of fifty connections that send large bodies, hold the event loop up for a tenth of a second.
"""
WRITE_BYTES = 32 << 10
"""What one connection may have waiting to be sent, beside the kernel's buffer, before its stream waits for it."""
_LINGER_SECONDS = 2.0
"""After an answer that did not wait for the end of its request's body, for the client to read that answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one peer may do before it has sent a whole request."""

    header_seconds: float = 10.0
    """From the connection's first byte, or a request's, to the end of its headers."""
    per_peer: int | None = None
    """Connections that one address may hold; None where a proxy stands before the server."""


def limited_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """uvicorn's h11 protocol within limits. The class carries them, since uvicorn makes the instances."""
    peers: Counter[str] = Counter()

    class LimitedProtocol(StreamingProtocol):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self._header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=WRITE_BYTES)
            transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # of asyncio's selector transports
            peers[self._peer] += 1
            if limits.per_peer is not None and peers[self._peer] > limits.per_peer:
                transport.abort()
            self._watch_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            peers[self._peer] -= 1
            if not peers[self._peer]:
                del peers[self._peer]
            self._stop_watching()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:
                self.loop.call_later(_LINGER_SECONDS, self._close_if_unread)

        @property
        def _peer(self) -> str:
            return self.client[0] if self.client else ""

        def _watch_headers(self) -> None:
            """The clock runs while a request's headers are on their way."""
            if self.conn.their_state is not h11.IDLE:
                self._stop_watching()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _stop_watching(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _close_if_unread(self) -> None:
            # uvicorn would read and forget the rest of a refused body for as long as the peer cares to send it.
            if self.conn.our_state is h11.DONE:
                self.transport.close()

    return LimitedProtocol


class HeaderLimits:
    """Refuses requests with more or longer headers than anybody needs, however they were cut into packets."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _fits(scope):
            await self._app(scope, receive, send)
            return
        text = f"more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them"
        await PlainTextResponse(text, 431, {"connection": "close"})(scope, receive, send)


def _fits(scope: Scope) -> bool:
    headers = scope["headers"]
    # Each line costs its colon, space and line break too.
    size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) + 4 for n, v in headers)
    return len(headers) <= MAX_HEADERS and size <= MAX_HEADER_BYTES
