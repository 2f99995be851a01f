"""Quantized linear layers in torch's own CPU kernels.

* int8 weights with int8 activations, a scale a token: oneDNN's integer product (VNNI), two to three times as fast as
  float32 at any number of rows. The kernel is exact; what it loses is the rounding of activations.
* int8 weights alone, and int4 weights in groups: kernels that take bfloat16 activations and nothing else well (float32
  falls to a scalar path), so other dtypes are cast around them. They halve the time of single rows; the memory is what
  they are for.

`pack_quantized` takes neutral tensors (see `core.ops.quantized`) or a floating-point weight, which it rounds itself.
Which schemes there are and what shapes they take is `schemes.py`.

Legend: T tokens, K input features, N output features, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.backends.cpu.linear import Weights, pack_float
from mainspring.backends.cpu.schemes import INT4_DYNAMIC, INT8
from mainspring.core.backend import WeightScheme
from mainspring.core.ops import gguf_blocks
from mainspring.core.ops.quantized import dequantize, quantize_activation, quantize_weight

DEQUANTIZE_ROWS = 16
"""More rows than this, and a common product of the dequantized weight costs less than the int8 kernel."""


@dataclass(frozen=True, slots=True)
class DynamicInt8Weights:
    """oneDNN's blocked int8 weight, for activations that are quantized as they come."""

    blocked: Tensor
    scales: Tensor
    """[N]"""
    zeros: Tensor
    """[N] The kernel wants them, and symmetric weights have none."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        x32 = x_TK.float()
        scales_T1 = x32.abs().amax(-1, keepdim=True).mul_(1 / 127).clamp_(min=1e-12)
        # Unsigned with 128 for zero is the kernel's fast form. Adding before the cast truncates to the nearest.
        x_uint8 = (x32 / scales_T1).add_(128.5).to(torch.uint8)
        out_TN = torch.ops.onednn.qlinear_pointwise.default(
            x_uint8, 1.0, 128, self.blocked, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return _finished(out_TN.mul_(scales_T1), bias_N, x_TK.dtype)


@dataclass(frozen=True, slots=True)
class Int8Weights:
    """int8 as it is in the checkpoint, a scale an output channel."""

    weight: Tensor
    """[N, K]"""
    scales: Tensor
    """[N] bfloat16"""
    wide: torch.dtype
    """What many rows are multiplied in: bfloat16 where the processor does, else float32. int8 is exact in both."""

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        if len(x_TK) > DEQUANTIZE_ROWS:
            out_TN = F.linear(x_TK.to(self.wide), self.weight.to(self.wide)) * self.scales
        else:
            out_TN = torch._weight_int8pack_mm(x_TK.to(torch.bfloat16).contiguous(), self.weight, self.scales)
        return _finished(out_TN, bias_N, x_TK.dtype)


@dataclass(frozen=True, slots=True)
class Int4Weights:
    """Two values a byte in the kernel's order, and for each group its scale and the value of 8."""

    packed: Tensor
    scales_and_zeros: Tensor
    """[G, N, 2] bfloat16"""
    group_size: int

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        short_TK = x_TK.to(torch.bfloat16).contiguous()
        out_TN = torch.ops.aten._weight_int4pack_mm_for_cpu.default(
            short_TK, self.packed, self.group_size, self.scales_and_zeros
        )
        return _finished(out_TN, bias_N, x_TK.dtype)


@dataclass(frozen=True, slots=True)
class RoundedActivations:
    """int4 weights and int8 activations where no kernel multiplies them: both become floating point again. It saves no
    memory and no time; it is there so that a model answers the same without a compiler.
    """

    scheme: WeightScheme
    weight: Weights

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        rounded_TK, scales_T1 = quantize_activation(x_TK, self.scheme)
        out_TN = self.weight.product(rounded_TK.float() * scales_T1, None)
        return _finished(out_TN, bias_N, x_TK.dtype)


@dataclass(frozen=True, slots=True)
class NumberedBlocks:
    """GGUF's blocks where no kernel multiplies them: as numbers, for products, and as they are, for rows of tables. It
    saves no memory; it is there so that a model answers the same without a compiler.
    """

    scheme: WeightScheme
    raw: Tensor
    """[N, row bytes]"""
    weight: Weights
    in_features: int
    out_features: int

    @classmethod
    def of(cls, scheme: WeightScheme, raw_NB: Tensor, *, opaque: bool) -> NumberedBlocks:
        """Of raw rows of blocks; `opaque` as `pack_float` has it."""
        weight_NK = gguf_blocks.dequantize(gguf_blocks.blocks_of(scheme), raw_NB)
        out_features, in_features = weight_NK.shape
        return cls(scheme, raw_NB, pack_float(weight_NK, opaque=opaque), in_features, out_features)

    def product(self, x_TK: Tensor, bias_N: Tensor | None) -> Tensor:
        rounded_TK, scales_TK = gguf_blocks.round_activations(x_TK)
        return _finished(self.weight.product(rounded_TK.float() * scales_TK, None), bias_N, x_TK.dtype)

    def rows(self, index_T: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, K]."""
        return gguf_blocks.dequantize(gguf_blocks.blocks_of(self.scheme), self.raw[index_T.long()]).to(dtype)


def pack_quantized(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> Weights:
    """Neutral tensors, or a floating-point `weight`, in a kernel's form. The scheme must have passed `verdict`."""
    if tensors["weight"].dtype.is_floating_point:
        tensors = quantize_weight(tensors["weight"], scheme)
    if scheme == INT4_DYNAMIC:
        return RoundedActivations(scheme, pack_float(dequantize(scheme, tensors)))
    if scheme.weight == "int4":
        return _pack_int4(scheme, tensors)
    weight_NK, scales_N = tensors["weight"].contiguous(), tensors["scales"].float().flatten()
    if scheme == INT8:
        wide = torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
        return Int8Weights(weight_NK, scales_N.to(torch.bfloat16), wide)
    blocked = torch.ops.onednn.qlinear_prepack(weight_NK, None)
    return DynamicInt8Weights(blocked, scales_N.contiguous(), torch.zeros(len(scales_N), dtype=torch.int32))


def _pack_int4(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> Int4Weights:
    """The kernel's value is (q - 8) * scale + zero, q from 0 to 15."""
    scales_NG = tensors["scales"].float()
    if scheme.symmetric:
        unsigned_NK, zeros_NG = tensors["weight"].to(torch.int32) + 8, torch.zeros_like(scales_NG)
    else:
        unsigned_NK, zeros_NG = tensors["weight"].to(torch.int32), (8 - tensors["zeros"].float()) * scales_NG
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu.default(unsigned_NK.contiguous(), 1)
    pairs = torch.stack((scales_NG.t(), zeros_NG.t()), dim=-1).to(torch.bfloat16).contiguous()
    return Int4Weights(packed, pairs, cast("int", scheme.group_size))


def _finished(out_TN: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> Tensor:
    out_TN = out_TN.to(dtype)
    return out_TN if bias_N is None else out_TN + bias_N
