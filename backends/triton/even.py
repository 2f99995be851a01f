"""Products of some hundred rows with a weight: x[M, K] times weight[N, K] transposed, the work dealt out evenly.

Tiles of the result rarely divide by the processors of a machine, and the last round of them leaves most idle while the
weight must still be read. So each program takes the same number of steps along K, wherever in a tile these begin and
end ("stream-K", Osama et al. 2023). What a program knows of a tile that it shares it leaves in memory; the one that
arrives last adds all up, in the order of K, so that results do not depend on who was late.

Legend: M rows of x, N output features, K input features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, Overlap


@triton.jit
def _steps(
    x, weight, rows_N, rows_M, first, past, num_rows, K, x_stride, acc_NM, k, m,
    M: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Adds the products of columns first to past."""
    for start in range(first, past, BK):
        w_from, x_from = rows_N[:, None] + (start + k)[None, :], rows_M[:, None] + (start + k)[None, :]
        if EVEN:
            w_NK = tl.load(w_from)
            x_MK = tl.load(x_from) if FULL else tl.load(x_from, mask=m[:, None] < num_rows, other=0.0)
        else:
            inside_K = start + k < K
            w_NK = tl.load(w_from, mask=inside_K[None, :], other=0.0)
            x_MK = tl.load(x_from, mask=(m[:, None] < num_rows) & inside_K[None, :], other=0.0)
        acc_NM = tl.dot(w_NK, tl.trans(x_MK), acc_NM)
    return acc_NM


@triton.jit(do_not_specialize=["num_rows", "tiles", "steps"])
def _even_kernel(
    x, weight, bias, out, partial, arrived, num_rows, N, K, x_stride, tiles, steps,
    M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, FULL: tl.constexpr, BIAS: tl.constexpr,
    BEGIN: tl.constexpr,
):  # fmt: skip
    """Each program takes its share of tiles x steps, which are in the order of tiles."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    work = tiles * steps
    step, past = program * work // programs, (program + 1) * work // programs
    m, k = tl.arange(0, M), tl.arange(0, BK)
    rows_M = x + m.to(tl.int64) * x_stride
    places_NM = tl.arange(0, BN)[:, None] * M + m[None, :]
    BEGIN()
    while step < past:
        tile = step // steps
        first = step - tile * steps
        last = tl.minimum(steps, first + past - step)
        n = tile * BN + tl.arange(0, BN)
        rows_N = weight + tl.minimum(n, N - 1).to(tl.int64) * K
        acc_NM = _steps(
            x, weight, rows_N, rows_M, first * BK, last * BK, num_rows, K, x_stride, tl.zeros((BN, M), tl.float32), k,
            m, M, BK, EVEN, FULL,
        )  # fmt: skip
        step += last - first
        # The programs that share this tile: those which hold its first step and its last.
        front = ((tile * steps + 1) * programs - 1) // work
        back = ((tile + 1) * steps * programs - 1) // work
        complete = front == back
        if front != back:
            # A program shares two tiles at most: one that it does not begin, and one that it does not end.
            mine = partial + (2 * program + (first == 0).to(tl.int32)) * (BN * M)
            tl.store(mine + places_NM, acc_NM)
            # What all threads of this program stored must be seen before its arrival is.
            tl.debug_barrier()
            complete = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == back - front
            tl.debug_barrier()
            if complete:
                begun = partial + (2 * front + 1) * (BN * M)
                acc_NM = tl.load(begun + places_NM, cache_modifier=".cg")
                for other in range(front + 1, back + 1):
                    theirs = partial + (2 * other) * (BN * M)
                    acc_NM += tl.load(theirs + places_NM, cache_modifier=".cg")
                # The next launch finds the counters as this one did.
                tl.store(arrived + tile, 0)
        if complete:
            if BIAS:
                acc_NM += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
            where_NM = m[None, :].to(tl.int64) * N + n[:, None]
            inside_NM = (n[:, None] < N) & (m[None, :] < num_rows)
            tl.store(out + where_NM, acc_NM.to(out.dtype.element_ty), mask=inside_NM)


@dataclass(frozen=True, slots=True)
class EvenTile:
    """Sizes of `even`: output features and columns that a program holds at once, its warps and its pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int


def even(
    x_MK: Tensor,
    weight_NK: Tensor,
    bias_N: Tensor | None,
    tile: EvenTile,
    *,
    programs: int,
    arrived: Tensor,
    overlap: Overlap = ALONE,
) -> Tensor:
    """[M, N], by so many programs, which need not run at the same time. `arrived`: as `linear.split` takes it."""
    (num_rows, depth), size = x_MK.shape, weight_NK.shape[0]
    tiles, steps = triton.cdiv(size, tile.rows), triton.cdiv(depth, tile.columns)
    programs = min(programs, tiles * steps)
    padded = max(16, triton.next_power_of_2(num_rows))
    out = torch.empty((num_rows, size), dtype=x_MK.dtype, device=x_MK.device)
    partial = torch.empty(2 * programs * tile.rows * padded, dtype=torch.float32, device=x_MK.device)
    _even_kernel[(programs,)](
        x_MK, weight_NK, bias_N, out, partial, arrived, num_rows, size, depth, x_MK.stride(0), tiles, steps,
        M=padded, BN=tile.rows, BK=tile.columns, EVEN=depth % tile.columns == 0, FULL=num_rows == padded, BIAS=bias_N is not None, BEGIN=overlap.begin,
        num_warps=tile.warps, num_stages=tile.stages, **overlap.options,
    )  # fmt: skip
    return out
