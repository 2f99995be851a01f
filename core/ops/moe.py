"""Mixtures of experts (Shazeer et al. 2017; Jiang et al. 2024, "Mixtral of Experts"): each token goes through a few of
many gated MLPs, which are weighted and added up.

Legend: T packed tokens, E hidden size, I intermediate size of an expert, X experts, C of them chosen for a token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.core.ops.activation import silu_mul


def route(scores_TX: Tensor, chosen: int, normalized: bool) -> tuple[Tensor, Tensor]:
    """(weights [T, C] float32, experts [T, C] of any integer dtype): the likeliest, and their probabilities.

    `normalized` makes a token's weights add up to one.
    """
    weights_TC, experts_TC = torch.softmax(scores_TX, dim=-1, dtype=torch.float32).topk(chosen, dim=-1)
    return weights_TC / weights_TC.sum(-1, keepdim=True) if normalized else weights_TC, experts_TC


def moe(x_TE: Tensor, gate_up_X2IE: Tensor, down_XEI: Tensor, weights_TC: Tensor, experts_TC: Tensor) -> Tensor:
    """The sum over a token's experts of weight * down(silu(gate(x)) * up(x)), [T, E] in x's dtype.

    Gate and up lie one behind the other. A choice of weight 0 adds nothing, whatever its expert would say.
    This computes all experts for all tokens, so that shapes depend on no value.
    """
    out_TE = torch.zeros(x_TE.shape, dtype=torch.float32, device=x_TE.device)
    for expert in range(gate_up_X2IE.shape[0]):
        weight_T1 = torch.where(experts_TC == expert, weights_TC, 0.0).sum(-1, keepdim=True)
        hidden_TI = silu_mul(F.linear(x_TE, gate_up_X2IE[expert]))
        # An expert that was not chosen has no say, whatever it overflows to.
        part_TE = F.linear(hidden_TI, down_XEI[expert]).float() * weight_T1
        out_TE += torch.where(weight_T1 != 0, part_TE, 0.0)
    return out_TE.to(x_TE.dtype)
