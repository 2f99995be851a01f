"""A streaming HTTP client as cheap as a load needs: one connection a request, h11 over asyncio, nothing pooled.

Not `httpx`: its cost a chunk is that of a server, and then the client is what is measured.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11
import msgspec

_READ_BYTES = 1 << 16


class HTTPFailure(Exception):
    """An answer with another status than 200, or a connection that broke. Its text has no addresses in it."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go."""

    url: str
    headers: Mapping[str, str]

    async def post(self, path: str, body: Any) -> AsyncGenerator[bytes, None]:
        """The parts of the answer's body as they come. Raises HTTPFailure."""
        async for part in self._exchange("POST", path, msgspec.json.encode(body)):
            yield part

    async def get(self, path: str) -> Any:
        """A JSON answer. Raises HTTPFailure."""
        body = b"".join([part async for part in self._exchange("GET", path, b"")])
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise HTTPFailure(f"{path} is not JSON") from error

    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        parts = urlsplit(self.url)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure)
        except OSError as error:
            raise HTTPFailure(f"cannot connect: {error.strerror or type(error).__name__}") from error
        try:
            connection = h11.Connection(h11.CLIENT)
            writer.write(self._request(connection, method, parts.path.rstrip("/") + path, body))
            async for part in _answer(connection, reader):
                yield part
        except (OSError, h11.RemoteProtocolError) as error:
            raise HTTPFailure(f"the connection broke: {type(error).__name__}") from error
        finally:
            writer.close()

    def _request(self, connection: h11.Connection, method: str, target: str, body: bytes) -> bytes:
        headers = {"host": urlsplit(self.url).netloc, "connection": "close", "content-length": str(len(body))}
        if body:
            headers["content-type"] = "application/json"
        request = h11.Request(method=method, target=target, headers=[*headers.items(), *self.headers.items()])
        events = (request, h11.Data(body), h11.EndOfMessage())
        return b"".join(connection.send(event) or b"" for event in events)


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncGenerator[bytes, None]:
    refused: int | None = None
    refusal = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            refused = event.status_code
        elif isinstance(event, h11.Data):
            if refused is None:
                yield bytes(event.data)
            else:
                refusal += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    if refused is not None:
        raise HTTPFailure(f"{refused} {refusal[:200].decode('utf-8', 'replace')}".strip())
