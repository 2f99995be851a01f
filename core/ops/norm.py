"""Normalisation: RMSNorm (Zhang & Sennrich 2019), with and without the residual add before it, and LayerNorm.

Statistics are taken in float32 whatever the input's dtype; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight over the last dimension; any leading dimensions."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + epsilon)
    return weight * normed.to(x.dtype)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual): the residual stream and its normed copy."""
    total = x_TE + residual_TE
    return rms_norm(total, weight_E, epsilon), total


def layer_norm(x_TE: Tensor, weight_E: Tensor, bias_E: Tensor | None, epsilon: float) -> Tensor:
    """Ba et al. 2016, over the last dimension."""
    return F.layer_norm(x_TE, weight_E.shape, weight_E, bias_E, epsilon)
