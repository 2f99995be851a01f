"""Linear layers by the compiled kernels: float32, and quantized weights with int8 activations, a scale a token.

Legend: T tokens, K input features, N output features, G groups of a row, P panels of 32 outputs, Q quads of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.backends.cpu.native.library import Kernel, Kernels, Linear
from mainspring.core.backend import WeightScheme
from mainspring.core.ops.quantized import quantize_weight

PANEL = 32
"""Outputs that lie together."""


@dataclass(frozen=True, slots=True)
class NativeWeights:
    """A packed weight, as `backends.cpu.linear.Weights` wants it."""

    kernels: Kernels
    kernel: Kernel
    weights: Tensor
    scales: Tensor | None
    """int8: [P * 32] float32. int4: [P, G, 2, 32] float16, scales and then scales times zeros."""
    in_features: int
    out_features: int
    group_size: int = 0
    """Inputs that share a scale, for int4."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        """[T, N] in x's dtype, bias added."""
        x32_TK = x_TK if x_TK.dtype == torch.float32 and x_TK.is_contiguous() else x_TK.float().contiguous()
        bias_N = None if bias_N is None else bias_N.float().contiguous()
        tokens = x_TK.shape[0]
        out_TN = self.kernels.empty(tokens, self.out_features)
        record = Linear(
            x32_TK.data_ptr(), self.weights.data_ptr(), None if self.scales is None else self.scales.data_ptr(),
            None if bias_N is None else bias_N.data_ptr(), out_TN.data_ptr(), tokens, self.in_features,
            self.out_features, self.group_size,
        )  # fmt: skip
        self.kernels.run(self.kernel, record, self.in_features * self.out_features)
        return out_TN if x_TK.dtype == torch.float32 else out_TN.to(x_TK.dtype)


def pack_float(weight_NK: Tensor, kernels: Kernels) -> NativeWeights:
    """[P, K, 32] of a float32 weight."""
    out_features, in_features = weight_NK.shape
    panels = F.pad(weight_NK, (0, 0, 0, -out_features % PANEL)).view(-1, PANEL, in_features)
    weights = panels.transpose(1, 2).contiguous()
    return NativeWeights(kernels, Kernel.LINEAR_FLOAT, weights, None, in_features, out_features)


def pack_native(scheme: WeightScheme, tensors: Mapping[str, Tensor], kernels: Kernels) -> NativeWeights:
    """Neutral tensors, or a floating-point `weight`, in the kernels' form."""
    if tensors["weight"].dtype.is_floating_point:
        tensors = quantize_weight(tensors["weight"], scheme)
    out_features, in_features = tensors["weight"].shape
    pack, kernel = (_int4, Kernel.LINEAR_INT4) if scheme.weight == "int4" else (_int8, Kernel.LINEAR_INT8)
    weights, scales = pack(scheme, tensors)
    group_size = scheme.group_size or 0
    return NativeWeights(kernels, kernel, weights, scales, in_features, out_features, group_size)


def _int8(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """[P, Q, 32, 4], 128 more than they were, and scales [P * 32]."""
    weight_NK = (tensors["weight"].to(torch.int16) + 128).to(torch.uint8)
    padding = -len(weight_NK) % PANEL
    weight_NK = F.pad(weight_NK, (0, -weight_NK.shape[1] % 4, 0, padding))
    panels = weight_NK.view(-1, PANEL, weight_NK.shape[1] // 4, 4).transpose(1, 2).contiguous()
    return panels, F.pad(tensors["scales"].float().flatten(), (0, padding)).contiguous()


def _int4(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """[P, Q, 16, 4], the panel's second half of outputs in the high bits."""
    scales_NG = tensors["scales"].float()
    zeros_NG = torch.full_like(scales_NG, 8.0) if scheme.symmetric else tensors["zeros"].float()
    weight_NK = (tensors["weight"].to(torch.int16) + (8 if scheme.symmetric else 0)).to(torch.uint8)
    padding = -len(weight_NK) % PANEL
    weight_NK = F.pad(weight_NK, (0, 0, 0, padding))
    panels = weight_NK.view(-1, 2, PANEL // 2, weight_NK.shape[1] // 4, 4).permute(1, 0, 3, 2, 4)
    pairs = torch.stack((scales_NG, scales_NG * zeros_NG), dim=1)
    pairs = F.pad(pairs, (0, 0, 0, 0, 0, padding)).view(-1, PANEL, 2, scales_NG.shape[1]).permute(0, 3, 2, 1)
    return (panels[0] | (panels[1] << 4)).contiguous(), pairs.to(torch.float16).contiguous()
