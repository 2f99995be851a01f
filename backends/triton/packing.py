"""Puts a weight's codes, scales and zeros where `words.py` reads them: once, when a layer is loaded.

Legend: N output features, K input features, G groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.backends.triton.codes import HIGH_BITS, PLANES, Kind
from mainspring.backends.triton.words import FEATURES, ROWS, WORD_SHORTS, WORDS

STRIPS_AT_ONCE = 32
SMALLEST_NORMAL = torch.finfo(torch.float16).smallest_normal
WORD_TYPES = {2: torch.int32, 4: torch.int64}


def pack_words(codes_NK: Tensor, kind: Kind) -> Tensor:
    """[ceil(N / 64), ceil(K / B), 2048] int16 of codes, integers from 0 on. What is added to fill blocks has code 0."""
    if kind in HIGH_BITS:
        codes_NK = codes_NK & 0xF
    return _in_words(codes_NK, PLANES[kind], 16 // PLANES[kind])


def pack_high(codes_NK: Tensor, kind: Kind) -> Tensor | None:
    """What codes have above four bits, as `WordWeight.high`; None for kinds that have nothing there."""
    if kind not in HIGH_BITS:
        return None
    bits = HIGH_BITS[kind]
    words = _in_words(codes_NK >> 4, PLANES[kind], bits)
    if bits == 1:
        words = words[..., ::2] | words[..., 1::2] << 4
    return words.to(torch.uint8)


def _in_words(codes_NK: Tensor, planes: int, bits: int) -> Tensor:
    """Codes of so many bits, the planes' of a word side by side."""
    size, depth = codes_NK.shape
    strips, blocks = -(-size // ROWS), -(-depth // (FEATURES * planes))
    # In pieces: as 32-bit numbers a layer's codes take eight times what its words will.
    words = torch.empty((strips, blocks, WORDS), dtype=torch.int16, device=codes_NK.device)
    for first in range(0, strips, STRIPS_AT_ONCE):
        rows_NK = codes_NK[first * ROWS : (first + STRIPS_AT_ONCE) * ROWS].to(torch.int32)
        rows_NK = F.pad(rows_NK, (0, blocks * FEATURES * planes - depth, 0, -len(rows_NK) % ROWS))
        parts = rows_NK.view(-1, blocks, planes, FEATURES).unbind(2)
        joined = parts[0].clone()
        for plane, part in enumerate(parts[1:], 1):
            joined |= part << (plane * bits)
        # [strip, warp, half of rows, row, block, step, half of features, lane, pair] to the order of a fragment.
        fragment = joined.view(-1, 4, 2, 8, blocks, 2, 2, 4, 2).permute(0, 4, 5, 1, 3, 7, 6, 2, 8)
        signed = ((fragment + 0x8000) & 0xFFFF) - 0x8000
        words[first : first + STRIPS_AT_ONCE] = signed.reshape(-1, blocks, WORDS).to(torch.int16)
    return words


def short_type(scales: Tensor, zeros: Tensor | None) -> torch.dtype:
    """float16 where it loses less than bfloat16, which has the range of float32: always for what was float16 before."""
    largest = max(float(x.abs().max()) for x in (scales, zeros) if x is not None)
    smallest = float(scales[scales != 0].abs().min()) if bool((scales != 0).any()) else 1.0
    fits = largest <= torch.finfo(torch.float16).max and smallest >= SMALLEST_NORMAL / 8
    return torch.float16 if fits else torch.bfloat16


def pack_shorts(numbers_NG: Tensor, short: torch.dtype, kind: Kind, group_size: int) -> Tensor:
    """A number a group as `words.py` loads them: S of 16 bits as one integer of 32 at least, [blocks, N], or eight as
    two, [blocks, 2, N]."""
    blocks = _by_blocks(numbers_NG.float(), kind, group_size).to(short)
    per_block = blocks.shape[2]
    if per_block == 1:
        return blocks.view(torch.int16).squeeze(-1).to(torch.int32)
    if per_block > WORD_SHORTS:
        return blocks.view(torch.int64).transpose(1, 2).contiguous()
    return blocks.view(WORD_TYPES[per_block]).squeeze(-1)


def pack_steps(steps_NG: Tensor, kind: Kind, group_size: int) -> Tensor:
    """A signed byte a group, of scales in two levels: four as 32 bits, [blocks, N], or eight as two, [blocks, 2, N]."""
    words = _by_blocks(steps_NG.to(torch.int8), kind, group_size).view(torch.int32)
    return words.squeeze(-1) if words.shape[2] == 1 else words.transpose(1, 2).contiguous()


def _by_blocks(numbers_NG: Tensor, kind: Kind, group_size: int) -> Tensor:
    """[blocks, N, S], S of a block's groups or one of several blocks; N is padded."""
    per_block = max(1, PLANES[kind] * FEATURES // group_size)
    size, groups = numbers_NG.shape
    padded = F.pad(numbers_NG, (0, -groups % per_block, 0, -size % ROWS))
    return padded.view(len(padded), -1, per_block).transpose(0, 1).contiguous()


def pack_supers(scales_NS: Tensor, added_NS: Tensor | None) -> Tensor:
    """[S, N] int32 of what super-blocks multiply steps with: those of scales, and above them those of what is added."""
    low_NS = scales_NS.half()
    high_NS = torch.zeros_like(low_NS) if added_NS is None else added_NS.half()
    padded = F.pad(torch.stack((low_NS, high_NS), -1), (0, 0, 0, 0, 0, -len(low_NS) % ROWS))
    return padded.transpose(0, 1).contiguous().view(torch.int32).squeeze(-1)
