"""Pieces to one OpenAI answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import FinishReason
from mainspring.server.openai.answers import FINISH_WORDS, whole_message
from mainspring.server.openai.identity import Identity
from mainspring.server.openai.logprobs import chat_logprobs, completion_logprobs, echoed_offset, prompt_logprobs
from mainspring.server.openai.parse import Call
from mainspring.server.openai.stream import usage
from mainspring.server.openai.types import (
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    PromptLogprobs,
)
from mainspring.server.service import Timing
from mainspring.server.text.generation import Piece, Token
from mainspring.server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Answer:
    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    prompt: tuple[Token, ...] = ()
    finish: FinishReason | None = None

    def mean_logprob(self) -> float:
        logprobs = [token.logprobs.logprob for token in self.tokens if token.logprobs is not None]
        return sum(logprobs) / max(len(logprobs), 1)

    def finish_reason(self) -> FinishReason:
        if self.finish is None:
            raise RequestError(ErrorKind.INTERNAL, "a sequence ended without a finish reason")
        return self.finish


async def collect_chat(
    pieces: AsyncGenerator[Piece, None], call: Call, timing: Timing, identity: Identity
) -> ChatCompletion:
    """The whole chat completion."""
    answers = await _answers(pieces, call)
    with_logprobs = call.num_top_logprobs is not None
    choices = []
    for index, answer in enumerate(answers):
        message, finish = whole_message(call.form, "".join(answer.text), answer.finish_reason())
        logprobs = chat_logprobs(answer.tokens, identity.tokenizer) if with_logprobs else None
        choices.append(ChatChoice(index, message, logprobs, finish))
    return ChatCompletion(
        id=identity.id,
        created=identity.created,
        model=identity.model,
        system_fingerprint=identity.fingerprint,
        choices=choices,
        usage=usage(timing),
        prompt_logprobs=_prompt_logprobs(answers[0], call, identity.tokenizer),
    )


async def collect_completion(
    pieces: AsyncGenerator[Piece, None], call: Call, timing: Timing, identity: Identity
) -> Completion:
    """The whole completion; choice i of prompt p has the index p * n + i."""
    answers = _best(await _answers(pieces, call), call)
    choices = [_completion_choice(index, answer, call, identity.tokenizer) for index, answer in enumerate(answers)]
    return Completion(
        id=identity.id,
        created=identity.created,
        model=identity.model,
        system_fingerprint=identity.fingerprint,
        choices=choices,
        usage=usage(timing),
    )


async def _answers(pieces: AsyncGenerator[Piece, None], call: Call) -> list[_Answer]:
    answers = [_Answer() for generation in call.generations for _ in range(generation.n)]
    async with aclosing(pieces):
        async for piece in pieces:
            answer = answers[piece.index]
            answer.text.append(piece.text)
            answer.tokens.extend(piece.tokens)
            answer.prompt = piece.prompt or answer.prompt
            if piece.finish is not None:
                answer.finish = piece.finish.reason
    return answers


def _best(answers: list[_Answer], call: Call) -> list[_Answer]:
    """Each prompt's best answers, best first, where more were generated than are wanted."""
    if call.num_choices is None:
        return answers
    width = call.generations[0].n
    prompts = [answers[start : start + width] for start in range(0, len(answers), width)]
    return [
        answer
        for sequences in prompts
        for answer in sorted(sequences, key=_Answer.mean_logprob, reverse=True)[: call.num_choices]
    ]


def _completion_choice(index: int, answer: _Answer, call: Call, tokenizer: Tokenizer) -> CompletionChoice:
    echo = call.echoes[index // (call.num_choices or call.generations[0].n)] if call.echoes else ""
    logprobs = None
    if call.num_top_logprobs is not None:
        shown, offset = answer.tokens, len(echo)
        if call.echoes:
            shown, offset = [*answer.prompt, *shown], echoed_offset(echo, answer.prompt)
        logprobs = completion_logprobs(shown, tokenizer, call.num_top_logprobs, offset)
    return CompletionChoice(
        index,
        echo + "".join(answer.text),
        logprobs,
        FINISH_WORDS[answer.finish_reason()],
        _prompt_logprobs(answer, call, tokenizer),
    )


def _prompt_logprobs(answer: _Answer, call: Call, tokenizer: Tokenizer) -> PromptLogprobs | UnsetType:
    asked = call.num_prompt_logprobs
    return UNSET if asked is None else prompt_logprobs(answer.prompt, asked, tokenizer)
