"""Ten times more than it can do: who is refused hears it at once, and who is served is served as before (F23, P12)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.reliability.conftest import SIM
from tests.support.live_server import live_server
from tests.support.promises import Measured
from tests.support.raw_http import Reply, exchange, post

ROWS = 8
TOKENS = 10
STEP_SECONDS = 0.04
CAPACITY = ROWS / (TOKENS * STEP_SECONDS)
"""Requests a second: 20."""
REQUEST = post("/generate", {"inputs": "hello", "parameters": {"max_new_tokens": TOKENS}})


async def peak(port: int, seconds: float) -> float:
    """Requests a second while exactly as many are open as run at once, and a few more that wait."""
    served = 0
    until = time.monotonic() + seconds

    async def client() -> None:
        nonlocal served
        while time.monotonic() < until:
            reply = await exchange(port, REQUEST)
            served += reply.status == 200

    started = time.monotonic()
    await asyncio.gather(*(client() for _ in range(ROWS + 4)))
    return served / (time.monotonic() - started)


async def flood(port: int, rate: float, seconds: float) -> list[Reply]:
    """Requests at a steady rate, whatever becomes of them."""
    started = time.monotonic()
    sent: list[asyncio.Task[Reply]] = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(started + number / rate - time.monotonic())
        sent.append(asyncio.create_task(exchange(port, REQUEST)))
    return list(await asyncio.gather(*sent))


@pytest.mark.promise("F23", "P12")
@pytest.mark.parametrize(
    "bound", [("--max-queued-requests", "8"), ("--max-concurrent-requests", "16")], ids=["queue", "concurrent"]
)
def test_f23_p12_at_ten_times_the_load(bound: tuple[str, str], model: Path, tmp_path: Path, measured: Measured) -> None:
    seconds = 3.0
    options = ("--backend-option", f"overhead={STEP_SECONDS}", "--max-batch-size", str(ROWS))
    with live_server(str(model), tmp_path / "log", *SIM, *options, *bound) as server:
        best = asyncio.run(peak(server.port, 2.0))
        began = time.monotonic()
        replies = asyncio.run(flood(server.port, 10 * CAPACITY, seconds))
        took = time.monotonic() - began
        server.wait_until_idle(10)
    served = [reply for reply in replies if reply.status == 200]
    refused = sorted(reply.seconds for reply in replies if reply.status == 429)
    assert len(served) + len(refused) == len(replies)
    assert len(refused) > len(served)
    assert all(1 <= int(reply.headers["retry-after"]) <= 60 for reply in replies if reply.status == 429)
    assert all(reply.headers["x-generated-tokens"] == str(TOKENS) for reply in served)
    goodput = len(served) / took / best
    slowest = refused[int(0.99 * len(refused))]
    measured(
        f"{bound[0]}: goodput {100 * goodput:.0f} % of peak; 429 after {1000 * refused[len(refused) // 2]:.0f} ms "
        f"(median), {1000 * slowest:.0f} ms (p99), client and server on the same cores"
    )
    assert goodput > 0.7
    assert slowest < 1.0


@pytest.mark.promise("F23")
def test_f23_the_queue_is_bounded_by_tokens_too(model: Path, tmp_path: Path) -> None:
    flags = ("--backend-option", "overhead=0.05", "--max-batch-size", "1", "--max-queued-tokens", "3000")
    request = post("/generate", {"inputs": "x" * 1000, "parameters": {"max_new_tokens": 20}})

    async def all_at_once(port: int) -> list[Reply]:
        return list(await asyncio.gather(*(exchange(port, request) for _ in range(10))))

    with live_server(str(model), tmp_path / "log", *SIM, *flags) as server:
        statuses = sorted(reply.status for reply in asyncio.run(all_at_once(server.port)))
    assert set(statuses) == {200, 429}
    # One runs and three of a thousand tokens wait.
    assert 3 <= statuses.count(200) <= 5


@pytest.mark.promise("F23")
def test_f23_a_burst_that_fits_is_not_refused(model: Path, tmp_path: Path) -> None:
    flags = ("--backend-option", "overhead=0.2", "--max-batch-size", str(ROWS), "--max-queued-requests", "1")

    async def all_at_once(port: int) -> list[Reply]:
        return list(await asyncio.gather(*(exchange(port, REQUEST) for _ in range(ROWS + 1))))

    with live_server(str(model), tmp_path / "log", *SIM, *flags) as server:
        assert {reply.status for reply in asyncio.run(all_at_once(server.port))} == {200}
