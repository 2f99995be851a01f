"""Many clients at once, and clients that go away: everyone is answered, and nothing is left behind (F7, P6)."""

from __future__ import annotations

import asyncio
import json
import random

import httpx

from tests.support.live_server import LiveServer

CLIENTS = 64
DROPS = 1000


def chat(prompt: str, max_tokens: int, *, stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "max_tokens": max_tokens, "stream": stream, "temperature": 0.7, "seed": 1}


async def stream_to_the_end(client: httpx.AsyncClient, number: int) -> tuple[str, str | None]:
    """The streamed text and how it finished."""
    text, finish, done = "", None, False
    async with client.stream(
        "POST", "/v1/chat/completions", json=chat(f"Count to {number}.", 12, stream=True)
    ) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    assert done
    return text, finish


def test_64_streaming_clients_are_all_answered(server: LiveServer) -> None:
    async def all_at_once() -> list[tuple[str, str | None]]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=server.url, timeout=240, limits=limits) as client:
            return await asyncio.gather(*(stream_to_the_end(client, number) for number in range(CLIENTS)))

    answers = asyncio.run(all_at_once())
    assert len(answers) == CLIENTS
    assert all(text and finish in ("stop", "length") for text, finish in answers)
    server.wait_until_idle(10)


def raw_request(number: int) -> bytes:
    body = json.dumps(chat(f"Tell me about the number {number}.", 200, stream=number % 2 == 0)).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def drop(port: int, number: int, dice: random.Random) -> None:
    """Sends a request, or only part of one, and hangs up at a random moment: before the body's end, while it waits in
    the queue, during prefill, or after some tokens."""
    request = raw_request(number)
    moment = dice.random()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request[: int(len(request) * moment * 5)] if moment < 0.2 else request)
        await writer.drain()
        try:
            async with asyncio.timeout(2 * moment):
                await reader.read(-1)
        except TimeoutError:
            pass
    finally:
        writer.transport.abort()


def test_f7_1000_dropped_clients_leave_nothing_behind(server: LiveServer) -> None:
    dice = random.Random(20240607)

    async def all_drops() -> None:
        at_once = asyncio.Semaphore(100)

        async def one(number: int) -> None:
            async with at_once:
                await drop(server.port, number, dice)

        await asyncio.gather(*(one(number) for number in range(DROPS)))

    asyncio.run(all_drops())
    server.wait_until_idle(30)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.post("/v1/chat/completions", json=chat("Say hello.", 4, stream=False))
    assert answer.status_code == 200
