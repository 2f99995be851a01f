"""Quantized linear layers: the neutral form of their tensors, rounding to nearest, and the reference product.

Every reader ends in this form, and it is all that a backend's `pack` gets. In `plain` packing a weight is one element a
value, never packed, and a value is (weight - zero) * scale:

* `weight` [N, K]: int8 for symmetric `int8` (-128 to 127) and `int4` (-8 to 7), uint8 for asymmetric ones (0 to 255, 0
  to 15); the type itself for `float8_e4m3fn`; uint8 codes, 0 to 15, for the types that are a table of sixteen values
  (`codes.py`): `nf4` and `fp4` (bitsandbytes), `mxfp4` and `nvfp4` (both e2m1);
* `scales` [N, G] float32, G = K / group_size, the last group short where it does not divide; G = 1 with one scale an
  output channel; [1, 1] with one a tensor; [N / group_rows, G] in blocks, the last of either short too. What a format
  quantizes twice is one float32 here: nf4's nested maxima, nvfp4's e4m3 scale times the tensor's, mxfp4's power of two;
* `zeros`, of scales' shape, float32, asymmetric only, in units of the quantized weight and not necessarily whole;
* `group_index` [K] int32, `scattered` only: the group of each input feature. Without it feature k is in group
  k // group_size;
* `input_scale` [1, 1] float32, maybe, where activations are rounded with one scale a tensor: the calibrated one
  (static). Without it the scale is that of the step's own largest value (dynamic).

In ggml's packings `weight` is uint8 [N, bytes of a row], the blocks of the file, and there is nothing else: they are
`gguf_blocks.py`'s.

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
from mainspring.core.ops.codes import CODES

SMALLEST_SCALE = 1e-12
"""Of activations: a row of zeros has no scale of its own, and any will do."""


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
"""By weight type and symmetry: the schemes of numbers that rounding to nearest can make."""


def can_quantize(scheme: WeightScheme) -> bool:
    """Whether `quantize_weight` makes this scheme from floating-point weights."""
    known = (scheme.weight, scheme.symmetric) in _RANGES or scheme.weight in CODES
    return known and scheme.packing == "plain" and not scheme.scattered


def quantize_weight(weight_NK: Tensor, scheme: WeightScheme) -> dict[str, Tensor]:
    """A floating-point weight in the scheme's neutral form, rounded to nearest.

    Raises `ValueError` for a scheme that rounding to nearest does not make, and for a K that does not divide into
    groups.
    """
    if not can_quantize(scheme):
        raise ValueError(f"floating-point weights cannot be rounded to {scheme}: only read from a checkpoint")
    if scheme.weight in CODES:
        return _round_to_codes(weight_NK, scheme)
    levels = _RANGES[scheme.weight, scheme.symmetric]
    groups = _grouped(weight_NK.float(), scheme)
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
    tensors = {"weight": _ungrouped(values, weight_NK, scheme), "scales": scales.squeeze(-1)}
    if not scheme.symmetric:
        tensors["zeros"] = zeros.squeeze(-1)
    return tensors


def dequantize(scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight [N, K] in float32 that a scheme's neutral tensors stand for."""
    weight_NK = tensors["weight"]
    if scheme.weight in CODES:
        values_NK = torch.tensor(CODES[scheme.weight], device=weight_NK.device)[weight_NK.int()]
    else:
        values_NK = weight_NK.float()
    group_index = tensors.get("group_index")
    if "zeros" in tensors:
        values_NK = values_NK - _spread(tensors["zeros"], scheme, weight_NK, group_index)
    return values_NK * _spread(tensors["scales"], scheme, weight_NK, group_index)


def quantize_activation(x_TK: Tensor, scheme: WeightScheme, input_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x in the scheme's activation dtype, symmetric, and its scales, float32: [T, 1] a token, [1, 1] a tensor, which is
    `input_scale` where it was calibrated, [T, G] a block of `group_size` features of a token.

    Raises `ValueError` when the scheme leaves activations alone, and where K does not divide into blocks.
    """
    if scheme.activation not in ("int8", "float8_e4m3fn"):
        raise ValueError(f"{scheme} leaves activations as they are")
    levels = _RANGES[scheme.activation, True]
    x32 = x_TK.float()
    if scheme.activation_granularity == "block":
        size = scheme.group_size or x32.shape[-1]
        blocks_TGk = x32.reshape(len(x32), x32.shape[-1] // size, size)
        scales = (blocks_TGk.abs().amax(-1) / levels.highest).clamp(min=SMALLEST_SCALE)
        scaled = (blocks_TGk / scales.unsqueeze(-1)).flatten(-2)
    else:
        scales = _activation_scales(x32, scheme, levels) if input_scale is None else input_scale
        scales = scales.clamp(min=SMALLEST_SCALE)
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
        quantized, scales = quantize_activation(x_TK, scheme, tensors.get("input_scale"))
        if scales.shape[1] > 1:
            scales = scales.repeat_interleave(x_TK.shape[1] // scales.shape[1], 1)
        x32 = quantized.float() * scales
    out_TN = F.linear(x32, dequantize(scheme, tensors), None if bias_N is None else bias_N.float())
    return out_TN.to(x_TK.dtype)


def _activation_scales(x32: Tensor, scheme: WeightScheme, levels: _Range) -> Tensor:
    """[T, 1] a token, or [1, 1]; a step without tokens has any."""
    if scheme.activation_granularity == "token":
        return x32.abs().amax(-1, keepdim=True) / levels.highest
    return x32.abs().amax([-2, -1], keepdim=True) / levels.highest if len(x32) else x32.new_zeros(1, 1)


def _round_to_codes(weight_NK: Tensor, scheme: WeightScheme) -> dict[str, Tensor]:
    """The nearest of sixteen values each. mxfp4's scales are powers of two, so that the largest value fits."""
    codes = torch.tensor(CODES[scheme.weight], device=weight_NK.device)
    groups = _grouped(weight_NK.float(), scheme)
    scales = groups.abs().amax(-1, keepdim=True) / codes.max()
    if scheme.weight == "mxfp4":
        scales = torch.where(scales > 0, torch.exp2(torch.ceil(torch.log2(scales))), 0)
    elif scheme.weight == "nvfp4":
        scales = scales.to(torch.float8_e4m3fn).float()
    values = torch.where(scales > 0, groups / scales, 0)
    order = codes.argsort()
    middles = (codes[order][1:] + codes[order][:-1]) / 2
    nearest = order[torch.bucketize(values.contiguous(), middles)].to(torch.uint8)
    return {"weight": _ungrouped(nearest, weight_NK, scheme), "scales": scales.squeeze(-1)}


def _spread(scales: Tensor, scheme: WeightScheme, weight_NK: Tensor, group_index: Tensor | None) -> Tensor:
    """A scale or a zero for each value: [N, K], or what broadcasts to it."""
    spread = scales.float()
    if scheme.group_rows > 1:
        spread = spread.repeat_interleave(scheme.group_rows, 0)[: weight_NK.shape[0]]
    if group_index is not None:
        return spread[:, group_index.long()]
    if scheme.group_size:
        spread = spread.repeat_interleave(scheme.group_size, 1)[:, : weight_NK.shape[1]]
    return spread


def _grouped(weight_NK: Tensor, scheme: WeightScheme) -> Tensor:
    """[N, K] as [N, G, K / G]; as [1, 1, N * K] with one scale for all; as [N / R, G, R * K / G] in blocks of rows."""
    rows, columns = weight_NK.shape
    if scheme.group_size == 0:
        return weight_NK.reshape(1, 1, -1)
    size = scheme.group_size or columns
    if columns % size:
        raise ValueError(f"{columns} input features do not divide into groups of {size}")
    if rows % scheme.group_rows:
        raise ValueError(f"{rows} output features do not divide into blocks of {scheme.group_rows}")
    blocks = weight_NK.reshape(rows // scheme.group_rows, scheme.group_rows, columns // size, size)
    return blocks.transpose(1, 2).flatten(2)


def _ungrouped(groups: Tensor, like_NK: Tensor, scheme: WeightScheme) -> Tensor:
    """What `_grouped` did, the other way."""
    if scheme.group_rows == 1:
        return groups.reshape(like_NK.shape)
    return groups.reshape(*groups.shape[:2], scheme.group_rows, -1).transpose(1, 2).reshape(like_NK.shape)
