"""Rotary position embedding (Su et al. 2021), the half-split form that Hugging Face checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(q_THD: Tensor, k_TKD: Tensor, positions_T: Tensor, cos_sin_PR: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates the leading R dimensions of each head of q and k by their positions.

    cos_sin[P, R] float32 holds R/2 cosines then R/2 sines for each position, extensions and attention scaling included.
    Dimension i pairs with i + R/2. Heads' dimensions past R pass through.
    """
    cos, sin = cos_sin_PR[positions_T].unsqueeze(1).chunk(2, dim=-1)
    return _rotate(q_THD, cos, sin), _rotate(k_TKD, cos, sin)


def _rotate(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotary_dim = 2 * cos.shape[-1]
    first, second = x_THD[..., :rotary_dim].float().chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_THD.dtype)
    return torch.cat((rotated, x_THD[..., rotary_dim:]), dim=-1)
