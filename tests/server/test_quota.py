"""P19: each key has its own share; who uses it up hears when to come back, and nobody else notices."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mainspring.core.errors import RequestError
from mainspring.server.cli import main
from mainspring.server.http.access import Access
from mainspring.server.http.auth import KeyRing
from mainspring.server.http.quota import Quota, Quotas
from tests.server.conftest import RunningServer, options_for

pytestmark = pytest.mark.promise("P19")

LONG: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 2000}}
SHORT: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 1}}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_that_has_its_share_in_progress_waits_and_others_do_not(model_directory: Path) -> None:
    access = Access(keys=KeyRing(("first", "second")), quota=Quota(at_once=1))
    options = replace(options_for(model_directory, speed="1", overhead="0.02"), access=access)
    with RunningServer(options) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        running.wait_until_ready()
        with client.stream("POST", "/generate_stream", json=LONG, headers=bearer("first")) as held:
            assert held.status_code == 200
            lines = held.iter_lines()  # kept: when it is collected, the connection is closed
            next(lines)
            refused = client.post("/generate", json=SHORT, headers=bearer("first"))
            assert (refused.status_code, refused.headers.get("retry-after")) == (429, "1")
            assert refused.json()["error_type"] == "overloaded"
            chat = client.post("/v1/completions", json={"prompt": "x"}, headers=bearer("first"))
            assert (chat.status_code, chat.json()["error"]["code"]) == (429, "overloaded")
            assert client.get("/v1/models", headers=bearer("first")).status_code == 200
            assert client.post("/generate", json=SHORT, headers=bearer("second")).status_code == 200
            assert client.post("/generate", json=SHORT, headers=bearer("third")).status_code == 401
        while (status := client.post("/generate", json=SHORT, headers=bearer("first")).status_code) == 429:
            pass
        assert status == 200
        assert 'tgi_request_failure{err="overloaded"} ' in client.get("/metrics").text


def statuses(quotas: Quotas, key: str, count: int) -> list[int]:
    """What so many requests one after another are answered with."""
    scope: Scope = {"type": "http", "method": "POST", "headers": [(b"authorization", f"Bearer {key}".encode())]}
    found: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ask() -> None:
        for _ in range(count):
            await quotas(scope, receive, send)

    asyncio.run(ask())
    return found


def test_requests_a_minute_come_back_evenly() -> None:
    now = 0.0
    told: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response()(scope, receive, send)

    def refuse(scope: Scope, error: RequestError) -> Response:
        told.append(error.retry_after or 0)
        return Response(status_code=429)

    quotas = Quotas(app, Quota(a_minute=6), refuse, lambda: now)
    assert statuses(quotas, "one", 8) == [200] * 6 + [429] * 2
    assert statuses(quotas, "two", 1) == [200]
    assert told == [10.0, 10.0]
    now = 9.0
    assert statuses(quotas, "one", 1) == [429]
    assert told[-1] == pytest.approx(1.0)
    now = 21.0
    assert statuses(quotas, "one", 3) == [200, 200, 429]
    now = 10_000.0
    assert statuses(quotas, "one", 7) == [200] * 6 + [429]


def test_shares_need_keys(model_directory: Path) -> None:
    with pytest.raises(click.UsageError, match="give clients keys with --api-key"):
        main(["serve", str(model_directory), "--max-requests-per-key", "3"], standalone_mode=False)
