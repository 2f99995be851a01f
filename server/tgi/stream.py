"""Pieces to TGI's events: one a token, the last with the whole text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import UNSET
from msgspec.structs import replace

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import FinishReason, TokenLogprobs
from mainspring.server.http import sse
from mainspring.server.text import generation
from mainspring.server.text.generation import Finish, Piece
from mainspring.server.text.tokenizer import Tokenizer
from mainspring.server.tgi.parse import GenerateCall
from mainspring.server.tgi.types import FinishWord, StreamDetails, StreamResponse, Token

EVENTS_A_WRITE = 128
"""What came together leaves together, up to about 20 kB."""

FINISH_WORDS: dict[FinishReason, FinishWord] = {
    FinishReason.EOS: "eos_token",
    FinishReason.STOP: "stop_sequence",
    FinishReason.LENGTH: "length",
}


async def stream(
    pieces: AsyncGenerator[Piece, None], call: GenerateCall, tokenizer: Tokenizer
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of one sequence."""
    text = [call.inputs] if call.return_full_text else []
    index = 0
    finished = False
    async with aclosing(pieces):
        async for piece in pieces:
            text.append(piece.text)
            responses = [
                StreamResponse(
                    index=number,
                    token=wire_token(token),
                    top_tokens=top_tokens(token, tokenizer) if call.top_n_tokens else UNSET,
                    generated_text=None,
                    details=None,
                )
                for number, token in enumerate(piece.tokens, start=index + 1)
            ]
            index += len(responses)
            if responses and piece.finish is not None:
                finished = True
                details = _details(piece.finish, call) if call.details else None
                responses[-1] = replace(responses[-1], generated_text="".join(text), details=details)
            for first in range(0, len(responses), EVENTS_A_WRITE):
                yield b"".join(map(sse.event, responses[first : first + EVENTS_A_WRITE]))
    if not finished:
        raise RequestError(ErrorKind.INTERNAL, "the sequence ended without a last token")


def _details(finish: Finish, call: GenerateCall) -> StreamDetails:
    return StreamDetails(
        FINISH_WORDS[finish.reason], finish.num_tokens, reported_seed(finish, call), len(call.generation.tokens)
    )


def wire_token(token: generation.Token) -> Token:
    """A token as TGI writes it."""
    logprob = 0.0 if token.logprobs is None else token.logprobs.logprob
    return Token(token.id, token.text, logprob, token.special)


def top_tokens(token: generation.Token, tokenizer: Tokenizer) -> list[Token]:
    """The likeliest tokens at this token's position, best first."""
    found: TokenLogprobs | None = token.logprobs
    if found is None:
        return []
    return [
        Token(token_id, tokenizer.token_text(token_id), logprob, tokenizer.is_special(token_id))
        for token_id, logprob in zip(found.top_ids, found.top_logprobs, strict=True)
    ]


def reported_seed(finish: Finish, call: GenerateCall) -> int | None:
    """The seed that repeats this answer; None for greedy answers, which have none."""
    return finish.seed if call.generation.params.temperature > 0 else None
