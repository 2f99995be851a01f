"""The small ops with few kernels: at one token a step they cost as much as their calls, and there are ten a layer.

Legend: T packed tokens, H query heads, K kv heads, N both, D head dim, P positions of the rope table.
"""

from __future__ import annotations

from torch import Tensor, cat
from torch.nn import functional as F

from mainspring.core.ops.rope import rope as reference_rope


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As `core.ops.norm.rms_norm`, in one call; the weight multiplies before the result is rounded to x's dtype."""
    return F.rms_norm(x, weight.shape, weight, epsilon)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As `core.ops.norm.add_rms_norm`."""
    total_TE = x_TE + residual_TE
    return F.rms_norm(total_TE, weight_E.shape, weight_E, epsilon), total_TE


def silu_mul(x_T2I: Tensor) -> Tensor:
    """As `core.ops.activation.silu_mul`, into the memory of its first half's activation."""
    gate, up = x_T2I.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_mul(x_T2I: Tensor, tanh: bool) -> Tensor:
    """As `core.ops.activation.gelu_mul`, likewise."""
    gate, up = x_T2I.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh" if tanh else "none").mul_(up)


def rope(q_THD: Tensor, k_TKD: Tensor, positions_T: Tensor, cos_sin_PR: Tensor) -> tuple[Tensor, Tensor]:
    """As `core.ops.rope.rope`, for q and k at once."""
    if cos_sin_PR.shape[1] != q_THD.shape[2]:
        return reference_rope(q_THD, k_TKD, positions_T, cos_sin_PR)
    cos, sin = cos_sin_PR.index_select(0, positions_T)[:, None].chunk(2, dim=-1)
    heads_TND = cat((q_THD, k_TKD), dim=1)
    num_tokens, num_heads, head_dim = heads_TND.shape
    halves = heads_TND.float().view(num_tokens, num_heads, 2, head_dim // 2)
    rotated = halves * cos.unsqueeze(2)
    rotated[..., 0, :].addcmul_(halves[..., 1, :], sin, value=-1)
    rotated[..., 1, :].addcmul_(halves[..., 0, :], sin)
    turned_TND = rotated.view(heads_TND.shape).to(q_THD.dtype)
    return turned_TND[:, : q_THD.shape[1]], turned_TND[:, q_THD.shape[1] :]
