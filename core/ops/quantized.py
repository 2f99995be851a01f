"""Quantized linear layers: the neutral form of their tensors, rounding to nearest, and the reference product.

Every reader ends in this form, and it is all that a backend's `pack` gets. In `plain` packing a weight is one element a
value, never packed, and a value is (weight - zero) * scale:

* `weight` [N, K]: int8 for symmetric `int8` (-128 to 127) and `int4` (-8 to 7), uint8 for the asymmetric ones (0 to 255,
  0 to 15); the type itself for `float8_e4m3fn`; uint8 codes, 0 to 15, for the types that are a table of sixteen values
  (`codes.py`): `nf4` and `fp4` (bitsandbytes), `mxfp4` and `nvfp4` (both e2m1);
* `scales` [N, G] float32, G = K / group_size, the last group short where it does not divide; G = 1 with one scale an
  output channel; [1, 1] with one a tensor; [N / group_rows, G] in blocks, the last of either short too. What a format
  quantizes twice is one float32 here: nf4's nested maxima, nvfp4's e4m3 scale times the tensor's, mxfp4's power of two;
* `zeros`, of scales' shape, float32, asymmetric only, in units of the quantized weight and not necessarily whole;
* `group_index` [K] int32, `scattered` only: the group of each input feature. Without it feature k is in group
  k // group_size;
* `input_scale` [1, 1] float32, maybe, where activations are rounded with one scale a tensor: the calibrated one
  (static). Without it the scale is that of the step's own largest value (dynamic).

In ggml's packings `weight` is uint8 [N, bytes of a row], the blocks of the file, and there is nothing else. `bits`,
`group_size` and `weight` of the scheme say what the blocks are made of (`gguf_blocks.py`).

Legend: T tokens, K input features, N output features, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.core.backend import WeightScheme


@dataclass(frozen=True, slots=True)
class _Range:
    """Values that a type of weight can take."""

    dtype: torch.dtype
    lowest: float
    highest: float


_RANGES: Mapping[tuple[str, bool], _Range] = MappingProxyType(
    {
        ("int8", True): _Range(torch.int8, -127, 127),
        ("int8", False): _Range(torch.uint8, 0, 255),
        ("int4", True): _Range(torch.int8, -8, 7),
        ("int4", False): _Range(torch.uint8, 0, 15),
        ("float8_e4m3fn", True): _Range(torch.float8_e4m3fn, -448, 448),
    }
)
"""By weight type and symmetry: the schemes that rounding to nearest can make."""


def can_quantize(scheme: WeightScheme) -> bool:
    """Whether `quantize_weight` makes this scheme from floating-point weights."""
    return (scheme.weight, scheme.symmetric) in _RANGES and scheme.packing == "plain"


def quantize_weight(weight_NK: Tensor, scheme: WeightScheme) -> dict[str, Tensor]:
    """A floating-point weight in the scheme's neutral form, rounded to nearest.

    Raises `ValueError` for a scheme that rounding to nearest does not make, and for a K that does not divide into
    groups.
    """
    if not can_quantize(scheme):
        raise ValueError(f"floating-point weights cannot be rounded to {scheme}: only read from a checkpoint")
    levels = _RANGES[scheme.weight, scheme.symmetric]
    groups = _grouped(weight_NK.float(), scheme.group_size)
    if scheme.symmetric:
        # -8 is not used to set the scale, so that the largest magnitude is kept exactly on either side.
        scales = groups.abs().amax(-1, keepdim=True) / levels.highest
        zeros = torch.zeros_like(scales)
    else:
        # The zero point is not rounded, so the range is no wider than the group, and a group that was rounded like
        # this before (GGUF's Q4_1) keeps its values. One of equal values has no range but that to 0.
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        flat = low == high
        low, high = torch.where(flat, low.clamp(max=0), low), torch.where(flat, high.clamp(min=0), high)
        scales = (high - low) / levels.highest
        zeros = torch.where(scales > 0, -low / scales, 0)
    # A group of zeros has scale 0 and quantizes to its zero point.
    values = torch.where(scales > 0, groups / scales, 0) + zeros
    if not levels.dtype.is_floating_point:
        values = values.round()
    values = values.clamp(levels.lowest, levels.highest).to(levels.dtype)
    tensors = {"weight": values.reshape(weight_NK.shape), "scales": scales.squeeze(-1)}
    if not scheme.symmetric:
        tensors["zeros"] = zeros.squeeze(-1)
    return tensors


def dequantize(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight [N, K] in float32 that a scheme's neutral tensors stand for."""
    weight_NK = tensors["weight"]
    groups = _grouped(weight_NK.float(), scheme.group_size)
    if "zeros" in tensors:
        groups = groups - tensors["zeros"].float().unsqueeze(-1)
    return (groups * tensors["scales"].float().unsqueeze(-1)).reshape(weight_NK.shape)


def quantize_activation(x_TK: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    """x in the scheme's activation dtype, symmetric, and its scales: [T, 1] a token, [1, 1] a tensor, float32.

    Raises `ValueError` when the scheme leaves activations alone.
    """
    if scheme.activation not in ("int8", "float8_e4m3fn"):
        raise ValueError(f"{scheme} leaves activations as they are")
    levels = _RANGES[scheme.activation, True]
    x32 = x_TK.float()
    dims = [-1] if scheme.activation_granularity == "token" else [-2, -1]
    # A row of zeros has no scale of its own; any will do.
    scales = (x32.abs().amax(dims, keepdim=True) / levels.highest).clamp(min=1e-12)
    scaled = x32 / scales
    if not levels.dtype.is_floating_point:
        scaled = scaled.round()
    return scaled.clamp(levels.lowest, levels.highest).to(levels.dtype), scales


def quantized_linear(
    x_TK: Tensor, scheme: WeightScheme, tensors: Mapping[str, Tensor], bias_N: Tensor | None = None
) -> Tensor:
    """The reference product: x times the dequantized weight, in float32; [T, N] in x's dtype."""
    x32 = x_TK.float()
    if scheme.activation in ("int8", "float8_e4m3fn"):
        quantized, scales = quantize_activation(x_TK, scheme)
        x32 = quantized.float() * scales
    out_TN = F.linear(x32, dequantize(scheme, tensors), None if bias_N is None else bias_N.float())
    return out_TN.to(x_TK.dtype)


def _grouped(weight_NK: Tensor, group_size: int | None) -> Tensor:
    """[N, K] as [N, G, K / G]; as [1, 1, N * K] with one scale for all."""
    if group_size is None:
        return weight_NK.unsqueeze(1)
    if group_size == 0:
        return weight_NK.reshape(1, 1, -1)
    if weight_NK.shape[1] % group_size:
        raise ValueError(f"{weight_NK.shape[1]} input features do not divide into groups of {group_size}")
    return weight_NK.reshape(len(weight_NK), -1, group_size)
