"""Requests answered in this process, from their parameters to their texts: the engine's own parts, and the server's for
text and stop strings, without what lies between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from mainspring.core.errors import RequestError
from mainspring.core.request import FinishReason, RequestId, SamplingParams, Submit, TokenLogprobs
from mainspring.server.text.generation import Generation, SequenceText
from mainspring.server.text.tokenizer import Tokenizer
from tests.support.in_process import InProcess

TOLERANCE = 2e-4
"""Between log-probabilities of the same token, which steps of other sizes compute."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request, with what the engine does not know of it."""

    tokens: list[int]
    params: SamplingParams
    stops: tuple[str, ...] = ()
    n: int = 1


@dataclass(slots=True)
class Answer:
    """What one sequence got."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: FinishReason | None = None
    problem: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    def differences(self, other: Answer) -> Iterator[str]:
        """Between two answers to one question, in words."""
        for name in ("tokens", "text", "reason", "problem"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                yield f"{name}: {mine!r} and {its!r}"
        for name in ("logprobs", "prompt_logprobs"):
            for place, (one, another) in enumerate(zip_longest(getattr(self, name), getattr(other, name))):
                if one is None or another is None or not alike(one, another):
                    yield f"{name} of token {place}: {one} and {another}"


def alike(one: TokenLogprobs, other: TokenLogprobs) -> bool:
    """Whether two log-probabilities are the same but for rounding; tokens that tie may change places."""
    known, least = dict(zip(other.top_ids, other.top_logprobs, strict=True)), min(other.top_logprobs, default=0.0)
    pairs = [(one.logprob, other.logprob)]
    pairs += [(value, known.get(token, least)) for token, value in zip(one.top_ids, one.top_logprobs, strict=True)]
    return len(one.top_ids) == len(known) and all(mine == its or abs(mine - its) < TOLERANCE for mine, its in pairs)


def differences(found: Sequence[Answer], others: Sequence[Answer]) -> list[str]:
    """Between answers to the same questions, in words."""
    return [
        f"answer {number}, {difference}"
        for number, (one, other) in enumerate(zip(found, others, strict=True))
        for difference in one.differences(other)
    ]


def answer(loop: InProcess, tokenizer: Tokenizer, questions: Sequence[Question]) -> list[Answer]:
    """All at once; of a question for several sequences each of them, in order."""
    answers: dict[tuple[int, int], tuple[SequenceText, Answer]] = {}
    for number, question in enumerate(questions):
        asked = Generation(tokens=question.tokens, params=question.params, n=question.n, stops=question.stops)
        for index in range(question.n):
            answers[number, index] = SequenceText(tokenizer, asked), Answer()
        loop.scheduler.submit(Submit(RequestId(number), question.tokens, question.params, n=question.n))
    for delta in loop.deltas():
        text, found = answers[delta.request_id, delta.index]
        if text.finished or found.problem:
            continue
        found.prompt_logprobs += delta.prompt_logprobs or ()
        try:
            piece = text.fold(delta)
        except RequestError as error:
            found.problem = f"{error.kind.name}: {error.message}"
            continue
        found.text += piece.text
        found.tokens += [token.id for token in piece.tokens]
        found.logprobs += [token.logprobs for token in piece.tokens if token.logprobs is not None]
        if piece.finish is not None:
            found.reason = piece.finish.reason
            if delta.finish is None:
                loop.scheduler.cancel(delta.request_id, delta.index)
    return [found for _, found in answers.values()]
