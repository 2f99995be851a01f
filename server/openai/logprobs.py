"""Log-probabilities of generated tokens in OpenAI's two forms."""

from __future__ import annotations

from collections.abc import Sequence

from mainspring.server.generation import Token
from mainspring.server.openai.types import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from mainspring.server.tokenizer import Tokenizer


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
    """Parallel lists. `offset` is where the first token's text begins, in characters of the answer."""
    known = [(token, token.logprobs) for token in tokens if token.logprobs is not None]
    offsets = []
    for token, _ in known:
        offsets.append(offset)
        offset += 0 if token.special else len(token.text)
    top = [
        {
            tokenizer.token_text(token_id): logprob
            for token_id, logprob in zip(found.top_ids, found.top_logprobs, strict=True)
        }
        for _, found in known
    ]
    return CompletionLogprobs(
        tokens=[tokenizer.token_text(token.id) for token, _ in known],
        token_logprobs=[found.logprob for _, found in known],
        top_logprobs=top if num_top else None,
        text_offset=offsets,
    )
