"""Products of few rows with a weight: x[M, K] times weight[N, K] transposed, bound by reading the weight once.

Two kernels. `vector` multiplies one row without the matrix unit, whose tile would be nearly empty. `split` puts the
weight's rows where matrix units want many and x's rows where few will do, and cuts K among programs so that the whole
machine reads; the program of a tile that arrives last adds up what the others left, in the order of K, so that results
do not depend on who was late.

Legend: M rows of x, N output features, K input features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, FETCHED, Overlap


@triton.jit
def _vector_kernel(
    x, weight, bias, out, N, K,
    BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """One row; program: BN output features. The weight's next tile is on its way while one is multiplied."""
    n, k = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BK)
    rows_N = tl.minimum(n, N - 1).to(tl.int64) * K
    tile = weight + rows_N[:, None] + k[None, :]
    w_NK = tl.load(tile) if EVEN else tl.load(tile, mask=k[None, :] < K, other=0.0)
    BEGIN()
    acc_NK = tl.zeros((BN, BK), tl.float32)
    for start in range(BK, K, BK):
        next_NK = tl.load(tile + start) if EVEN else tl.load(tile + start, mask=start + k[None, :] < K, other=0.0)
        x_K = tl.load(x + (start - BK) + k).to(tl.float32)
        acc_NK += w_NK.to(tl.float32) * x_K[None, :]
        w_NK = next_NK
    last = (K - 1) // BK * BK
    x_K = tl.load(x + last + k, mask=last + k < K, other=0.0).to(tl.float32)
    acc_NK += w_NK.to(tl.float32) * x_K[None, :]
    y_N = tl.sum(acc_NK, 1)
    if BIAS:
        y_N += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, y_N.to(out.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=["num_rows", "blocks_each"])
def _split_kernel(
    x, weight, bias, out, partial, arrived, num_rows, N, K, x_stride, blocks_each,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
    AHEAD: tl.constexpr, BEGIN: tl.constexpr, FETCH: tl.constexpr,
):  # fmt: skip
    """Program (tile of BN output features, part of K)."""
    tile, split = tl.program_id(0), tl.program_id(1)
    n, m, k = tile * BN + tl.arange(0, BN), tl.arange(0, M), tl.arange(0, BK)
    first = split * blocks_each * BK
    past = tl.minimum(first + blocks_each * BK, K)
    rows_N = weight + tl.minimum(n, N - 1).to(tl.int64) * K
    if AHEAD:
        FETCH(rows_N + first, tl.minimum(past - first, AHEAD) * (weight.dtype.element_ty.primitive_bitwidth // 8))
    BEGIN()
    acc_NM = tl.zeros((BN, M), tl.float32)
    for start in range(first, past, BK):
        if EVEN:
            w_NK = tl.load(rows_N[:, None] + (start + k)[None, :])
            x_MK = tl.load(
                x + m[:, None].to(tl.int64) * x_stride + (start + k)[None, :], mask=m[:, None] < num_rows, other=0.0
            )
        else:
            inside_K = start + k < past
            w_NK = tl.load(rows_N[:, None] + (start + k)[None, :], mask=inside_K[None, :], other=0.0)
            x_MK = tl.load(
                x + m[:, None].to(tl.int64) * x_stride + (start + k)[None, :],
                mask=(m[:, None] < num_rows) & inside_K[None, :],
                other=0.0,
            )
        acc_NM = tl.dot(w_NK, tl.trans(x_MK), acc_NM)
    if SPLITS > 1:
        places_NM = tl.arange(0, BN)[:, None] * M + m[None, :]
        parts = partial + tile.to(tl.int64) * (SPLITS * BN * M)
        tl.store(parts + split * (BN * M) + places_NM, acc_NM)
        # What all threads of this program stored must be seen before its arrival is.
        tl.debug_barrier()
        before = tl.atomic_add(arrived + tile, 1, sem="acq_rel")
        if before < SPLITS - 1:
            return
        tl.debug_barrier()
        acc_NM = tl.zeros((BN, M), tl.float32)
        for other in range(SPLITS):
            acc_NM += tl.load(parts + other * (BN * M) + places_NM, cache_modifier=".cg")
        # The next launch finds the counters as this one did.
        tl.store(arrived + tile, 0)
    if BIAS:
        acc_NM += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    where_NM = m[None, :].to(tl.int64) * N + n[:, None]
    tl.store(out + where_NM, acc_NM.to(out.dtype.element_ty), mask=(n[:, None] < N) & (m[None, :] < num_rows))


@dataclass(frozen=True, slots=True)
class VectorTile:
    """Sizes of `vector`: weight rows and columns that a program holds at once, and its warps."""

    rows: int
    columns: int
    warps: int


@dataclass(frozen=True, slots=True)
class SplitTile:
    """Sizes of `split`."""

    rows: int
    """Of the weight, in one program."""
    columns: int
    splits: int
    """Parts that K is cut into."""
    warps: int
    stages: int
    ahead: int = 0
    """Columns that a program fetches before the kernel in front has finished."""


def vector(
    x_1K: Tensor, weight_NK: Tensor, bias_N: Tensor | None, tile: VectorTile, *, overlap: Overlap = ALONE
) -> Tensor:
    """[1, N] of one row, whose elements lie side by side."""
    size, depth = weight_NK.shape
    out = torch.empty((1, size), dtype=x_1K.dtype, device=x_1K.device)
    _vector_kernel[(triton.cdiv(size, tile.rows),)](
        x_1K, weight_NK, bias_N, out, size, depth, BN=tile.rows, BK=tile.columns, EVEN=depth % tile.columns == 0,
        BIAS=bias_N is not None, BEGIN=overlap.begin, num_warps=tile.warps, **overlap.options,
    )  # fmt: skip
    return out


def split(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    tile: SplitTile,
    *,
    arrived: Tensor,
    overlap: Overlap = ALONE,
) -> Tensor:
    """[M, N]. `arrived`: int32 zeros, one a tile of N at least; they are zeros again when the kernel is done.

    Launches that may run at the same time need counters of their own.
    """
    (num_rows, depth), size = x_MK.shape, weight_NK.shape[0]
    tiles, blocks = triton.cdiv(size, tile.rows), triton.cdiv(depth, tile.columns)
    each = triton.cdiv(blocks, tile.splits)
    splits = triton.cdiv(blocks, each)
    padded = max(16, triton.next_power_of_2(num_rows))
    out = torch.empty((num_rows, size), dtype=x_MK.dtype, device=x_MK.device)
    partial = out
    if splits > 1:
        partial = torch.empty(tiles * splits * tile.rows * padded, dtype=torch.float32, device=x_MK.device)
    _split_kernel[(tiles, splits)](
        x_MK, weight_NK, bias_N, out, partial, arrived, num_rows, size, depth, x_MK.stride(0), each,
        M=padded, BN=tile.rows, BK=tile.columns, SPLITS=splits, EVEN=depth % tile.columns == 0, BIAS=bias_N is not None,
        AHEAD=0 if depth * weight_NK.element_size() % FETCHED else tile.ahead, BEGIN=overlap.begin,
        FETCH=overlap.fetch, num_warps=tile.warps, num_stages=tile.stages, **overlap.options,
    )  # fmt: skip
    return out
