"""The end of a step: tokens are chosen, put where the next step reads them, and told apart from numbers gone wrong.

Legend: N rows that choose a token, V vocabulary, R rows of the token table, P its positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mainspring.core.ops.sample import SamplingTensors


def choose(
    sample: Callable[[Tensor, SamplingTensors], Tensor],
    logits_NV: Tensor,
    sampling: SamplingTensors,
    tokens_RP: Tensor,
    rows_N: Tensor,
) -> Tensor:
    """[2, N] int32: a token id for each row, and whether its logits were not finite.

    The ids are also written to the token table, at (rows[n], sampling.position[n]). `sample` is the op of that name.
    """
    logits_NV = logits_NV.float()
    ids_N = sample(logits_NV, sampling)
    tokens_RP.index_put_((rows_N, sampling.position), ids_N)
    return torch.stack((ids_N, not_finite(logits_NV).int()))


def not_finite(logits_NV: Tensor) -> Tensor:
    """[N] bool: rows that hold NaN or +inf, or no finite logit at all. -inf alone is how a token is ruled out."""
    # Not every compiler's maximum passes NaN on (XLA's on a host does not). Every sum does; NaN alone is not itself.
    total_N = logits_NV.sum(dim=-1)
    return ~logits_NV.amax(dim=-1).isfinite() | (total_N != total_N)
