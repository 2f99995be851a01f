"""What the engine checks of a request before anything else sees it: numbers that would take others down with them.

An id outside the vocabulary makes a device read out of bounds, and that ends every request. The server refuses such ids
too, but the engine does not rely on it. Lengths and load are the business of `core/scheduling`.
"""

from __future__ import annotations

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import Submit

MAX_SEED = (1 << 64) - 1
"""What a frame can carry. Sequence i of a request uses its seed plus i."""


MAX_PROMPT_LOGPROBS = 1 << 18
"""Numbers that a request may ask to be told of its prompt: about 4 MB on their way to the server."""


def check_numbers(submit: Submit, vocab_size: int) -> None:
    """Raises `RequestError` (INVALID) for a number that would end the engine instead of the request."""
    params = submit.params
    for noun, ids in (("prompt", submit.tokens), ("stop", params.stop_token_ids), ("bias", params.logit_bias)):
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            worst = min(ids) if min(ids) < 0 else max(ids)
            raise RequestError(
                ErrorKind.INVALID, f"{noun} token {worst} is not in the vocabulary of {vocab_size} tokens"
            )
    for asked in (params.logprobs, params.prompt_logprobs):
        if asked is not None and not 0 <= asked <= vocab_size:
            raise RequestError(ErrorKind.INVALID, f"{asked} log-probabilities a token; ask for 0 to {vocab_size}")
    _check_prompt_logprobs(len(submit.tokens), params.prompt_logprobs)
    if not 0 <= submit.said < max(len(submit.tokens), 1):
        raise RequestError(ErrorKind.INVALID, f"{submit.said} tokens said before, of {len(submit.tokens)} in all")
    highest = MAX_SEED - submit.n + 1
    if params.seed is not None and not 0 <= params.seed <= highest:
        raise RequestError(ErrorKind.INVALID, f"seed {params.seed} is not one of 0 to {highest}")


def _check_prompt_logprobs(num_tokens: int, asked: int | None) -> None:
    if asked is not None and num_tokens * (asked + 1) > MAX_PROMPT_LOGPROBS:
        most = MAX_PROMPT_LOGPROBS // num_tokens - 1
        raise RequestError(
            ErrorKind.INVALID,
            f"{asked} log-probabilities at each of {num_tokens} prompt tokens; "
            + (f"ask for at most {most}" if most >= 0 else f"a prompt of at most {MAX_PROMPT_LOGPROBS} tokens has any"),
        )
