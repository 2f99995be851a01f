"""The one pipeline between the engine and both wire protocols: deltas of token ids become pieces of text.

A protocol's `parse.py` makes a `Generation`; `generate` submits it and yields `Piece`s; the protocol's `stream.py` and
`collect.py` fold these. Leaving the generator, for whatever reason, ends the request in the engine too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, replace

import msgspec

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.request import Delta, FinishReason, SamplingParams, Start, TokenLogprobs
from mainspring.server.beams.search import Beams
from mainspring.server.engine.client import EngineClient
from mainspring.server.grammar.guidance import Guidance
from mainspring.server.text.detokenizer import Detokenizer
from mainspring.server.text.stops import StopMatcher
from mainspring.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One prompt to be continued, in no protocol's words."""

    tokens: list[int]
    params: SamplingParams
    n: int = 1
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    """Leave the stop string in the text, as TGI does."""
    priority: int = 0
    timeout: float | None = None
    cache_salt: str = ""
    beams: Beams | None = None
    """How to search for the likeliest answers; None: draw or follow one."""
    grammar: GrammarSpec | None = None
    """What the answer must be; None: anything."""
    markers: frozenset[str] = frozenset()
    """Special tokens that stay in the text, for the machines that read it."""

    @property
    def num_sequences(self) -> int:
        """That are generated side by side."""
        return self.n if self.beams is None else self.beams.width


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token, or one of a prompt whose log-probabilities were asked for."""

    id: int
    text: str
    """What it adds to the text; of a special token, what it is called. Empty while a character is unfinished."""
    special: bool
    logprobs: TokenLogprobs | None
    """None when not asked for, and of a prompt's first token, which nothing precedes."""


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sequence ended."""

    reason: FinishReason
    num_tokens: int
    """Generated, end-of-sequence token included."""
    seed: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one sequence gained in one step, as text."""

    index: int
    tokens: tuple[Token, ...]
    text: str
    """Safe to show: no unfinished character, nothing that may still become a stop string."""
    start: Start | None
    finish: Finish | None
    prompt: tuple[Token, ...] = ()
    """On each sequence's first piece, if the prompt's log-probabilities were asked for."""


class SequenceText:
    """The text of one sequence while it grows."""

    def __init__(self, tokenizer: Tokenizer, generation: Generation) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(generation.stops, generation.keep_stop)
        self._keep_stop = generation.keep_stop
        self._min_tokens = generation.params.min_tokens
        self._markers = generation.markers
        self._num_tokens = 0
        self._seed = 0
        self.finished = False

    def fork(self) -> SequenceText:
        """Another text that begins as this one does."""
        other = copy(self)
        other._detokenizer, other._matcher = self._detokenizer.fork(), self._matcher.fork()
        return other

    def fold(self, delta: Delta) -> Piece:
        """The delta as text. Raises RequestError when the engine gave the sequence up."""
        if delta.error is not None:
            raise RequestError(delta.error, delta.message)
        if delta.finish is FinishReason.CANCELLED:
            raise RequestError(ErrorKind.SHUTTING_DOWN, "the request was cancelled by the server")
        if delta.start is not None:
            self._seed = delta.start.seed
        tokens: list[Token] = []
        shown: list[str] = []
        reason = delta.finish
        for position, token_id in enumerate(delta.tokens):
            logprobs = delta.logprobs[position] if delta.logprobs is not None else None
            last = position == len(delta.tokens) - 1
            ends_here = last and delta.finish in (FinishReason.EOS, FinishReason.STOP)
            token, text, stopped = self._take(token_id, logprobs, ends_here)
            tokens.append(token)
            shown.append(text)
            if stopped:
                reason = FinishReason.STOP
                break
        else:
            if delta.finish is not None:
                shown.append(self._matcher.flush())
        self.finished = reason is not None
        finish = None if reason is None else Finish(reason, self._num_tokens, self._seed)
        return Piece(delta.index, tuple(tokens), "".join(shown), delta.start, finish)

    def _take(self, token_id: int, logprobs: TokenLogprobs | None, ends_here: bool) -> tuple[Token, str, bool]:
        """One token: itself, the text it makes certain, and whether it completed a stop string.

        A token that the engine stopped at (`ends_here`) is reported and has no text.
        """
        self._num_tokens += 1
        special = self._tokenizer.is_special(token_id)
        name = self._tokenizer.token_text(token_id) if ends_here or special else ""
        if ends_here or (special and name not in self._markers):
            return Token(token_id, name, special, logprobs), "", False
        text = name if special else self._detokenizer.push(token_id)
        if self._num_tokens < self._min_tokens:
            return Token(token_id, text, special, logprobs), text, False
        found = self._matcher.push(text)
        # Where stop strings are kept nothing is held back, so the two differ only behind the end of a stop string.
        own_text = found.text if self._keep_stop else text
        return Token(token_id, own_text, special, logprobs), found.text, found.stop is not None


def prompt_tokens(tokenizer: Tokenizer, ids: Sequence[int], found: Sequence[TokenLogprobs]) -> tuple[Token, ...]:
    """A prompt as if it had been generated; `found` begins at its second token."""
    detokenizer = Detokenizer(tokenizer)
    tokens = []
    for token_id, logprobs in zip(ids, (None, *found), strict=True):
        special = tokenizer.is_special(token_id)
        text = tokenizer.token_text(token_id) if special else detokenizer.push(token_id)
        tokens.append(Token(token_id, text, special, logprobs))
    return tuple(tokens)


async def guided_params(generation: Generation, guidance: Guidance | None) -> SamplingParams:
    """With the grammar as the engine takes it. Raises RequestError."""
    if generation.grammar is None:
        return generation.params
    if guidance is None:
        raise RequestError(ErrorKind.INVALID, "this server follows no grammars")
    grammar = await guidance.grammar(generation.grammar)
    return msgspec.structs.replace(generation.params, grammar=grammar)


async def generate(
    engine: EngineClient, tokenizer: Tokenizer, generation: Generation, guidance: Guidance | None = None
) -> AsyncGenerator[Piece, None]:
    """Run one generation. Raises RequestError when it fails; its other sequences end with it."""
    params = await guided_params(generation, guidance)
    sequences = [SequenceText(tokenizer, generation) for _ in range(generation.n)]
    running = generation.n
    prompt: tuple[Token, ...] = ()
    stream = engine.submit(
        generation.tokens,
        params,
        n=generation.n,
        priority=generation.priority,
        timeout=generation.timeout,
        cache_salt=generation.cache_salt,
    )
    async with stream:
        async for delta in stream:
            sequence = sequences[delta.index]
            if sequence.finished:  # a stop string was found here before the engine knew
                continue
            piece = sequence.fold(delta)
            if delta.start is not None and generation.params.prompt_logprobs is not None:
                if delta.prompt_logprobs is not None:
                    prompt = prompt_tokens(tokenizer, generation.tokens, delta.prompt_logprobs)
                piece = replace(piece, prompt=prompt)
            if piece.finish is not None:
                running -= 1
                if delta.finish is None:
                    stream.cancel(delta.index)
            yield piece
            if running == 0:
                return
    raise RequestError(ErrorKind.INTERNAL, "the engine ended the request without a result")


async def merge(streams: Sequence[AsyncGenerator[Piece, None]], width: int) -> AsyncGenerator[Piece, None]:
    """Pieces of several generations as they come; sequence i of stream s gets the index s * width + i."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for piece in stream:
                yield piece
        return
    pending = {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = pending.pop(task)
                try:
                    piece = task.result()
                except StopAsyncIteration:
                    continue
                pending[asyncio.ensure_future(anext(streams[number]))] = number
                yield replace(piece, index=number * width + piece.index)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
