"""One load against one server: requests sent when they are due, whatever has become of the earlier ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import msgspec

from mainspring.server.bench.dialects import Dialect, read_event
from mainspring.server.bench.events import EventReader
from mainspring.server.bench.http_client import HTTPFailure, Server
from mainspring.server.bench.outcome import Outcome
from mainspring.server.bench.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server and how to speak with it."""

    server: Server
    dialect: Dialect
    extra: Mapping[str, Any]
    """Fields of every request: the model's name, sampling."""
    timeout: float = 600.0
    """Seconds that one answer may take."""

    async def ask(self, prompt: Prompt, due: float) -> Outcome:
        """One request, read to its end. Whatever goes wrong is in the outcome's `error`."""
        clock = asyncio.get_running_loop().time
        outcome = Outcome(due, sent=clock())
        try:
            async with asyncio.timeout(self.timeout):
                await self._read(prompt, outcome)
        except HTTPFailure as error:
            outcome.error = str(error)
        except TimeoutError:
            outcome.error = f"no whole answer within {self.timeout:g} seconds"
        except msgspec.DecodeError:
            outcome.error = "an event is not JSON"
        outcome.ended = clock()
        if not outcome.error and not outcome.arrivals:
            outcome.error = "an answer without text"
        return outcome

    async def prompt_tokens(self, prompt: Prompt) -> int | None:
        """A prompt's number of tokens by a server that tells it in whole answers alone; None where it never does."""
        body = {**self.dialect.body(prompt, self.extra), "stream": False}
        body.pop("stream_options", None)  # goes with streams only
        try:
            async with asyncio.timeout(self.timeout), aclosing(self.server.post(self.dialect.path, body)) as parts:
                whole = b"".join([part async for part in parts])
            return read_event(self.dialect, whole).prompt_tokens
        except (HTTPFailure, TimeoutError, msgspec.DecodeError):
            return None

    async def _read(self, prompt: Prompt, outcome: Outcome) -> None:
        clock = asyncio.get_running_loop().time
        events = EventReader()
        async with aclosing(self.server.post(self.dialect.path, self.dialect.body(prompt, self.extra))) as parts:
            async for part in parts:
                now = clock()
                for data in events.feed(part):
                    self._take(data, now, outcome)
        if not outcome.counted:
            outcome.output_tokens = len(outcome.arrivals)

    def _take(self, data: bytes, now: float, outcome: Outcome) -> None:
        reading = read_event(self.dialect, data)
        if reading.error:
            raise HTTPFailure(reading.error)
        if reading.has_tokens:
            outcome.arrivals.append(now)
        if reading.output_tokens is not None:
            outcome.counted = True
            outcome.prompt_tokens = reading.prompt_tokens or 0
            outcome.output_tokens = reading.output_tokens
            outcome.cached_tokens = reading.cached_tokens


async def run_load(
    target: Target,
    prompts: Sequence[Prompt],
    times: Sequence[float],
    *,
    max_concurrency: int | None = None,
    done: Callable[[], None] | None = None,
) -> list[Outcome]:
    """Sends each prompt at its time. With `max_concurrency` a request waits for its turn, and the wait counts."""
    turns = asyncio.Semaphore(max_concurrency) if max_concurrency else None
    loop = asyncio.get_running_loop()
    begin = loop.time()

    async def one(prompt: Prompt, time: float) -> Outcome:
        await asyncio.sleep(begin + time - loop.time())
        async with AsyncExitStack() as stack:
            if turns is not None:
                await stack.enter_async_context(turns)
            outcome = await target.ask(prompt, begin + time)
        if done is not None:
            done()
        return outcome

    return await asyncio.gather(*(one(prompt, time) for prompt, time in zip(prompts, times, strict=True)))
