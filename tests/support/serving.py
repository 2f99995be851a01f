"""A real engine process on the sim backend, and what tests do with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mainspring.core.config import EngineConfig
from mainspring.core.errors import ErrorKind
from mainspring.core.request import FinishReason, Progress, SamplingParams
from mainspring.server.engine.client import EngineClient
from mainspring.server.engine.request_stream import RequestStream

DEADLINE = 30.0
"""Seconds after which a test that still waits has failed."""


def in_time(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test's coroutine, which must end within `DEADLINE`."""

    async def run() -> None:
        async with asyncio.timeout(DEADLINE):
            await test()

    asyncio.run(run())


@asynccontextmanager
async def serving(
    model: Path,
    *,
    grace_seconds: float = 5.0,
    device_index: int = 0,
    max_sequences: int = 16,
    num_blocks: int = 512,
    max_batch_tokens: int = 256,
    max_prefill_chunk: int | None = None,
    prefix_caching: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **options: str,
) -> AsyncIterator[EngineClient]:
    """A client of an engine that serves `model`, with `options` for the sim backend."""
    config = EngineConfig(
        model=str(model),
        backend="sim",
        device_index=device_index,
        max_sequences=max_sequences,
        num_blocks=num_blocks,
        max_batch_tokens=max_batch_tokens,
        max_prefill_chunk=max_prefill_chunk,
        prefix_caching=prefix_caching,
        backend_options=options,
    )
    client = EngineClient(config, grace_seconds=grace_seconds, on_progress=on_progress)
    try:
        await client.start()
        yield client
    finally:
        await client.aclose()


@dataclass
class Answer:
    """Everything one sequence received."""

    tokens: list[int] = field(default_factory=list)
    finishes: list[FinishReason] = field(default_factory=list)
    error: ErrorKind | None = None
    message: str = ""
    starts: int = 0


async def read(stream: RequestStream, n: int = 1) -> list[Answer]:
    """Reads a stream to its end."""
    answers = [Answer() for _ in range(n)]
    async with stream:
        async for delta in stream:
            answer = answers[delta.index]
            answer.tokens += delta.tokens
            answer.starts += delta.start is not None
            if delta.finish is not None:
                answer.finishes.append(delta.finish)
                answer.error = delta.error
                answer.message = delta.message
    return answers


async def ask(
    client: EngineClient, prompt: list[int], max_tokens: int = 8, params: SamplingParams | None = None
) -> Answer:
    """One request's whole answer."""
    (answer,) = await read(client.submit(prompt, params or SamplingParams(max_tokens=max_tokens)))
    return answer


async def first_delta(stream: RequestStream) -> None:
    """Returns when the request runs."""
    await anext(stream)


async def at_rest(client: EngineClient) -> None:
    """Returns when nothing runs in the engine."""
    while client.stats.running or client.stats.waiting or not client.stats.steps:
        await asyncio.sleep(0.01)
