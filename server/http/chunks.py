"""The chunks of streamed answers, at the price of a few bytes instead of a state machine's look at each.

A streaming server sends little else, and half of what h11 takes for a chunk is spent on making sure that chunks are
allowed. Everything that is received, and all that is sent but the chunks of a chunked body, stays h11's business.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_MAX_HEADER_BYTES = 16 * 1024
"""h11's own default."""
_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"


class ChunkConnection(h11.Connection):
    """An h11 connection that knows when a chunk may follow. Its bytes are h11's own (RFC 9112, section 7.1)."""

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self._in_chunks = False

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]  # h11's overloads say the same
        # An empty chunk would be the last one; h11 writes none.
        if self._in_chunks and type(event) is h11.Data and event.data:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        if type(event) is not h11.Data:
            self._in_chunks = False
        sent = super().send(event)
        if type(event) is h11.Response and sent is not None:
            self._in_chunks = _CHUNKED in sent.lower()
        return sent


class StreamingProtocol(H11Protocol):
    """uvicorn's h11 protocol over such connections, within the same limits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = ChunkConnection(config.h11_max_incomplete_event_size or _MAX_HEADER_BYTES)
