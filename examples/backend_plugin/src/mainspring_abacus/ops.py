"""Ops as an abacus does them. Signatures are those of the references in `mainspring/core/ops`."""

from __future__ import annotations

import torch
from torch import Tensor


def silu_mul(x_T2I: Tensor) -> Tensor:
    """silu(gate) * up by its definition, x * sigmoid(x): [T, 2I] -> [T, I]."""
    gate, up = x_T2I.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, as a division by a root."""
    mean = x.float().square().mean(-1, keepdim=True)
    return weight * (x.float() / torch.sqrt(mean + epsilon)).to(x.dtype)
