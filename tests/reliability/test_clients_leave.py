"""Clients that leave stop costing at once, and a server that leaves cuts nobody short (F6, F7, P5, P6)."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.conftest import SIM
from tests.support.live_server import LiveServer, listening_server, live_server
from tests.support.promises import Measured
from tests.support.raw_http import Reply, exchange, post

DROPS = 1000
GENERATED = "mainspring_generation_tokens_total"


def generate(max_new_tokens: int, *, inputs: str = "hello", stream: bool = True) -> bytes:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": max_new_tokens}}
    return post("/generate_stream" if stream else "/generate", body)


def chat(max_tokens: int, *, stream: bool = True) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    return post("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens, "stream": stream})


async def drop(port: int, request: bytes, dice: random.Random) -> None:
    """Hangs up before the body's end, in the queue, in prefill, in decode, or about when the last token comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        cut = dice.random() < 0.2
        writer.write(request[: dice.randrange(1, len(request))] if cut else request)
        try:
            async with asyncio.timeout(dice.choice([0.0, 0.01, dice.uniform(0, 0.5)])):
                await reader.read(-1)
        except TimeoutError:
            pass
    finally:
        writer.transport.abort()


@pytest.mark.promise("F7", "P6", "P7")
def test_f7_p6_1000_dropped_clients_leave_nothing_behind(model: Path, tmp_path: Path, measured: Measured) -> None:
    dice = random.Random(7)
    kinds: list[Callable[[], bytes]] = [
        lambda: generate(dice.choice([40, 1900]), inputs="x" * dice.choice([1, 1500])),
        lambda: generate(dice.choice([40, 1900]), stream=False),
        lambda: chat(dice.choice([40, 1900])),
        lambda: chat(dice.choice([40, 1900]), stream=False),
    ]

    async def all_drops(port: int) -> None:
        gate = asyncio.Semaphore(100)

        async def one() -> None:
            async with gate:
                await drop(port, dice.choice(kinds)(), dice)

        await asyncio.gather(*(one() for _ in range(DROPS)))

    flags = (*SIM, "--backend-option", "overhead=0.005", "--max-batch-size", "32")
    with live_server(str(model), tmp_path / "log", *flags) as server:
        asyncio.run(all_drops(server.port))
        left = time.monotonic()
        server.wait_until_idle(10)
        measured(f"{DROPS} drops: 0 running, 0 blocks used {time.monotonic() - left:.2f} s after the last")
        assert asyncio.run(exchange(server.port, generate(3, stream=False))).status == 200
        assert "Traceback" not in server.log.read_text()


@pytest.mark.promise("F7", "P6")
@pytest.mark.parametrize("request_of", [generate, chat], ids=["generate", "chat"])
def test_p6_at_most_two_more_steps_after_the_client_left(
    request_of: Callable[..., bytes], slow_server: LiveServer, measured: Measured
) -> None:
    async def leave(request: bytes) -> float:
        _, writer = await asyncio.open_connection("127.0.0.1", slow_server.port)
        writer.write(request)
        before = await asyncio.to_thread(slow_server.metric, GENERATED)
        while (seen := await asyncio.to_thread(slow_server.metric, GENERATED)) < before + 2:
            await asyncio.sleep(0.01)
        writer.transport.abort()
        return seen

    counts = []
    for stream in (True, False):
        seen = asyncio.run(leave(request_of(1000, stream=stream)))
        slow_server.wait_until_idle(10)
        counts.append(slow_server.metric(GENERATED) - seen)
    assert max(counts) <= 2
    measured(f"{max(counts):.0f} more tokens of a client that had left")


@pytest.fixture(scope="module")
def slow_server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Steps of 200 ms, so that a busy machine does not hide what a step is."""
    log = tmp_path_factory.mktemp("slow") / "log"
    with live_server(str(model), log, *SIM, "--backend-option", "overhead=0.2") as server:
        yield server


@pytest.mark.promise("F6", "P5", "P4")
@pytest.mark.parametrize(("drain_seconds", "code"), [(30.0, 0), (0.5, 72)], ids=["in time", "overrun"])
def test_f6_p5_p4_sigterm_cuts_no_stream(
    drain_seconds: float, code: int, model: Path, tmp_path: Path, measured: Measured
) -> None:
    async def test(server: LiveServer) -> None:
        requests = [generate(300), chat(300), generate(300, stream=False), chat(300, stream=False)]
        open_ones = [asyncio.create_task(exchange(server.port, requests[number % 4])) for number in range(20)]
        running = "mainspring_num_requests_running"
        await asyncio.to_thread(server.wait_until, lambda: server.metric(running) == 20, 20)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        unready = await asyncio.to_thread(_until_unready, server, told)
        assert unready < 1.0
        refused = await exchange(server.port, generate(3))
        assert (refused.status, "retry-after" in refused.headers) == (503, True)
        replies = await asyncio.gather(*open_ones)
        ended = await asyncio.to_thread(server.process.wait, 30)
        assert ended == code
        assert all(_complete(reply) for reply in replies) if code == 0 else all(reply.error for reply in replies)
        over = time.monotonic() - told
        if code:
            assert over < drain_seconds + 3
        measured(f"not ready after {1000 * unready:.0f} ms; exit {code} after {over:.1f} s of {drain_seconds:.1f} s")

    flags = (*SIM, "--backend-option", "overhead=0.01", "--graceful-termination-timeout", str(drain_seconds))
    with listening_server(str(model), tmp_path / "log", *flags) as server:
        server.wait_until_ready(60)
        asyncio.run(test(server))


@pytest.mark.promise("F6", "P5", "P4")
@pytest.mark.parametrize("second_signal", [False, True], ids=["time is over", "second signal"])
def test_f6_p5_p4_who_has_not_heard_of_the_stop_is_still_served(
    second_signal: bool, model: Path, tmp_path: Path, measured: Measured
) -> None:
    seconds = 60.0 if second_signal else 2.0
    flags = (*SIM, "--backend-option", "overhead=0.01", "--pre-stop-seconds", str(seconds))
    with listening_server(str(model), tmp_path / "log", *flags) as server:
        server.wait_until_ready(60)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        unready = _until_unready(server, told)
        assert unready < 1.0
        assert server.phase == "leaving"
        served = asyncio.run(exchange(server.port, generate(20)))
        assert (served.status, served.error) == (200, None)
        if second_signal:
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        over = time.monotonic() - told
    assert over < seconds + 3 if second_signal else over >= seconds
    measured(f"not ready after {1000 * unready:.0f} ms, serving until the drain after {over:.1f} s")


def _until_unready(server: LiveServer, told: float) -> float:
    while json.loads(server.get("/readyz"))["phase"] == "ready":
        pass
    return time.monotonic() - told


def _complete(reply: Reply) -> bool:
    """Whether an answer holds all 300 tokens, in whichever protocol. Each is a word;
    a chunk of a chat may hold several.
    """
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return reply.headers["x-generated-tokens"] == "300"
    *events, last = reply.events
    if last != "[DONE]":
        return len(events) + 1 == 300 and last["generated_text"] is not None
    return len("".join(event["choices"][0]["delta"].get("content", "") for event in events).split()) == 300
