"""Mixtures of experts: products of a few rows with many matrices, each row with the experts it chose.

A token that chose C experts makes C pairs. Pairs are sorted by expert on the device, and an expert's pairs are cut into
tiles: how many there are of an expert is known nowhere else, so as many programs are launched as there can be tiles,
and each finds its own. Products are of 16-bit numbers or float32, sums are float32. Pairs of weight 0, as other ranks'
choices are, are sorted behind all experts, where no tile reaches: neither a product nor its answer is made of them.

Legend: T packed tokens, E hidden size, I intermediate size of an expert, X experts, C chosen for a token, P = T * C
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, Overlap

SCANNED = 1024
"""Pairs that a sorting program looks at together."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Of both products. All are powers of two; rows at least 16."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def tile_of(pairs: int, experts: int, dtype: torch.dtype) -> Tile:
    """By the rows that an expert has on average, where nothing is known of the machine."""
    if dtype == torch.float32:
        return Tile(16, 32, 32, 4, 2)
    return Tile(16 if pairs <= 16 * experts else 64, 64, 64, 4, 2)


@triton.jit
def _route_kernel(
    scores, weights, chosen, token_stride,
    X: tl.constexpr, X_PAD: tl.constexpr, C: tl.constexpr, C_PAD: tl.constexpr, NORMALIZED: tl.constexpr,
    BEGIN: tl.constexpr,
):  # fmt: skip
    """One token: its likeliest experts, one after the other."""
    token, x, c = tl.program_id(0).to(tl.int64), tl.arange(0, X_PAD), tl.arange(0, C_PAD)
    BEGIN()
    scores_X = tl.load(scores + token * token_stride + x, mask=x < X, other=float("-inf")).to(tl.float32)
    left_X = tl.exp(scores_X - tl.max(scores_X, 0))
    mass = tl.sum(left_X, 0)
    # Of scores that are no numbers any expert will do, but there must be such a one; its weight is none, through mass.
    left_X = tl.where(left_X == left_X, left_X, 0.0)
    weights_C, chosen_C = tl.zeros((C_PAD,), tl.float32), tl.zeros((C_PAD,), tl.int32)
    for place in tl.static_range(C):
        best = tl.minimum(tl.argmax(left_X, 0), X - 1)
        weights_C = tl.where(c == place, tl.max(left_X, 0) / mass, weights_C)
        chosen_C = tl.where(c == place, best, chosen_C)
        left_X = tl.where(x == best, -1.0, left_X)
    if NORMALIZED:
        weights_C = weights_C / tl.sum(weights_C, 0)
    tl.store(weights + token * C + c, weights_C, mask=c < C)
    tl.store(chosen + token * C + c, chosen_C, mask=c < C)


@triton.jit
def _experts_of(chosen, shares, pair_N, num_pairs, X):
    """Of pairs: X of those without weight, and past the last pair what is behind all."""
    inside_N = pair_N < num_pairs
    chosen_N = tl.load(chosen + pair_N, mask=inside_N, other=2147483647)
    # A weight that is no number is a weight.
    return tl.where(tl.load(shares + pair_N, mask=inside_N, other=1.0) != 0, chosen_N, X)


@triton.jit(do_not_specialize=["num_pairs"])
def _sort_kernel(chosen, shares, order, starts, num_pairs, N: tl.constexpr, BEGIN: tl.constexpr):
    """Program x: where the pairs of expert x begin, and which they are, in order. The last one, X, has those without
    weight.
    """
    expert, X = tl.program_id(0), tl.num_programs(0) - 1
    n = tl.arange(0, N)
    BEGIN()
    before = 0
    for at in range(0, num_pairs, N):
        before += tl.sum((_experts_of(chosen, shares, at + n, num_pairs, X) < expert).to(tl.int32), 0)
    tl.store(starts + expert, before)
    for at in range(0, num_pairs, N):
        mine_N = (_experts_of(chosen, shares, at + n, num_pairs, X) == expert).to(tl.int32)
        tl.store(order + before + tl.cumsum(mine_N, 0) - 1, at + n, mask=mine_N != 0)
        before += tl.sum(mine_N, 0)


@triton.jit
def _tile_of(starts, tile, X: tl.constexpr, X_PAD: tl.constexpr, M: tl.constexpr):
    """(expert, the first of the tile's sorted pairs, past its expert's last); expert X where there is no such tile."""
    x = tl.arange(0, X_PAD)
    first_X = tl.load(starts + x, mask=x < X, other=0)
    past_X = tl.load(starts + x + 1, mask=x < X, other=0)
    tiles_X = tl.cdiv(past_X - first_X, M)
    ends_X = tl.cumsum(tiles_X, 0)
    expert = tl.sum((ends_X <= tile).to(tl.int32), 0)
    is_mine_X = x == expert
    index = tile - tl.sum(tl.where(is_mine_X, ends_X - tiles_X, 0), 0)
    first = tl.sum(tl.where(is_mine_X, first_X, 0), 0) + index * M
    return tl.where(expert >= X, X, expert), first, tl.sum(tl.where(is_mine_X, past_X, 0), 0)


@triton.jit
def _gate_up_kernel(
    x, weight, hidden, order, starts, token_stride,
    C: tl.constexpr, X: tl.constexpr, X_PAD: tl.constexpr, E: tl.constexpr, I: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """hidden[P, I], in the order of sorted pairs: silu(gate) * up. Program (columns, tile)."""
    columns, tile = tl.program_id(0), tl.program_id(1)
    BEGIN()
    expert, first, past = _tile_of(starts, tile, X, X_PAD, M)
    if expert < X:
        m, n, k = first + tl.arange(0, M), columns * N + tl.arange(0, N), tl.arange(0, K)
        pair_M = tl.load(order + m, mask=m < past, other=0)
        rows = x + (pair_M // C).to(tl.int64)[:, None] * token_stride + k[None, :]
        gates = weight + expert.to(tl.int64) * (2 * I * E) + n[None, :].to(tl.int64) * E + k[:, None]
        gate_MN, up_MN = tl.zeros((M, N), tl.float32), tl.zeros((M, N), tl.float32)
        for at in range(0, E, K):
            inside_K = at + k < E
            x_MK = tl.load(rows + at, mask=(m < past)[:, None] & inside_K[None, :], other=0.0)
            inside_KN = inside_K[:, None] & (n < I)[None, :]
            gate_KN = tl.load(gates + at, mask=inside_KN, other=0.0)
            up_KN = tl.load(gates + I * E + at, mask=inside_KN, other=0.0)
            gate_MN = tl.dot(x_MK, gate_KN, gate_MN, input_precision=PRECISION)
            up_MN = tl.dot(x_MK, up_KN, up_MN, input_precision=PRECISION)
        dtype = hidden.dtype.element_ty
        # Rounded where the ops one by one would round.
        gate_MN, up_MN = gate_MN.to(dtype).to(tl.float32), up_MN.to(dtype).to(tl.float32)
        swished_MN = (gate_MN / (1.0 + tl.exp(-gate_MN))).to(dtype).to(tl.float32)
        inside_MN = (m < past)[:, None] & (n < I)[None, :]
        tl.store(hidden + m.to(tl.int64)[:, None] * I + n[None, :], (swished_MN * up_MN).to(dtype), mask=inside_MN)


@triton.jit
def _down_kernel(
    hidden, weight, shares, parts, order, starts,
    X: tl.constexpr, X_PAD: tl.constexpr, E: tl.constexpr, I: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """parts[P, E], in the order of pairs: an expert's answer times its share. Program (columns, tile)."""
    columns, tile = tl.program_id(0), tl.program_id(1)
    BEGIN()
    expert, first, past = _tile_of(starts, tile, X, X_PAD, M)
    if expert < X:
        m, n, k = first + tl.arange(0, M), columns * N + tl.arange(0, N), tl.arange(0, K)
        pair_M = tl.load(order + m, mask=m < past, other=0).to(tl.int64)
        rows = hidden + m.to(tl.int64)[:, None] * I + k[None, :]
        matrix = weight + expert.to(tl.int64) * (E * I) + n[None, :].to(tl.int64) * I + k[:, None]
        out_MN = tl.zeros((M, N), tl.float32)
        for at in range(0, I, K):
            inside_K = at + k < I
            hidden_MK = tl.load(rows + at, mask=(m < past)[:, None] & inside_K[None, :], other=0.0)
            weight_KN = tl.load(matrix + at, mask=inside_K[:, None] & (n < E)[None, :], other=0.0)
            out_MN = tl.dot(hidden_MK, weight_KN, out_MN, input_precision=PRECISION)
        share_M = tl.load(shares + pair_M, mask=m < past, other=0.0)
        inside_MN = (m < past)[:, None] & (n < E)[None, :]
        tl.store(parts + pair_M[:, None] * E + n[None, :], out_MN * share_M[:, None], mask=inside_MN)


@triton.jit
def _add_kernel(parts, shares, out, C: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, BEGIN: tl.constexpr):
    """Program (token, columns). Parts of pairs without weight were never written."""
    token, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    BEGIN()
    sum_E = tl.zeros((BLOCK,), tl.float32)
    for place in tl.static_range(C):
        pair = token * C + place
        written = tl.where(tl.load(shares + pair) != 0, E, 0)
        sum_E += tl.load(parts + pair * E + e, mask=e < written, other=0.0)
    tl.store(out + token * E + e, sum_E.to(out.dtype.element_ty), mask=e < E)


def route(scores_TX: Tensor, chosen: int, normalized: bool, *, overlap: Overlap = ALONE) -> tuple[Tensor, Tensor]:
    """(weights [T, C] float32, experts [T, C] int32): the likeliest, and their probabilities."""
    scores_TX = scores_TX if scores_TX.stride(1) == 1 else scores_TX.contiguous()
    num_tokens, experts = scores_TX.shape
    weights_TC = torch.empty((num_tokens, chosen), dtype=torch.float32, device=scores_TX.device)
    experts_TC = torch.empty((num_tokens, chosen), dtype=torch.int32, device=scores_TX.device)
    if num_tokens:
        _route_kernel[(num_tokens,)](
            scores_TX, weights_TC, experts_TC, scores_TX.stride(0), X=experts, X_PAD=triton.next_power_of_2(experts),
            C=chosen, C_PAD=triton.next_power_of_2(chosen), NORMALIZED=normalized, BEGIN=overlap.begin, num_warps=1,
            **overlap.options,
        )  # fmt: skip
    return weights_TC, experts_TC


def moe(
    x_TE: Tensor,
    gate_up_X2IE: Tensor,
    down_XEI: Tensor,
    weights_TC: Tensor,
    experts_TC: Tensor,
    *,
    overlap: Overlap = ALONE,
    tile: Tile | None = None,
) -> Tensor:
    """The sum over a token's experts of weight * down(silu(gate(x)) * up(x)), [T, E]; weights are dense.

    Nothing of it depends on a value that the host would have to know. `tile` is for backends that know a better one
    than `tile_of`.
    """
    (num_tokens, size), (experts, _, features), chosen = x_TE.shape, down_XEI.shape, experts_TC.shape[1]
    out_TE = torch.empty((num_tokens, size), dtype=x_TE.dtype, device=x_TE.device)
    if not num_tokens:
        return out_TE
    x_TE = x_TE if x_TE.stride(1) == 1 else x_TE.contiguous()
    pairs = num_tokens * chosen
    tile = tile or tile_of(pairs, experts, x_TE.dtype)
    weights_TC = weights_TC.contiguous()
    order_P, starts = _sorted(experts_TC, weights_TC, experts, overlap)
    hidden_PI = torch.empty((pairs, features), dtype=x_TE.dtype, device=x_TE.device)
    parts_PE = torch.empty((pairs, size), dtype=torch.float32, device=x_TE.device)
    # Every expert that has pairs at all may leave one tile unfilled.
    tiles = pairs // tile.rows + min(pairs, experts)
    sizes = {
        "X": experts, "X_PAD": triton.next_power_of_2(experts), "E": size, "I": features,
        "M": tile.rows, "N": tile.columns, "K": tile.depth, "PRECISION": "ieee", "BEGIN": overlap.begin,
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    _gate_up_kernel[(triton.cdiv(features, tile.columns), tiles)](
        x_TE, gate_up_X2IE, hidden_PI, order_P, starts, x_TE.stride(0), C=chosen, **sizes, **overlap.options
    )
    _down_kernel[(triton.cdiv(size, tile.columns), tiles)](
        hidden_PI, down_XEI, weights_TC, parts_PE, order_P, starts, **sizes, **overlap.options
    )
    _add_kernel[(num_tokens, triton.cdiv(size, 1024))](
        parts_PE, weights_TC, out_TE, C=chosen, E=size, BLOCK=1024, BEGIN=overlap.begin, num_warps=4, **overlap.options
    )
    return out_TE


def _sorted(experts_TC: Tensor, weights_TC: Tensor, experts: int, overlap: Overlap) -> tuple[Tensor, Tensor]:
    """([P] pairs by expert, [X + 1] where each expert's begin and, last, those without weight), int32."""
    chosen_P = experts_TC.to(torch.int32).contiguous().view(-1)
    order_P = torch.empty_like(chosen_P)
    starts = torch.empty(experts + 1, dtype=torch.int32, device=chosen_P.device)
    _sort_kernel[(experts + 1,)](
        chosen_P, weights_TC, order_P, starts, len(chosen_P),
        N=SCANNED, BEGIN=overlap.begin, num_warps=4, **overlap.options,
    )  # fmt: skip
    return order_P, starts
