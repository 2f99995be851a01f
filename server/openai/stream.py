"""Pieces to OpenAI's stream: chunks, a usage chunk when asked for, `[DONE]`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from msgspec import UNSET

from mainspring.server.http import sse
from mainspring.server.openai.answers import FINISH_WORDS, MessageStream
from mainspring.server.openai.identity import Identity
from mainspring.server.openai.logprobs import chat_logprobs, completion_logprobs, echoed_offset
from mainspring.server.openai.parse import Call
from mainspring.server.openai.types import (
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptTokensDetails,
    Usage,
)
from mainspring.server.service import Timing
from mainspring.server.text.generation import Piece

_NOTHING = ChatDelta()


async def stream_chat(
    pieces: AsyncGenerator[Piece, None], call: Call, timing: Timing, identity: Identity
) -> AsyncGenerator[bytes, None]:
    """Events of a chat completion. Each choice's first delta names the role, its last chunk the finish reason."""
    messages: dict[int, MessageStream] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            message = messages.get(piece.index)
            first = message is None
            if message is None:
                message = messages[piece.index] = MessageStream(call.form)
            delta = message.push(piece.text, ended=piece.finish is not None)
            says = delta != _NOTHING or piece.finish is not None
            if first or says or (call.num_top_logprobs is not None and piece.tokens):
                choice = _chat_choice(piece, _opened(delta) if first else delta, message, call, identity)
                yield sse.event(_chat_chunk(identity, [choice]))
    if call.include_usage:
        yield sse.event(_chat_chunk(identity, [], usage(timing)))
    yield sse.DONE


async def stream_completion(
    pieces: AsyncGenerator[Piece, None], call: Call, timing: Timing, identity: Identity
) -> AsyncGenerator[bytes, None]:
    """Events of a completion; choice i of prompt p has the index p * n + i. An echo comes with the first."""
    lengths: dict[int, int] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            echo = ""
            if piece.index not in lengths:
                echo = call.echoes[piece.index // call.generations[0].n] if call.echoes else ""
                lengths[piece.index] = 0
                if call.echoes and piece.prompt:
                    lengths[piece.index] = echoed_offset(echo, piece.prompt)
                    piece = replace(piece, tokens=(*piece.prompt, *piece.tokens))
            if echo or _says_something(piece, call):
                choice = _completion_choice(piece, echo, lengths[piece.index], call, identity)
                yield sse.event(_completion_chunk(identity, [choice]))
            lengths[piece.index] += sum(0 if token.special else len(token.text) for token in piece.tokens)
    if call.include_usage:
        yield sse.event(_completion_chunk(identity, [], usage(timing)))
    yield sse.DONE


def usage(timing: Timing) -> Usage:
    """What the whole request cost."""
    return Usage(
        timing.prompt_tokens,
        timing.generated_tokens,
        timing.prompt_tokens + timing.generated_tokens,
        PromptTokensDetails(timing.cached_tokens),
    )


def _says_something(piece: Piece, call: Call) -> bool:
    """Text that is held back makes no empty chunk."""
    return bool(piece.text) or piece.finish is not None or (call.num_top_logprobs is not None and bool(piece.tokens))


def _opened(delta: ChatDelta) -> ChatDelta:
    """A choice's first delta: it names the role, and has a content even where that is still empty."""
    content = delta.content or ("" if delta.tool_calls is UNSET else None)
    return ChatDelta("assistant", content, delta.reasoning_content, delta.tool_calls)


def _chat_choice(
    piece: Piece, delta: ChatDelta, message: MessageStream, call: Call, identity: Identity
) -> ChatChunkChoice:
    logprobs = chat_logprobs(piece.tokens, identity.tokenizer) if call.num_top_logprobs is not None else None
    finish = None if piece.finish is None else message.finish_word(piece.finish.reason)
    return ChatChunkChoice(piece.index, delta, logprobs, finish)


def _chat_chunk(identity: Identity, choices: list[ChatChunkChoice], used: Usage | None = None) -> ChatChunk:
    return ChatChunk(
        id=identity.id,
        created=identity.created,
        model=identity.model,
        system_fingerprint=identity.fingerprint,
        choices=choices,
        usage=used,
    )


def _completion_choice(piece: Piece, echo: str, length: int, call: Call, identity: Identity) -> CompletionChoice:
    logprobs: CompletionLogprobs | None = None
    if call.num_top_logprobs is not None:
        logprobs = completion_logprobs(piece.tokens, identity.tokenizer, call.num_top_logprobs, offset=length)
    finish = None if piece.finish is None else FINISH_WORDS[piece.finish.reason]
    return CompletionChoice(piece.index, echo + piece.text, logprobs, finish)


def _completion_chunk(identity: Identity, choices: list[CompletionChoice], used: Usage | None = None) -> Completion:
    return Completion(
        id=identity.id,
        created=identity.created,
        model=identity.model,
        system_fingerprint=identity.fingerprint,
        choices=choices,
        usage=used,
    )
