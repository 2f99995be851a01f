"""Mixtures of experts on the host: each expert that some token chose multiplies those tokens.

Legend: T packed tokens, E hidden size, I intermediate size of an expert, X experts, C of them chosen for a token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.core.ops.activation import silu_mul


def moe(x_TE: Tensor, gate_up_X2IE: Tensor, down_XEI: Tensor, weights_TC: Tensor, experts_TC: Tensor) -> Tensor:
    """As `core.ops.moe.moe`; choices without weight cost nothing.

    Which experts there are to compute is asked for, so such a step is never recorded.
    """
    out_TE = torch.zeros(x_TE.shape, dtype=torch.float32)
    chosen_TC = torch.where(weights_TC != 0, experts_TC, -1)
    for expert in chosen_TC.unique().tolist():
        if expert < 0:
            continue
        token, place = (chosen_TC == expert).nonzero(as_tuple=True)
        hidden = silu_mul(F.linear(x_TE[token], gate_up_X2IE[expert]))
        part = F.linear(hidden, down_XEI[expert]).float() * weights_TC[token, place, None]
        out_TE.index_add_(0, token, part)
    return out_TE.to(x_TE.dtype)
