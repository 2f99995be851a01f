"""Log-probabilities in OpenAI's two forms, and those of prompts in vLLM's."""

from __future__ import annotations

from collections.abc import Sequence

from mainspring.core.request import TokenLogprobs
from mainspring.server.openai.types import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from mainspring.server.text.generation import Token
from mainspring.server.text.tokenizer import Tokenizer


def chat_logprobs(tokens: Sequence[Token], tokenizer: Tokenizer) -> ChatLogprobs:
    """One entry a token, with its bytes: a token need not be a whole character."""
    content = []
    for token in tokens:
        if token.logprobs is None:
            continue
        top = [
            TopLogprob(tokenizer.token_text(token_id), logprob, list(tokenizer.token_bytes(token_id)))
            for token_id, logprob in zip(token.logprobs.top_ids, token.logprobs.top_logprobs, strict=True)
        ]
        own_bytes = list(tokenizer.token_bytes(token.id))
        content.append(TokenLogprob(tokenizer.token_text(token.id), token.logprobs.logprob, own_bytes, top))
    return ChatLogprobs(content)


def completion_logprobs(tokens: Sequence[Token], tokenizer: Tokenizer, num_top: int, offset: int) -> CompletionLogprobs:
    """Parallel lists. `offset` is where the first token's text begins, in characters of the answer.

    A prompt's tokens may have more text than the prompt, a leading space for one: then `offset` is below zero.
    """
    offsets = []
    for token in tokens:
        offsets.append(max(offset, 0))
        offset += 0 if token.special else len(token.text)
    return CompletionLogprobs(
        tokens=[tokenizer.token_text(token.id) for token in tokens],
        token_logprobs=[None if token.logprobs is None else token.logprobs.logprob for token in tokens],
        top_logprobs=[_top(token.logprobs, num_top, tokenizer) for token in tokens] if num_top else None,
        text_offset=offsets,
    )


def echoed_offset(echo: str, prompt: Sequence[Token]) -> int:
    """Where the text of an echoed prompt's tokens begins, so that it ends where the echo does."""
    return len(echo) - sum(0 if token.special else len(token.text) for token in prompt)


def prompt_logprobs(prompt: Sequence[Token], num_top: int, tokenizer: Tokenizer) -> PromptLogprobs:
    """vLLM's form: at each position the `num_top` likeliest tokens and the prompt's own."""
    return [
        None if token.logprobs is None else _by_id(token.id, token.logprobs, num_top, tokenizer) for token in prompt
    ]


def _top(found: TokenLogprobs | None, num_top: int, tokenizer: Tokenizer) -> dict[str, float] | None:
    """By text. Of several tokens with one text (bytes of characters) the likeliest counts."""
    if found is None:
        return None
    top: dict[str, float] = {}
    for token_id, logprob in zip(found.top_ids[:num_top], found.top_logprobs, strict=False):
        top.setdefault(tokenizer.token_text(token_id), logprob)
    return top


def _by_id(own: int, found: TokenLogprobs, num_top: int, tokenizer: Tokenizer) -> dict[str, PromptLogprob]:
    ranks = {token_id: rank for rank, token_id in enumerate(found.top_ids, start=1)}
    entries = {
        str(token_id): PromptLogprob(logprob, ranks[token_id], tokenizer.token_text(token_id))
        for token_id, logprob in zip(found.top_ids[:num_top], found.top_logprobs, strict=False)
    }
    entries.setdefault(str(own), PromptLogprob(found.logprob, ranks.get(own), tokenizer.token_text(own)))
    return entries
