"""Admission, threads, timing: what every generation route does between parsing and answering.

Protocol-neutral. Text is `generation.py`, HTTP the route files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import FinishReason, Ready
from mainspring.server.beams.probing import pieces_of
from mainspring.server.engine.client import EngineClient
from mainspring.server.errors import invalid
from mainspring.server.grammar.guidance import Guidance
from mainspring.server.model import ServedModel
from mainspring.server.telemetry.outcome import Outcome, Spans
from mainspring.server.telemetry.prometheus import Metrics, RequestRecord
from mainspring.server.text.generation import Generation, Piece, merge

T = TypeVar("T")
FINISH_WORDS = {FinishReason.EOS: "stop", FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
"""OpenAI's words, which the metrics use too."""


@dataclass(slots=True)
class Timing:
    """When things happened to one HTTP request, in monotonic seconds, and what it cost."""

    received: float = field(default_factory=time.monotonic)
    validated: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    queue_seconds: float = 0.0
    """The longest of its prompts'."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    failed: bool = False

    @property
    def total_seconds(self) -> float:
        """From the request's arrival to the answer's end."""
        return self.finished - self.received

    @property
    def validation_seconds(self) -> float:
        """Until the engine was asked: parsing, template, tokenizer, grammar."""
        return self.validated - self.received

    @property
    def inference_seconds(self) -> float:
        """Of the engine's work, what waiting for its turn took left out."""
        return max(self.finished - self.validated - self.queue_seconds, 0.0)

    @property
    def decode_seconds(self) -> float:
        """Behind the first token; 0 when none came."""
        return min(self.finished - self.first_token, self.inference_seconds) if self.first_token else 0.0


class Service:
    """The served model behind its engine. All methods belong to the event loop's thread."""

    def __init__(
        self, engine: EngineClient, model: ServedModel, metrics: Metrics, ready: Ready, *, spans: Spans | None = None
    ) -> None:
        self._guidance = (
            Guidance(engine, model.tokenizer, ready, grammar_engine=model.grammar_engine) if model.constrains else None
        )
        self.model = model
        self.ready = ready
        self._engine = engine
        self._metrics = metrics
        self._spans = spans
        self._threads = ThreadPoolExecutor(model.limits.validation_workers, "validation")
        self._live = 0
        """Prompts in the threads, queued, or running."""

    async def aclose(self) -> None:
        """Let the threads end, and what reads grammars."""
        if self._guidance is not None:
            await self._guidance.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def parse(self, parser: Callable[[bytes, ServedModel], T], body: bytes, timing: Timing) -> T:
        """Validate, template and tokenise off the event loop. Raises RequestError."""
        self._metrics.count("tgi_request_count")
        try:
            call = await self.compute(parser, body)
        except RequestError as error:
            self._failed(error, timing)
            raise
        timing.validated = time.monotonic()
        return call

    async def compute(self, work: Callable[[bytes, ServedModel], T], body: bytes) -> T:
        """Anything that takes a while and no engine, off the event loop. Raises RequestError."""
        self._admit(1)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, body, self.model)
        finally:
            self._live -= 1

    async def run(self, generations: Sequence[Generation], timing: Timing) -> AsyncGenerator[Piece, None]:
        """Pieces of all sequences of all prompts, numbered prompt by prompt. Raises RequestError."""
        self._begin(generations, timing)
        timing.prompt_tokens = sum(len(generation.tokens) for generation in generations)
        streams = [
            pieces_of(self._engine, self.model.tokenizer, generation, self._guidance) for generation in generations
        ]
        last_seen: dict[int, float] = {}
        reasons: list[str] = []
        try:
            async with aclosing(merge(streams, generations[0].n)) as pieces:
                async for piece in pieces:
                    self._observe(piece, timing, last_seen, shared_prompt=piece.index % generations[0].n > 0)
                    if piece.finish is not None:
                        reasons.append(FINISH_WORDS[piece.finish.reason])
                        if len(reasons) == sum(generation.n for generation in generations):
                            self._finish(generations, timing, reasons)
                    yield piece
        except RequestError as error:
            self._failed(error, timing, generations)
            raise
        finally:
            self._live -= len(generations)
            if not timing.finished and not timing.failed:
                self._tell(timing, generations, aborted=True)

    def _begin(self, generations: Sequence[Generation], timing: Timing) -> None:
        """Take the request in. Raises RequestError where it asks for too much, or too much is asked for already."""
        limit = self.model.limits.max_request_tokens
        asked = sum(generation.num_sequences * (generation.params.max_tokens or 0) for generation in generations)
        try:
            if asked > limit:
                raise invalid(
                    f"the request asks for {asked} tokens in all (prompts x sequences x tokens); at most {limit} are "
                    "allowed, so send several requests"
                )
            self._admit(len(generations))
        except RequestError as error:
            self._failed(error, timing, generations)
            raise

    def _failed(self, error: RequestError, timing: Timing, generations: Sequence[Generation] = ()) -> None:
        timing.failed = True
        self._metrics.failed(error.kind)
        self._tell(timing, generations, error=error.kind)

    def _tell(
        self,
        timing: Timing,
        generations: Sequence[Generation],
        *,
        reasons: Sequence[str] = (),
        error: ErrorKind | None = None,
        aborted: bool = False,
    ) -> None:
        """The log and the traces hear how a request ended."""
        outcome = Outcome(
            model=self.model.id,
            params=generations[0].params if generations else None,
            choices=sum(generation.n for generation in generations),
            received=timing.received,
            first_token=timing.first_token,
            ended=timing.finished or time.monotonic(),
            validation_seconds=max(timing.validation_seconds, 0.0),
            queue_seconds=timing.queue_seconds,
            prompt_tokens=timing.prompt_tokens,
            cached_tokens=timing.cached_tokens,
            generated_tokens=timing.generated_tokens,
            finish_reasons=tuple(reasons),
            error=error,
            aborted=aborted,
        )
        outcome.log()
        if self._spans is not None:
            self._spans.record(outcome)

    def _admit(self, num_prompts: int) -> None:
        limit = self.model.limits.max_concurrent_requests
        if self._live + num_prompts > limit:
            raise RequestError(ErrorKind.OVERLOADED, f"{limit} requests are already in progress", retry_after=1.0)
        self._live += num_prompts

    def _observe(self, piece: Piece, timing: Timing, last_seen: dict[int, float], *, shared_prompt: bool) -> None:
        now = time.monotonic()
        if piece.start is not None:
            timing.queue_seconds = max(timing.queue_seconds, piece.start.queue_seconds)
            timing.cached_tokens += 0 if shared_prompt else piece.start.cached_tokens
        if not piece.tokens:
            return
        timing.generated_tokens += len(piece.tokens)
        if not timing.first_token:
            timing.first_token = now
            self._metrics.first_token(now - timing.received)
        previous = last_seen.get(piece.index)
        if previous is not None:
            self._metrics.token_gap(now - previous)
        last_seen[piece.index] = now

    def _finish(self, generations: Sequence[Generation], timing: Timing, reasons: list[str]) -> None:
        timing.finished = time.monotonic()
        self._tell(timing, generations, reasons=reasons)
        self._metrics.finished(
            RequestRecord(
                prompt_tokens=timing.prompt_tokens,
                generated_tokens=timing.generated_tokens,
                max_tokens=max(generation.params.max_tokens or 0 for generation in generations),
                total_seconds=timing.total_seconds,
                validation_seconds=timing.validation_seconds,
                queue_seconds=timing.queue_seconds,
                inference_seconds=timing.inference_seconds,
                decode_seconds=timing.decode_seconds,
                finish_reasons=reasons,
            )
        )
