"""The socket that the server listens on, and uvicorn behind it with its bounds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from mainspring.core.errors import StartupError
from mainspring.server.http.certificate import Certificate
from mainspring.server.http.connection import MAX_HEADER_BYTES, ConnectionLimits, limited_protocol

_CLOSE_SECONDS = 5
"""For connections that still send their last bytes after the drain."""
_SEND_BUFFER_BYTES = 64 << 10
_BACKLOG = 2048
"""Connections that wait to be accepted; the kernel may take fewer (listen(2))."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: a port that is taken is said before anything is loaded, and whoever connects meanwhile
    waits instead of being refused. Port 0 takes a free one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        # Connections inherit it. What a client does not read waits here; unasked, the kernel takes megabytes.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
    listener.set_inheritable(True)
    return listener


class HTTPServer(uvicorn.Server):
    """uvicorn with its limits set and its signal handlers off: `serve` decides when to end."""

    def __init__(
        self, app: ASGIApp, connections: ConnectionLimits | None = None, certificate: Certificate | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=limited_protocol(connections or ConnectionLimits()),  # httptools takes headers of any size
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                lifespan="on",
                log_level="error",  # of the rest, clients' mistakes among it, our own log tells
                access_log=False,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
                server_header=False,
                ssl_certfile=certificate.file if certificate else None,
                ssl_keyfile=certificate.key_file if certificate else None,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
