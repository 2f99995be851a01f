"""Linear layers in float8: the matrix unit's own type on Gaudi 2 and 3, with a scale for each token and each output.

Gaudi 2 takes numbers up to 240, half of float8_e4m3fn's range; weights are moved into it when they are packed.

Legend: T tokens, K input features, N output features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mainspring.core.backend import PackedLinear, WeightScheme
from mainspring.core.ops.quantized import quantize_weight

RANGE = float(torch.finfo(torch.float8_e4m3fn).max)


@dataclass(frozen=True, slots=True)
class Float8:
    """The bridge's two ops, and the highest number that the card takes."""

    cast: Callable[..., Any]
    product: Callable[..., Any]
    highest: float

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        """`weight` [N, K], in float8 with `scales` [N, 1] or not quantized yet, within the card's range."""
        stored = tensors if "scales" in tensors else quantize_weight(tensors["weight"], scheme)
        weight_NK, scales_N = stored["weight"], stored["scales"].float().flatten()
        if self.highest < RANGE:
            smaller = self.highest / RANGE
            weight_NK = (weight_NK.float() * smaller).to(torch.float8_e4m3fn)
            scales_N = scales_N / smaller
        return PackedLinear(scheme, weight_NK.shape[1], weight_NK.shape[0], (weight_NK, scales_N), tensors.get("bias"))

    def quantize(self, x_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Activations in float8, and a scale for each token, [T, 1] float32."""
        scale_T1 = x_TK.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / self.highest
        # Divided before the cast: its own scale is a factor, whose rounding would move some to the next number.
        return self.cast(x_TK.float() / scale_T1, None, False, False, torch.float8_e4m3fn)[0], scale_T1

    def linear(self, x_TK: Tensor, packed: PackedLinear) -> Tensor:
        """[T, N] in x's dtype."""
        weight_NK, scales_N = packed.data
        q_TK, scale_T1 = self.quantize(x_TK)
        out: Tensor = self.product(
            q_TK, False, weight_NK, True, None, x_TK.dtype, scale_T1, scales_N, packed.bias, False
        )
        return out
