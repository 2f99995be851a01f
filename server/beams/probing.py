"""Beam search over the engine. A beginning's likeliest continuations are the log-probabilities of one more token.

Each round submits every beginning as a request of its own that generates one token: its tokens so far count as said, so
that penalties and grammars go on, and all but the last few lie in the prefix cache, where beginnings share blocks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain

import msgspec

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import Delta, FinishReason, SamplingParams, Start, TokenLogprobs
from mainspring.server.beams.search import Beams, BeamSearch
from mainspring.server.engine.client import EngineClient
from mainspring.server.engine.request_stream import RequestStream
from mainspring.server.grammar.guidance import Guidance
from mainspring.server.text.generation import (
    Generation,
    Piece,
    SequenceText,
    Token,
    generate,
    guided_params,
    prompt_tokens,
)
from mainspring.server.text.tokenizer import Tokenizer

_MOST_ENDS = 8
"""Tokens that end a sequence, as far as they widen the search: each may take a beginning's best places."""
_AGE_SECONDS = 10.0
"""A level of priority for a search that has run for so long, so that newcomers do not wait less than it does."""


def pieces_of(
    engine: EngineClient, tokenizer: Tokenizer, generation: Generation, guidance: Guidance | None = None
) -> AsyncGenerator[Piece, None]:
    """A generation's pieces, whichever way its answers are found. Raises RequestError when it fails."""
    if generation.beams is None:
        return generate(engine, tokenizer, generation, guidance)
    return search(engine, tokenizer, generation, generation.beams, guidance)


async def search(
    engine: EngineClient,
    tokenizer: Tokenizer,
    generation: Generation,
    beams: Beams,
    guidance: Guidance | None = None,
) -> AsyncGenerator[Piece, None]:
    """The `n` best answers, best first, a piece each at the end. Where there are fewer, the last one is repeated."""
    probe = _Probe(engine, generation, await guided_params(generation, guidance), beams)
    found = BeamSearch(beams, _Beginning((), 0.0, SequenceText(tokenizer, generation)), probe.max_tokens)
    deltas = await probe.ask(found.running)
    first = deltas[0]
    while True:
        pairs = zip(found.running, deltas, strict=True)
        found.advance([extension for beginning, delta in pairs for extension in probe.extensions(beginning, delta)])
        if found.done:
            break
        deltas = await probe.ask(found.running)
    answers = [answer for _, answer in found.answers()]
    if not answers:
        raise RequestError(ErrorKind.INVALID, "no answer can be found: too little is left of what may be said")
    told = () if first.prompt_logprobs is None else prompt_tokens(tokenizer, generation.tokens, first.prompt_logprobs)
    for index in range(generation.n):
        yield answers[min(index, len(answers) - 1)].whole(index, first.start, told)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What the search extends: a `Hypothesis`."""

    tokens: tuple[int, ...]
    logprob: float
    text: SequenceText
    """After these tokens; never changed, but forked."""
    pieces: tuple[Piece, ...] = ()

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def ended(self) -> bool:
        return self.text.finished

    def extended(self, token: int, logprob: float, delta: Delta) -> _Beginning:
        text = self.text.fork()
        piece = text.fold(delta)
        return _Beginning((*self.tokens, token), self.logprob + logprob, text, (*self.pieces, piece))

    def whole(self, index: int, start: Start | None, prompt: tuple[Token, ...]) -> Piece:
        """All at once."""
        tokens = tuple(chain.from_iterable(piece.tokens for piece in self.pieces))
        text = "".join(piece.text for piece in self.pieces)
        return Piece(index, tokens, text, start, self.pieces[-1].finish, prompt)


class _Probe:
    """Asks the engine what may follow, and knows what ends an answer."""

    def __init__(self, engine: EngineClient, generation: Generation, params: SamplingParams, beams: Beams) -> None:
        ready = engine.ready
        eos = () if ready is None or params.ignore_eos else ready.eos_token_ids
        room = 0 if ready is None else ready.max_length - len(generation.tokens)
        self.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        self._engine = engine
        self._generation = generation
        self._told = params.logprobs
        self._ends = dict.fromkeys(params.stop_token_ids, FinishReason.STOP) | dict.fromkeys(eos, FinishReason.EOS)
        self._count = min((1 + min(max(len(self._ends), 1), _MOST_ENDS)) * beams.width, _vocab_size(engine))
        self._params = msgspec.structs.replace(
            params,
            temperature=0.0,
            top_k=0,
            top_p=1.0,
            typical_p=1.0,
            min_p=0.0,
            seed=0,
            logprobs=self._count,
            adjusted_logprobs=True,
        )
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    async def ask(self, beginnings: Sequence[_Beginning]) -> list[Delta]:
        """One delta of one token for each. Raises RequestError when one fails; the others end with it."""
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(self._submit(beginning)) for beginning in beginnings]
            return [await self._answer(stream) for stream in streams]

    def extensions(self, beginning: _Beginning, delta: Delta) -> Iterator[_Beginning]:
        """The likeliest, each by a token; none that is impossible."""
        if not delta.logprobs:
            raise RequestError(ErrorKind.INTERNAL, "the engine told no log-probabilities")
        told = delta.logprobs[0]
        shown = 0 if self._told is None else self._told
        for token, logprob in zip(told.top_ids, told.top_logprobs, strict=True):
            if math.isfinite(logprob):
                own = TokenLogprobs(logprob, told.top_ids[:shown], told.top_logprobs[:shown])
                step = Delta(
                    delta.request_id,
                    0,
                    [token],
                    finish=self._finish(token, beginning.length + 1),
                    logprobs=None if self._told is None else [own],
                )
                yield beginning.extended(token, logprob, step)

    def _finish(self, token: int, length: int) -> FinishReason | None:
        return self._ends.get(token, FinishReason.LENGTH if length >= self.max_tokens else None)

    def _submit(self, beginning: _Beginning) -> RequestStream:
        asked, elapsed = self._generation, self._loop.time() - self._began
        timeout = None if asked.timeout is None else max(asked.timeout - elapsed, 0.0)
        params = msgspec.structs.replace(self._params, max_tokens=beginning.length + 1)
        if beginning.length:
            params = msgspec.structs.replace(params, prompt_logprobs=None)
        return self._engine.submit(
            [*asked.tokens, *beginning.tokens],
            params,
            priority=asked.priority + (1 + int(elapsed / _AGE_SECONDS) if beginning.length else 0),
            timeout=timeout,
            cache_salt=asked.cache_salt,
            said=beginning.length,
        )

    async def _answer(self, stream: RequestStream) -> Delta:
        async for delta in stream:
            if delta.error is not None:
                raise RequestError(delta.error, delta.message)
            if delta.finish is FinishReason.CANCELLED:
                raise RequestError(ErrorKind.SHUTTING_DOWN, "the request was cancelled by the server")
            if delta.tokens:
                return delta
        raise RequestError(ErrorKind.INTERNAL, "the engine ended the request without a result")


def _vocab_size(engine: EngineClient) -> int:
    return 0 if engine.ready is None else engine.ready.vocab_size
