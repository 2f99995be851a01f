"""Log-probabilities of chosen and of the likeliest tokens."""

from __future__ import annotations

from torch import Tensor


def logprobs(logits_NV: Tensor, ids_N: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(chosen [N], top ids [N, k] int32, top [N, k]), natural logarithms, float32, best first; k may be 0."""
    logits_NV = logits_NV.float()
    total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    chosen_N1 = logits_NV.gather(1, ids_N.long()[:, None]) - total_N1
    top_ids_Nk, top_Nk = likeliest(logits_NV, k)
    return chosen_N1.squeeze(1), top_ids_Nk, top_Nk - total_N1


def likeliest(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """([N, k] int32 ids, [N, k] logits), best first.

    Ties, which 16-bit logits are full of, come in the order of their ids, as `argmax` takes the first.
    """
    top_Nk, top_ids_Nk = logits_NV.topk(k, dim=-1)
    top_ids_Nk, by_id_Nk = top_ids_Nk.sort(dim=-1)
    top_Nk, by_value_Nk = top_Nk.gather(1, by_id_Nk).sort(dim=-1, descending=True, stable=True)
    return top_ids_Nk.gather(1, by_value_Nk).int(), top_Nk
