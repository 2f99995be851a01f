"""Pieces to one TGI answer; `best_of` sequences ranked by their mean log-probability."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.server.text import generation
from mainspring.server.text.generation import Finish, Piece
from mainspring.server.text.tokenizer import Tokenizer
from mainspring.server.tgi.parse import GenerateCall
from mainspring.server.tgi.stream import FINISH_WORDS, reported_seed, top_tokens, wire_token
from mainspring.server.tgi.types import BestOfSequence, Details, GenerateResponse, PrefillToken, Token


@dataclass(slots=True)
class _Answer:
    text: list[str] = field(default_factory=list)
    tokens: list[generation.Token] = field(default_factory=list)
    prompt: tuple[generation.Token, ...] = ()
    finish: Finish | None = None

    def mean_logprob(self) -> float:
        logprobs = [token.logprobs.logprob for token in self.tokens if token.logprobs is not None]
        return sum(logprobs) / max(len(logprobs), 1)


async def collect(pieces: AsyncGenerator[Piece, None], call: GenerateCall, tokenizer: Tokenizer) -> GenerateResponse:
    """The best of the call's sequences."""
    answers = [_Answer() for _ in range(call.generation.n)]
    async with aclosing(pieces):
        async for piece in pieces:
            answer = answers[piece.index]
            answer.text.append(piece.text)
            answer.tokens.extend(piece.tokens)
            answer.prompt = piece.prompt or answer.prompt
            answer.finish = piece.finish
    answers.sort(key=_Answer.mean_logprob, reverse=True)
    best, *others = [_sequence(answer, call, tokenizer) for answer in answers]
    return GenerateResponse(best.generated_text, _details(best, others) if call.details else UNSET)


def _sequence(answer: _Answer, call: GenerateCall, tokenizer: Tokenizer) -> BestOfSequence:
    if answer.finish is None:
        raise RequestError(ErrorKind.INTERNAL, "a sequence ended without a finish reason")
    return BestOfSequence(
        generated_text="".join([call.inputs if call.return_full_text else "", *answer.text]),
        finish_reason=FINISH_WORDS[answer.finish.reason],
        generated_tokens=answer.finish.num_tokens,
        seed=reported_seed(answer.finish, call),
        prefill=[_prefill_token(token, tokenizer) for token in answer.prompt],
        tokens=[wire_token(token) for token in answer.tokens],
        top_tokens=_top_tokens(answer.tokens, tokenizer) if call.top_n_tokens else UNSET,
    )


def _prefill_token(token: generation.Token, tokenizer: Tokenizer) -> PrefillToken:
    logprob = None if token.logprobs is None else token.logprobs.logprob
    return PrefillToken(token.id, tokenizer.token_text(token.id), logprob)


def _top_tokens(tokens: Sequence[generation.Token], tokenizer: Tokenizer) -> list[list[Token]] | UnsetType:
    return [top_tokens(token, tokenizer) for token in tokens]


def _details(best: BestOfSequence, others: list[BestOfSequence]) -> Details:
    return Details(
        finish_reason=best.finish_reason,
        generated_tokens=best.generated_tokens,
        seed=best.seed,
        prefill=best.prefill,
        tokens=best.tokens,
        top_tokens=best.top_tokens,
        best_of_sequences=others or UNSET,
    )
