"""GGUF's quantized blocks: their layouts taken apart, and the reference product.

A weight kept as its file has it is `weight` [N, row bytes] uint8 and nothing else; the scheme's `packing` names ggml's
block. Whatever the block, a value is

    (code - offset) * scale * step - minimum * minimum_step

with codes from 0 on, one `scale` (and `minimum`) in float16 for each block, and one whole `step` (and `minimum_step`)
for each group of it in the K-quants, 1 elsewhere. A fused layer's rows are the rows of its parts one behind the other,
and a part of a row may be cut out at whole blocks: all bytes of a row stand in the order of its inputs.

What the blocks are in numbers, and their schemes, is `core/gguf_layouts.py`, which needs no torch.

Legend: T tokens, K input features, N output features, S blocks of a row, G groups of a row.
Source: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.core.backend import GGUFPacking, WeightScheme
from mainspring.core.gguf_layouts import LAYOUTS, Layout, packing_of

ACTIVATION_GROUP = 32
"""Inputs whose rounded activations share a scale."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A weight's blocks taken apart."""

    codes: Tensor
    """[N, K] uint8, from 0 on."""
    scales: Tensor
    """[N, S] float16"""
    minimums: Tensor | None
    """[N, S] float16"""
    steps: Tensor | None
    """[N, G] uint8, int8 for q6_k"""
    minimum_steps: Tensor | None
    """[N, G] uint8"""


def blocks_of(scheme: WeightScheme) -> GGUFPacking:
    """Of a scheme that is known to have some."""
    found = packing_of(scheme.packing)
    if found is None:
        raise ValueError(f"{scheme} has no blocks of GGUF's")
    return found


def in_features(packing: GGUFPacking, row_bytes: int) -> int:
    """K of a row of so many bytes."""
    layout = LAYOUTS[packing]
    return row_bytes // layout.num_bytes * layout.inputs


def take_apart(packing: GGUFPacking, weight_NB: Tensor) -> Blocks:
    """Raw rows [N, row bytes] uint8 as codes, scales and what else the blocks hold."""
    rows = len(weight_NB)
    blocks = weight_NB.reshape(rows, -1, LAYOUTS[packing].num_bytes)
    scales, minimums, codes = _SPLITS[packing](blocks)
    minimum_steps = None
    steps = None
    if packing in ("q4_k", "q5_k"):
        steps, minimum_steps = _six_bits(blocks[..., 4:16])
    if packing == "q6_k":
        steps = blocks[..., 192:208].contiguous().view(torch.int8)
    return Blocks(
        codes.reshape(rows, -1),
        scales,
        minimums,
        None if steps is None else steps.reshape(rows, -1),
        None if minimum_steps is None else minimum_steps.reshape(rows, -1),
    )


def dequantize(packing: GGUFPacking, weight_NB: Tensor) -> Tensor:
    """[N, K] in float32: to the bit what the `gguf` package makes of the same bytes."""
    layout, blocks = LAYOUTS[packing], take_apart(packing, weight_NB)
    scales_NG = _by_group(layout, blocks.scales, blocks.steps)
    groups = _apart(blocks.codes.float() - layout.offset, -1, layout.group) * scales_NG.unsqueeze(-1)
    if blocks.minimums is not None:
        groups -= _by_group(layout, blocks.minimums, blocks.minimum_steps).unsqueeze(-1)
    return groups.flatten(1)


def round_activations(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """x as int8 [T, K], and scales [T, K]: each group's own, for each of its inputs."""
    groups = _apart(x_TK.float(), -1, ACTIVATION_GROUP)
    # A group of zeros has no scale of its own; any will do.
    scales = (groups.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
    values = (groups / scales).round().clamp(-127, 127).to(torch.int8)
    return values.flatten(-2), scales.expand_as(groups).flatten(-2)


def product(x_TK: Tensor, scheme: WeightScheme, weight_NB: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """The reference product, in float32; [T, N] in x's dtype."""
    x32 = x_TK.float()
    if scheme.activation == "int8":
        values, scales = round_activations(x32)
        x32 = values.float() * scales
    out_TN = F.linear(x32, dequantize(blocks_of(scheme), weight_NB), None if bias_N is None else bias_N.float())
    return out_TN.to(x_TK.dtype)


def random_weight(packing: GGUFPacking, out_features: int, num_inputs: int) -> Tensor:
    """Rows of random blocks, each kind of number of each group different from the next; values are near 1 / sqrt(K).

    For tests: K-quants have no writer in Python.
    """
    layout = LAYOUTS[packing]
    num_blocks = num_inputs // layout.inputs
    generator = torch.Generator().manual_seed(out_features + num_inputs)
    raw = torch.randint(0, 256, (out_features, num_blocks, layout.num_bytes), generator=generator, dtype=torch.uint8)
    # Codes times steps spread evenly over this range; the rest is uniform bits already.
    spread = (1 << layout.bits) * (48 if layout.has_steps else 1) / 4 * (1.5 if packing == "q6_k" else 1)
    size = num_inputs**-0.5 / spread
    halves = size * (0.5 + torch.rand((out_features, num_blocks, 2), generator=generator))
    if layout.has_minimums:
        halves[..., 1] *= -(1 << layout.bits) / 2 if packing == "q4_1" else (1 << layout.bits) / 2
    place = 208 if packing == "q6_k" else 0
    width = 4 if layout.has_minimums else 2
    as_bytes = halves.to(torch.float16).contiguous().view(torch.uint8)
    raw[..., place : place + width] = as_bytes[..., :width]
    return raw.flatten(1)


def _by_group(layout: Layout, per_block: Tensor, steps: Tensor | None) -> Tensor:
    """[N, G] float32 of what blocks have one each of."""
    whole = per_block.float()
    if steps is None:
        return whole
    return whole.repeat_interleave(layout.inputs // layout.group, dim=1) * steps.float()


def _halves(blocks: Tensor, at: int) -> Tensor:
    return blocks[..., at : at + 2].contiguous().view(torch.float16).squeeze(-1)


def _apart(x: Tensor, *sizes: int) -> Tensor:
    """The last dimension as several."""
    return x.reshape(*x.shape[:-1], *sizes)


def _nibbles(packed: Tensor) -> Tensor:
    """[..., n bytes] as [..., 2, n]: low halves, then high ones."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-2)


Split = tuple[Tensor, Tensor | None, Tensor]
"""Scales, minimums, codes [N, S, values]."""


def _q4_0(blocks: Tensor) -> Split:
    return _halves(blocks, 0), None, _nibbles(blocks[..., 2:]).flatten(-2)


def _q4_1(blocks: Tensor) -> Split:
    return _halves(blocks, 0), -_halves(blocks, 2), _nibbles(blocks[..., 4:]).flatten(-2)


def _q8_0(blocks: Tensor) -> Split:
    # A signed byte with its highest bit turned is the same number and 128.
    return _halves(blocks, 0), None, blocks[..., 2:] ^ 0x80


def _q4_k(blocks: Tensor) -> Split:
    return _halves(blocks, 0), _halves(blocks, 2), _nibbles(_apart(blocks[..., 16:], 4, 32)).flatten(-3)


def _q5_k(blocks: Tensor) -> Split:
    low = _nibbles(_apart(blocks[..., 48:], 4, 32)).flatten(-3, -2)
    fifth = torch.stack([(blocks[..., 16:48] >> bit) & 1 for bit in range(8)], dim=-2)
    return _halves(blocks, 0), _halves(blocks, 2), (low | (fifth << 4)).flatten(-2)


def _q6_k(blocks: Tensor) -> Split:
    low = _apart(_nibbles(_apart(blocks[..., :128], 2, 64)).flatten(-2), 4, 32)
    pairs = _apart(blocks[..., 128:192], 2, 32)
    high = torch.stack([(pairs >> shift) & 3 for shift in (0, 2, 4, 6)], dim=-2)
    return _halves(blocks, 208), None, (low | (high << 4)).flatten(-3)


_SPLITS: Mapping[GGUFPacking, Callable[[Tensor], Split]] = MappingProxyType({
    "q4_0": _q4_0, "q4_1": _q4_1, "q8_0": _q8_0, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
})  # fmt: skip


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight steps and eight minimum steps of 6 bits out of 12 bytes."""
    first, second, third = _apart(packed, 3, 4).unbind(-2)
    steps = torch.cat((first & 63, (third & 0xF) | ((first >> 6) << 4)), dim=-1)
    minimum_steps = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=-1)
    return steps, minimum_steps
