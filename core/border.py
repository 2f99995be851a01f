"""What the engine checks of a request before anything else sees it: numbers that would take others down with them.

An id outside the vocabulary makes a device read out of bounds, and that ends every request. The server refuses such ids
too, but the engine does not rely on it. Lengths and load are `core/limits.py` and `core/scheduler.py`.
"""

from __future__ import annotations

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import Submit

MAX_SEED = (1 << 64) - 1
"""What a frame can carry. Sequence i of a request uses its seed plus i."""


def check_numbers(submit: Submit, vocab_size: int) -> None:
    """Raises `RequestError` (INVALID) for a number that would end the engine instead of the request."""
    params = submit.params
    for noun, ids in (("prompt", submit.tokens), ("stop", params.stop_token_ids), ("bias", params.logit_bias)):
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            worst = min(ids) if min(ids) < 0 else max(ids)
            raise RequestError(
                ErrorKind.INVALID, f"{noun} token {worst} is not in the vocabulary of {vocab_size} tokens"
            )
    if params.logprobs is not None and not 0 <= params.logprobs <= vocab_size:
        raise RequestError(ErrorKind.INVALID, f"{params.logprobs} log-probabilities a token; ask for 0 to {vocab_size}")
    highest = MAX_SEED - submit.n + 1
    if params.seed is not None and not 0 <= params.seed <= highest:
        raise RequestError(ErrorKind.INVALID, f"seed {params.seed} is not one of 0 to {highest}")
