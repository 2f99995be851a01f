"""Log-probabilities where tensors of no elements cannot be: compilers refuse to take nothing."""

from __future__ import annotations

from torch import Tensor

from mainspring.core.ops.logprobs import logprobs as reference


def logprobs(logits_NV: Tensor, ids_N: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `core.ops.logprobs`; for none it looks for one and shows none."""
    chosen_N, top_ids_Nk, top_Nk = reference(logits_NV, ids_N, max(k, 1))
    return chosen_N, top_ids_Nk[:, :k], top_Nk[:, :k]
