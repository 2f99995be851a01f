"""Attention of a decode with the cache dealt out evenly: every program reads as many tiles of it as any other.

Sequences differ in length, and rows times kv heads rarely fill a machine a whole number of times, so programs that each
take one row and head leave processors idle at the end. Here all tiles of a step stand in one line, row by row and head
by head, and each program takes its share, wherever in a sequence that begins and ends. What it finds of a sequence that
it shares it leaves in memory; the program that arrives last merges by log-sums, in the order of positions ("stream-K",
Osama et al. 2023; "Flash-Decoding", Dao et al. 2023), so there is no second kernel and results repeat.

Legend: R rows, H query heads, K kv heads, G query heads a kv head, D head dim, S tokens a block, N positions of a tile,
C programs that share a sequence, E elements of a group's heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.attention import Cache, Rows, Scoring, dims_of
from mainspring.backends.triton.attention_kernels import LOG2_E, is_decode, visit
from mainspring.backends.triton.launch import ALONE, Overlap

FEWEST_ROWS = 256
"""Rows that a program can look over, at least: one kernel serves all smaller steps."""
MERGED_ELEMENTS = 8192
"""Of what others left, read at once."""


@triton.jit
def _span(kv_length, query_start, row, window, N: tl.constexpr, WINDOW: tl.constexpr, MIXED: tl.constexpr):
    """(length, first position that is seen, rounded down to a tile, and tiles) of one row; one tile where it is empty."""
    length = tl.load(kv_length + row)
    if MIXED:
        length = tl.where(is_decode(query_start, row), length, 0)
    low = tl.maximum(length - window, 0) // N * N if WINDOW else 0
    return length, low, tl.maximum(1, tl.cdiv(length - low, N))


@triton.jit
def _merge(
    partial, log_mass, front, back, e, g,
    E: tl.constexpr, GROUP: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """What programs front to back found of one sequence and group, each weighted by the mass that it saw: [E]."""
    c = tl.arange(0, C)
    acc_E = tl.zeros((E,), tl.float32)
    mass_E = tl.zeros((E,), tl.float32)
    peak_E = tl.full((E,), float("-inf"), tl.float32)
    for start in range(front, back + 1, C):
        who_C = start + c
        inside_CE = (who_C[:, None] <= back) & (e[None, :] >= 0)
        # The first of them left it where programs leave what they do not end.
        place_C = 2 * who_C + (who_C == front).to(tl.int32)
        log_CE = tl.load(
            log_mass + place_C[:, None] * GROUP + g[None, :], mask=inside_CE, other=float("-inf"), cache_modifier=".cg"
        )
        part_CE = tl.load(partial + place_C[:, None] * E + e[None, :], mask=inside_CE, other=0.0, cache_modifier=".cg")
        highest_E = tl.maximum(peak_E, tl.max(log_CE, 0))
        shift_E = tl.where(highest_E == float("-inf"), 0.0, highest_E)
        weight_CE = tl.exp2(log_CE - shift_E[None, :])
        faded_E = tl.exp2(peak_E - shift_E)
        acc_E = acc_E * faded_E + tl.sum(part_CE * weight_CE, 0)
        mass_E = mass_E * faded_E + tl.sum(weight_CE, 0)
        peak_E = highest_E
    return acc_E / tl.where(mass_E > 0, mass_E, 1.0)


@triton.jit(
    do_not_specialize=["num_rows", "table_stride"],
    do_not_specialize_on_alignment=["table", "query_start", "kv_length"],
)
def even_decode_kernel(
    out, partial, log_mass, arrived, q, keys, values, table, query_start, kv_length, sinks, scale, softcap, window,
    num_rows, q_token_stride, q_head_stride, table_stride, slot_stride, head_stride,
    H: tl.constexpr, G: tl.constexpr, G_PAD: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    S: tl.constexpr, N: tl.constexpr, R_PAD: tl.constexpr, C: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, SINKS: tl.constexpr, MIXED: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
    BEGIN: tl.constexpr,
):  # fmt: skip
    """One token of each row, as `attention_kernels.decode_kernel`; the step's keys and values are in the cache."""
    K: tl.constexpr = H // G
    if not EARLY:
        BEGIN()
    r = tl.arange(0, R_PAD)
    length_R = tl.load(kv_length + r, mask=r < num_rows, other=0)
    if MIXED:
        starts_R = tl.load(query_start + r, mask=r < num_rows, other=-1)
        ends_R = tl.load(query_start + r + 1, mask=r < num_rows, other=-1)
        length_R = tl.where((starts_R == r) & (ends_R == r + 1), length_R, 0)
    low_R = tl.maximum(length_R - window, 0) // N * N if WINDOW else tl.zeros((R_PAD,), tl.int32)
    tiles_R = tl.where(r < num_rows, tl.maximum(1, tl.cdiv(length_R - low_R, N)), 0)
    past_R = tl.cumsum(tiles_R, 0) * K
    total = tl.sum(tiles_R, 0) * K
    programs = tl.minimum(tl.num_programs(0), total).to(tl.int64)
    program = tl.program_id(0)
    if program >= programs:
        return
    at = (program * total.to(tl.int64) // programs).to(tl.int32)
    left = ((program + 1) * total.to(tl.int64) // programs).to(tl.int32) - at
    done_R = (r < num_rows) & (past_R <= at)
    row = tl.sum(done_R.to(tl.int32), 0)
    inside = at - tl.max(tl.where(done_R, past_R, 0), 0)
    length, low, tiles = _span(kv_length, query_start, row, window, N, WINDOW, MIXED)
    head, first = inside // tiles, inside % tiles
    if EARLY:
        BEGIN()

    g, d = tl.arange(0, G_PAD), tl.arange(0, D_PAD)
    loaded_GD = (g[:, None] < G) & (d[None, :] < D)
    while left > 0:
        length, low, tiles = _span(kv_length, query_start, row, window, N, WINDOW, MIXED)
        last = tl.minimum(tiles, first + left)
        heads_G = head * G + g
        q_row = q + row.to(tl.int64) * q_token_stride
        q_GD = tl.load(q_row + heads_G[:, None] * q_head_stride + d[None, :], mask=loaded_GD, other=0.0)
        peak_G = tl.full((G_PAD,), float("-inf"), tl.float32)
        mass_G = tl.zeros((G_PAD,), tl.float32)
        if SINKS:
            if first == 0:
                peak_G = tl.load(sinks + heads_G, mask=g < G, other=0.0).to(tl.float32) * LOG2_E
                mass_G = tl.full((G_PAD,), 1.0, tl.float32)
        acc_GD, peak_G, mass_G = visit(
            q_GD, tl.zeros((G_PAD, D_PAD), tl.float32), peak_G, mass_G,
            keys + head.to(tl.int64) * head_stride, values + head.to(tl.int64) * head_stride,
            table + row.to(tl.int64) * table_stride, low + first * N, tl.minimum(low + last * N, length),
            tl.zeros((G_PAD,), tl.int32) + (length - 1), scale, softcap, window, slot_stride,
            S, D, D_PAD, N, True, WINDOW, SOFTCAP, WINDOW, PRECISION,
        )  # fmt: skip
        out_GD = acc_GD / tl.where(mass_G > 0, mass_G, 1.0)[:, None]
        if (first == 0) & (last == tiles):
            places_G = row.to(tl.int64) * H + heads_G
            tl.store(out + places_G[:, None] * D + d[None, :], out_GD.to(out.dtype.element_ty), mask=loaded_GD)
        else:
            # A program shares two sequences at most: one that it does not begin, and one that it does not end.
            mine = 2 * program + (first == 0).to(tl.int32)
            kept_G = g < GROUP
            tl.store(partial + (mine * GROUP + g[:, None]) * D_PAD + d[None, :], out_GD, mask=kept_G[:, None])
            tl.store(log_mass + mine * GROUP + g, peak_G + tl.log2(mass_G), mask=kept_G)
            # What all threads of this program stored must be seen before its arrival is.
            tl.debug_barrier()
            begun = (at - first).to(tl.int64)
            front = (((begun + 1) * programs - 1) // total).to(tl.int32)
            back = (((begun + tiles) * programs - 1) // total).to(tl.int32)
            before = tl.atomic_add(arrived + row * K + head, 1, sem="acq_rel")
            tl.debug_barrier()
            if before == back - front:
                e = tl.arange(0, GROUP * D_PAD)
                merged_E = _merge(partial, log_mass, front, back, e, e // D_PAD, GROUP * D_PAD, GROUP, C)
                places_E = (row.to(tl.int64) * H + head * G + e // D_PAD) * D + e % D_PAD
                real_E = (e // D_PAD < G) & (e % D_PAD < D)
                tl.store(out + places_E, merged_E.to(out.dtype.element_ty), mask=real_E)
                # The next launch finds the counters as this one did.
                tl.store(arrived + row * K + head, 0)
        at += last - first
        left -= last - first
        first = first * 0
        head += 1
        row += (head == K).to(tl.int32)
        head = tl.where(head == K, 0, head)


@dataclass(frozen=True, slots=True)
class Spread:
    """How a decode is dealt out on one machine."""

    programs: int
    """That run at the same time."""
    arrived: Tensor
    """int32 zeros, one a row and kv head at least; they are zeros again when a kernel is done. Launches that may run at
    the same time need counters of their own."""
    positions: int = 64
    """Of a tile."""
    warps: int = 4
    stages: int = 3


def even_decode(
    q_RHD: Tensor,
    cache: Cache,
    rows: Rows,
    scoring: Scoring,
    out_RHD: Tensor,
    *,
    spread: Spread,
    mixed: bool = False,
    overlap: Overlap = ALONE,
) -> None:
    """As `attention.decode` without `fresh`."""
    if not q_RHD.shape[0]:
        return
    num_rows, num_heads, head_dim = q_RHD.shape
    group = triton.next_power_of_2(num_heads // cache.keys.shape[2])
    elements = group * max(16, triton.next_power_of_2(head_dim))
    partial = torch.empty(2 * spread.programs * elements, dtype=torch.float32, device=q_RHD.device)
    log_mass = torch.empty(2 * spread.programs * group, dtype=torch.float32, device=q_RHD.device)
    sinks, scale, softcap, window = scoring.arguments()
    even_decode_kernel[(spread.programs,)](
        out_RHD, partial, log_mass, spread.arrived, q_RHD, cache.keys, cache.values,
        rows.block_table, rows.query_start, rows.kv_length, sinks, scale, softcap, window,
        num_rows, *q_RHD.stride()[:2], rows.block_table.stride(0), *cache.keys.stride()[1:3],
        **dims_of(q_RHD, cache), **scoring.flags(), G_PAD=max(16, group), GROUP=group, S=cache.keys.shape[1], N=spread.positions,
        R_PAD=max(FEWEST_ROWS, triton.next_power_of_2(num_rows)), C=max(1, min(16, MERGED_ELEMENTS // elements)),
        MIXED=mixed, EARLY=overlap.step_inputs_early, BEGIN=overlap.begin,
        num_warps=spread.warps, num_stages=spread.stages, **overlap.options,
    )  # fmt: skip
