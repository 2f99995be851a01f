"""`EventStream` against a client that takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.responses import Response

from mainspring.server.http import sse


@pytest.mark.parametrize("takes", [True, False])
def test_a_client_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, takes: bool) -> None:
    monkeypatch.setattr(sse, "SEND_SECONDS", 0.05)
    closed: list[bool] = []
    sent: list[bytes] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            for _ in range(4):
                yield b"data: 1\n\n"
                await asyncio.sleep(0.06)  # longer than a send may take: a slow source is nobody's fault
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            if not takes and sent:
                await asyncio.Event().wait()
            sent.append(message["body"])

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def serve() -> None:
        stream = sse.EventStream(
            events(), refuse=lambda _: Response(), failure=lambda _: b"data: failed\n\n", headers={}
        )
        async with asyncio.timeout(5):
            await stream({"type": "http"}, receive, send)

    asyncio.run(serve())
    assert closed == [True]
    assert sent == ([b"data: 1\n\n"] * 4 + [b""] if takes else [b"data: 1\n\n"])
