"""Products with quantized weights that are read as they lie: x[M, K] times weight[N, K] transposed.

A weight is int16 words in the order in which matrix units take their left operand, so that what a thread loads, 16
bytes at a time, is what it multiplies: no word passes through memory that threads share. The weight stands on the left,
64 of its rows where matrix units want many, and x's rows on the right, where few will do. K is cut among programs, as
in `linear.py`, so that the whole machine reads.

Storage, [N / 64, K / B, 2048] words. A word holds P codes (`codes.PLANES`), of input features 32 apart; a block has
B = 32 P of them, and 2048 words of 64 rows: feature 32 p + f and row n of a block are plane p of the word at
(f / 16, n / 16, n % 8, f / 2 % 4, f / 8 % 2, n / 8 % 2, f % 2) of [2, 4, 8, 4, 2, 2, 2]: step of a matrix instruction,
warp, lane (8 x 4), and its 8 halfwords, as in PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16".

What a code has above four bits stands in bytes in the words' order, all planes' of a word side by side.

Scales are 16-bit numbers in [B's, N, S]: S to a block where groups are smaller than blocks, read in a word, or of eight
in two, [B's, 2, N, 4]; else one serves several blocks. Groups are no smaller than half a plane. Words of scales have 32
bits at least, which is what comes while others are multiplied: a scale that is waited for costs more than the two
bytes. With one scale an output feature they are applied to the sums instead, in float32.

GGUF's K-quants have scales in two levels: a signed byte a group (a step), in words as above but of bytes, times a
16-bit number a super-block of 256 features, in words [K / 256, N]: that of scales below, that of what is added above.
They are multiplied in float32 and rounded to x's dtype.

Legend: M rows of x, N output features, K input features, F features of a plane (32).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.codes import HIGH_BITS, PLAIN, PLANES, Kind, Reader, offset
from mainspring.backends.triton.launch import ALONE, Overlap
from mainspring.backends.triton.words_kernels import dequantize_kernel, rows_kernel, words_kernel

ROWS, FEATURES = 64, 32
"""Of the weight, in one block of words and in one plane."""
WORDS = ROWS * FEATURES
SUPER_BLOCK = 256
"""Input features of which a K-quant's scales share a number."""
WORD_SHORTS = 4
"""Of scales, in one integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordWeight:
    """A weight as the kernels of this page read it; `pack_words` makes one."""

    kind: Kind
    size: int
    depth: int
    words: Tensor
    """[ceil(N / 64), ceil(K / B), 2048] int16"""
    scales: Tensor
    """[blocks, N] integers of 16 S bits, 32 at least, with S = 8 [blocks, 2, N]; or float32 [N]. N is padded to a
    multiple of 64."""
    group_size: int | None
    """None: a scale an output feature."""
    short: torch.dtype = torch.float16
    """What the 16-bit numbers are."""
    zeros: Tensor | None = None
    """As the scales of groups: less the bias of their codes; or, of groups' zeros that are not all whole, what is added
    to values instead, -(zero - bias) * scale."""
    whole: bool = False
    """Whether all zeros are whole numbers, which with the codes' offset are exact in 16 bits."""
    bias: int = 0
    """What is subtracted from codes besides: 8 of int4, 128 of int8."""
    table: Tensor | None = None
    """[16] What codes of 4 bits stand for."""
    high: Tensor | None = None
    """[ceil(N / 64), ceil(K / B), 2048 or 1024] uint8: what codes of 6 or 5 bits have above four."""
    supers: Tensor | None = None
    """[K / 256, N] int32, of scales in two levels: `scales` and `zeros` are words of bytes then."""

    def bytes(self) -> int:
        """In memory."""
        return sum(x.numel() * x.element_size() for x in _stored(self) if x is not None)


@dataclass(frozen=True, slots=True)
class WordTile:
    """Sizes of a program of `word_linear`."""

    strips: int
    """Of 64 output features."""
    rows: int
    """Of x; a power of two, 16 at least."""
    splits: int
    """Parts that K is cut into."""
    warps: int
    stages: int
    ahead: int = 0
    """Blocks that a program fetches before the kernel in front has finished."""


def word_linear(
    x_MK: Tensor,
    weight: WordWeight,
    bias_N: Tensor | None,
    tile: WordTile,
    *,
    arrived: Tensor,
    overlap: Overlap = ALONE,
    reader: Reader = PLAIN,
) -> Tensor:
    """[M, N]. `arrived` as in `linear.split`, one a tile of N and rows; `reader` for x's dtype."""
    num_rows, size, depth = x_MK.shape[0], weight.size, weight.depth
    planes = PLANES[weight.kind]
    blocks = triton.cdiv(depth, planes * FEATURES)
    each = triton.cdiv(blocks, tile.splits)
    splits = triton.cdiv(blocks, each)
    many, tiles = triton.cdiv(num_rows, tile.rows), triton.cdiv(size, ROWS * tile.strips)
    out = torch.empty((num_rows, size), dtype=x_MK.dtype, device=x_MK.device)
    partial = out
    if splits > 1:
        elements = many * tiles * splits * tile.strips * ROWS * tile.rows
        partial = torch.empty(elements, dtype=torch.float32, device=x_MK.device)
    words_kernel[(many, tiles, splits)](
        x_MK, *_stored(weight), bias_N, out, partial, arrived,
        num_rows, size, depth, x_MK.stride(0), each, M=tile.rows, SPLIT=splits > 1,
        EVEN=depth % (planes * FEATURES) == 0, BIASED=bias_N is not None, AHEAD=tile.ahead, STRIPS=tile.strips,
        BEGIN=overlap.begin, FETCH=overlap.fetch,
        **_constants(weight, x_MK.dtype, reader), num_warps=tile.warps, num_stages=tile.stages,
        **overlap.options,
    )  # fmt: skip
    return out


def dequantize_words(
    weight: WordWeight, dtype: torch.dtype, *, overlap: Overlap = ALONE, reader: Reader = PLAIN
) -> Tensor:
    """[N, K] in `dtype`, for products of so many rows that a library is faster."""
    out = torch.empty((weight.size, weight.depth), dtype=dtype, device=weight.words.device)
    strips, blocks = weight.words.shape[:2]
    dequantize_kernel[(blocks, strips)](
        *_stored(weight), out, weight.size, weight.depth, STRIPS=1, BEGIN=overlap.begin,
        **_constants(weight, dtype, reader), num_warps=4, **overlap.options,
    )  # fmt: skip
    return out


def word_rows(index_T: Tensor, weight: WordWeight, dtype: torch.dtype, *, overlap: Overlap = ALONE) -> Tensor:
    """[T, K] in `dtype`: some rows as numbers, as a table of embeddings is read."""
    count, together = len(index_T), 16
    out = torch.empty((count, weight.depth), dtype=dtype, device=weight.words.device)
    rows_kernel[(triton.cdiv(count, together), weight.words.shape[1])](
        index_T, *_stored(weight), out, count, weight.size, weight.depth, T=together,
        BEGIN=overlap.begin, **_constants(weight, torch.float32, PLAIN), num_warps=4, **overlap.options,
    )  # fmt: skip
    return out


def _stored(weight: WordWeight) -> tuple[Tensor | None, ...]:
    return weight.words, weight.high, weight.scales, weight.zeros, weight.supers, weight.table


def _constants(weight: WordWeight, dtype: torch.dtype, reader: Reader) -> dict[str, object]:
    planes = PLANES[weight.kind]
    block = planes * FEATURES
    group = weight.group_size
    zeros = "none" if weight.zeros is None else "whole" if weight.whole else "any"
    return {
        "PLANES": planes, "KIND": weight.kind, "HIGH": HIGH_BITS.get(weight.kind, 0),
        "PER_BLOCK": 0 if group is None else max(1, block // group),
        "BLOCKS_PER": 1 << 30 if group is None else max(1, group // block), "BIAS": weight.bias,
        "SHORT": tl.float16 if weight.short == torch.float16 else tl.bfloat16,
        "SUPER": 0 if weight.supers is None else SUPER_BLOCK // block,
        "OFFSET": offset(weight.kind, dtype), "ZEROS": zeros, "READ": reader.read, "SUBTRACT": reader.subtract,
        "MULTIPLY": reader.multiply, "MULTIPLY_ADD": reader.multiply_add,
    }  # fmt: skip
