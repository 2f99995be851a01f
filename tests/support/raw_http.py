"""HTTP as bytes on a socket, for what a well-behaved client library would never send, hold back, or leave unread."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """All that came until the server closed."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events; `[DONE]` stays a string."""
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line.startswith(b"data: ")]
        return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]

    @property
    def error(self) -> Any:
        """The error of the last event, or of the body; None where there is none."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            last = self.events[-1] if self.events else {}
        else:
            last = json.loads(self.body)
        return last.get("error") if isinstance(last, dict) else None


def post(path: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """A request that asks for the connection's end; `body` may be bytes already."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {
        "host": "test",
        "connection": "close",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **(headers or {}),
    }
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + content


async def exchange(port: int, request: bytes) -> Reply:
    """Sends a request and reads to the end of the connection.

    Raises `ConnectionError` when the server closes without an answer.
    """
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await read_reply(reader, started)
    finally:
        writer.transport.abort()


async def read_reply(reader: asyncio.StreamReader, started: float) -> Reply:
    """An answer to its end, wherever one stands in it."""
    content = await reader.read(-1)
    if not content:
        raise ConnectionError("the server closed the connection without an answer")
    head, _, body = content.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Reply(int(first.split()[1]), headers, body, time.monotonic() - started)


def _joined(chunks: bytes) -> bytes:
    """The content of a chunked body; of one cut short, what is complete."""
    content = b""
    while chunks:
        size, found, rest = chunks.partition(b"\r\n")
        length = int(size, 16) if found else 0
        if length == 0 or len(rest) < length:
            break
        content += rest[:length]
        chunks = rest[length + 2 :]
    return content
