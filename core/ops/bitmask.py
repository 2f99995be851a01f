"""Leaves of some rows' logits only those that a mask allows: what guided decoding does to a step."""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BITS = 32


def apply_bitmask(logits_NV: Tensor, rows_G: Tensor, mask_GW: Tensor) -> Tensor:
    """Logits [N, V] of which, in rows_G [G] int64, those whose bit is 0 are -infinity; the argument stays as it is.

    Bit t % 32 of word t // 32 of mask_GW [G, W] int32 belongs to token t; bits past the vocabulary mean nothing.
    """
    place_32 = torch.arange(WORD_BITS, dtype=torch.int32, device=mask_GW.device)
    allowed_GV = ((mask_GW[:, :, None] >> place_32) & 1).bool().flatten(1)[:, : logits_NV.shape[1]]
    masked_GV = logits_NV.index_select(0, rows_G).masked_fill(~allowed_GV, float("-inf"))
    return logits_NV.index_copy(0, rows_G, masked_GV)
