"""Products of 8-bit numbers, int8 or float8, with scales beside: activations are rounded here, a step at a time.

x[M, K] times weight[N, K] transposed, summed in int32 or float32. With a scale a row on either side they are applied to
the finished sum; with scales of blocks, to each block's.

Legend: M rows of x, N output features, K input features, G blocks of K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, FETCHED, Overlap
from mainspring.backends.triton.splits import add_parts

HIGHEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
TYPES = {torch.int8: tl.int8, torch.float8_e4m3fn: tl.float8e4nv}


@triton.jit(do_not_specialize=["num_rows"])
def _round_kernel(
    x, out, scales, num_rows, K, x_stride, R: tl.constexpr, BK: tl.constexpr, HIGH: tl.constexpr, GIVEN: tl.constexpr,
    TYPE: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """Program: R rows of K values, with a scale each that is found here, or GIVEN one for all."""
    r, k = tl.program_id(0) * R + tl.arange(0, R)[:, None], tl.arange(0, BK)[None, :]
    inside = (r < num_rows) & (k < K)
    BEGIN()
    x_RK = tl.load(x + r.to(tl.int64) * x_stride + k, mask=inside, other=0.0).to(tl.float32)
    if GIVEN:
        scale_R1 = tl.load(scales + r * 0)
    else:
        scale_R1 = tl.maximum(tl.div_rn(tl.max(tl.abs(x_RK), 1)[:, None], HIGH), 1e-12)
        tl.store(scales + r, scale_R1, mask=r < num_rows)
    # Numbers of few bits often lie in the middle of two: a quotient that is not exact takes the other one.
    scaled = tl.minimum(tl.maximum(tl.div_rn(x_RK, tl.broadcast_to(scale_R1, x_RK.shape)), -HIGH), HIGH)
    if tl.int8 == TYPE:
        # To the nearest, and to the even one of two: what float32 does where whole numbers are its steps.
        scaled = (scaled + 12582912.0) - 12582912.0
    tl.store(out + r.to(tl.int64) * K + k, scaled.to(TYPE), mask=inside)


def round_rows(
    x_MK: Tensor, dtype: torch.dtype, *, given: Tensor | None = None, group_size: int | None = None,
    overlap: Overlap = ALONE,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x in 8 bits and its scales, float32: [M, 1], [1, 1] where `given`, [M, G] with one a group of features."""
    num_rows, depth = x_MK.shape
    x_MK = x_MK if x_MK.stride(1) == 1 else x_MK.contiguous()
    out = torch.empty((num_rows, depth), dtype=dtype, device=x_MK.device)
    rows, columns, stride = num_rows, depth, x_MK.stride(0)
    if group_size is not None:
        rows, columns, stride = num_rows * (depth // group_size), group_size, group_size
        x_MK = x_MK.contiguous()
    scales = given
    if scales is None:
        scales = torch.empty((num_rows, rows // max(1, num_rows)), dtype=torch.float32, device=x_MK.device)
    block = triton.next_power_of_2(columns)
    each = max(1, 1024 // block)
    _round_kernel[(triton.cdiv(rows, each),)](
        x_MK, out, scales, rows, columns, stride, R=each, BK=block, HIGH=HIGHEST[dtype], GIVEN=given is not None,
        TYPE=TYPES[dtype], BEGIN=overlap.begin, num_warps=8 if block >= 4096 else 4, **overlap.options,
    )  # fmt: skip
    return out, scales


@triton.jit(do_not_specialize=["num_rows", "blocks_each"])
def _scaled_kernel(
    x, weight, x_scales, w_scales, bias, out, partial, arrived, num_rows, N, K, blocks_each, x_scale_stride,
    w_scale_stride, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr, BLOCKED: tl.constexpr,
    ROWS_PER: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr, BIASED: tl.constexpr, AHEAD: tl.constexpr,
    SUM: tl.constexpr, BEGIN: tl.constexpr, FETCH: tl.constexpr,
):  # fmt: skip
    """Program (rows of x, tile of BN output features, part of K)."""
    many, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    n, m, k = tile * BN + tl.arange(0, BN), many * M + tl.arange(0, M), tl.arange(0, BK)
    first = split * blocks_each
    past = tl.minimum(first + blocks_each, tl.cdiv(K, BK))
    n_inside = tl.minimum(n, N - 1)
    rows_N = weight + n_inside.to(tl.int64) * K
    if AHEAD:
        FETCH(rows_N + first * BK, tl.minimum(tl.minimum(past * BK, K) - first * BK, AHEAD))
    rows_M = x + m.to(tl.int64) * K
    BEGIN()
    acc_NM = tl.zeros((BN, M), SUM)
    # One scale serves a tile that lies within a block's rows.
    w_scale_row = w_scales + (tile * BN // ROWS_PER if SHARED else n_inside // ROWS_PER) * w_scale_stride
    x_scale_row = x_scales + tl.minimum(m, num_rows - 1).to(tl.int64) * x_scale_stride
    if BLOCKED:
        w_scale, x_scale_M = tl.load(w_scale_row + first), tl.load(x_scale_row + first)
    for block in range(first, past):
        inside_K = block * BK + k < K
        x_mask = m[:, None] < num_rows if EVEN else (m[:, None] < num_rows) & inside_K[None, :]
        x_MK = tl.load(rows_M[:, None] + (block * BK + k)[None, :], mask=x_mask, other=0.0)
        if EVEN:
            w_NK = tl.load(rows_N[:, None] + (block * BK + k)[None, :])
        else:
            w_NK = tl.load(rows_N[:, None] + (block * BK + k)[None, :], mask=inside_K[None, :], other=0.0)
        if BLOCKED:
            scale = w_scale * x_scale_M[None, :] if SHARED else w_scale[:, None] * x_scale_M[None, :]
            # The next block's are on their way while this one is multiplied.
            following = tl.minimum(block + 1, past - 1)
            w_scale, x_scale_M = tl.load(w_scale_row + following), tl.load(x_scale_row + following)
            acc_NM += tl.dot(w_NK, tl.trans(x_MK)) * scale
        else:
            acc_NM = tl.dot(w_NK, tl.trans(x_MK), acc_NM, out_dtype=SUM)
    acc_NM = acc_NM.to(tl.float32)
    last = True
    if SPLIT:
        place = many * tl.num_programs(1) + tile
        acc_NM, last = add_parts(acc_NM, partial, arrived, place, split, tl.num_programs(2), num_rows - many * M)
    if last:
        if not BLOCKED:
            acc_NM *= tl.load(w_scales + n_inside * w_scale_stride)[:, None]
            acc_NM *= tl.load(x_scales + m * x_scale_stride, mask=m < num_rows, other=0.0)[None, :]
        if BIASED:
            acc_NM += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        where_NM = m[None, :].to(tl.int64) * N + n[:, None]
        tl.store(out + where_NM, acc_NM.to(out.dtype.element_ty), mask=(n[:, None] < N) & (m[None, :] < num_rows))


@dataclass(frozen=True, slots=True)
class ScaledTile:
    """Sizes of a program of `scaled_linear`."""

    features: int
    """Rows of the weight."""
    rows: int
    """Of x."""
    columns: int
    splits: int
    warps: int
    stages: int
    ahead: int = 0
    """Columns that a program fetches before the kernel in front has finished."""


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """A weight of 8 bits as it is in a checkpoint."""

    weight: Tensor
    """[N, K] int8 or float8"""
    scales: Tensor
    """[N, 1], [1, 1], or [N / group_rows, G] with blocks."""
    group_size: int | None = None
    """Input features of a block."""
    group_rows: int = 1


def scaled_linear(
    x_MK: Tensor,
    x_scales: Tensor,
    weight: ScaledWeight,
    bias_N: Tensor | None,
    tile: ScaledTile,
    *,
    out_dtype: torch.dtype,
    arrived: Tensor,
    overlap: Overlap = ALONE,
) -> Tensor:
    """[M, N] of x in 8 bits, its rows side by side, and its scales of `round_rows`."""
    (num_rows, depth), size = x_MK.shape, weight.weight.shape[0]
    columns = tile.columns if weight.group_size is None else weight.group_size
    blocks = triton.cdiv(depth, columns)
    each = triton.cdiv(blocks, tile.splits)
    splits = triton.cdiv(blocks, each)
    many, tiles = triton.cdiv(num_rows, tile.rows), triton.cdiv(size, tile.features)
    out = torch.empty((num_rows, size), dtype=out_dtype, device=x_MK.device)
    partial = out
    if splits > 1:
        elements = many * tiles * splits * tile.features * tile.rows
        partial = torch.empty(elements, dtype=torch.float32, device=x_MK.device)
    blocked = weight.group_size is not None
    _scaled_kernel[(many, tiles, splits)](
        x_MK, weight.weight, x_scales, weight.scales, bias_N, out, partial, arrived, num_rows, size, depth, each,
        x_scales.stride(0) if x_scales.shape[0] > 1 or blocked else 0,
        weight.scales.stride(0) if weight.scales.shape[0] > 1 else 0,
        M=tile.rows, BN=tile.features, BK=columns, SPLIT=splits > 1, BLOCKED=blocked, ROWS_PER=weight.group_rows,
        SHARED=weight.group_rows % tile.features == 0,
        EVEN=depth % columns == 0, BIASED=bias_N is not None, AHEAD=0 if depth % FETCHED else tile.ahead,
        SUM=tl.int32 if x_MK.dtype == torch.int8 else tl.float32, BEGIN=overlap.begin, FETCH=overlap.fetch,
        num_warps=tile.warps, num_stages=tile.stages, **overlap.options,
    )  # fmt: skip
    return out
