"""Sum over ranks, addition to the stream and norm in one kernel, by stores into other ranks' memory.

Every rank has an inbox that all others can write. A program takes some rows, one at a time: it writes this rank's part
into each inbox, then a flag behind them, waits for the others' flags in its own, and adds all parts up in the order of
ranks, so that all ranks get the same bits. It meets nobody but the programs of its own number, so nothing waits for a
whole grid; and it writes before it waits, so no two can wait for each other. At each use a program writes to the other
of two places: who has seen a flag of the last use knows that the use before it is over on that rank, so its place is
free. Whatever is taken fits 32 bits.

Legend: T packed tokens, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, Overlap

TURNS = 2


@dataclass(frozen=True, slots=True)
class Inboxes:
    """What a rank knows of all ranks' inboxes. Flags and turns are 0 before the first use."""

    rank: int
    parts: Tensor
    """[ranks] int64: where each rank's inbox of rows begins, as this rank addresses it: [programs, TURNS, ranks, place
    bytes] there."""
    flags: Tensor
    """[ranks] int64: likewise of the flags, [programs, TURNS, ranks] int32."""
    turns: Tensor
    """[programs] int32, this rank's own: the place that each program uses next. There may be more programs than a
    machine runs at once, as long as it starts them in order."""
    place_bytes: int

    def takes(self, x_TE: Tensor) -> bool:
        """Whether a place holds a row."""
        return x_TE.shape[1] * x_TE.element_size() <= self.place_bytes


@triton.jit
def _post(
    part_E, inside_E, parts, flags, place, RANK: tl.constexpr, WORLD: tl.constexpr, BLOCK: tl.constexpr,
    PLACE: tl.constexpr,
):  # fmt: skip
    """A row into its place in every other inbox, and the flags behind it."""
    for other in tl.static_range(WORLD):
        if other != RANK:
            inbox = tl.load(parts + other).to(tl.pointer_type(part_E.dtype), bitcast=True)
            tl.store(inbox + (place + RANK) * PLACE + tl.arange(0, BLOCK), part_E, mask=inside_E)
    # All threads' stores come before the flag of the one thread that sets it.
    tl.debug_barrier()
    for other in tl.static_range(WORLD):
        if other != RANK:
            flag = tl.load(flags + other).to(tl.pointer_type(tl.int32), bitcast=True) + place + RANK
            tl.atomic_xchg(flag, 1, sem="release", scope="sys")


@triton.jit
def _collect(flags, place, RANK: tl.constexpr, WORLD: tl.constexpr):
    """Waits for every other rank's flag, and takes it down."""
    own = tl.load(flags + RANK).to(tl.pointer_type(tl.int32), bitcast=True) + place
    for other in tl.static_range(WORLD):
        if other != RANK:
            while tl.atomic_cas(own + other, 1, 0, sem="acquire", scope="sys") != 1:
                pass
    tl.debug_barrier()


@triton.jit(do_not_specialize=["num_rows"])
def _summed_kernel(
    x, residual, weight, out, total, parts, flags, turns, num_rows, epsilon,
    RANK: tl.constexpr, WORLD: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, PLACE: tl.constexpr,
    NORM: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """Every programs-th row a program, one after the other. PLACE: elements of a place.

    Without NORM `out` gets the sum.
    """
    program, e = tl.program_id(0), tl.arange(0, BLOCK)
    inside_E = e < E
    if NORM:
        weight_E = tl.load(weight + e, mask=inside_E, other=0.0).to(tl.float32)
    BEGIN()
    turn = tl.load(turns + program)
    inbox = tl.load(parts + RANK).to(tl.pointer_type(x.dtype.element_ty), bitcast=True)
    for row in range(program, num_rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * E
        place = (program * 2 + turn) * WORLD
        part_E = tl.load(x + at + e, mask=inside_E, other=0.0)
        _post(part_E, inside_E, parts, flags, place, RANK, WORLD, BLOCK, PLACE)
        _collect(flags, place, RANK, WORLD)
        sum_E = tl.zeros((BLOCK,), tl.float32)
        for source in tl.static_range(WORLD):
            if source == RANK:
                sum_E += part_E.to(tl.float32)
            else:
                theirs_E = tl.load(inbox + (place + source) * PLACE + e, mask=inside_E, other=0.0)
                sum_E += theirs_E.to(tl.float32)
        summed_E = sum_E.to(out.dtype.element_ty)
        if NORM:
            added_E = tl.load(residual + at + e, mask=inside_E, other=0.0).to(tl.float32)
            total_E = (summed_E.to(tl.float32) + added_E).to(total.dtype.element_ty)
            tl.store(total + at + e, total_E, mask=inside_E)
            wide_E = total_E.to(tl.float32)
            scale = tl.rsqrt(tl.sum(wide_E * wide_E, 0) / E + epsilon)
            normed_E = (wide_E * scale).to(out.dtype.element_ty).to(tl.float32) * weight_E
            tl.store(out + at + e, normed_E.to(out.dtype.element_ty), mask=inside_E)
        else:
            tl.store(out + at + e, summed_E, mask=inside_E)
        turn = 1 - turn
    tl.store(turns + program, turn)


def summed(x_TE: Tensor, inboxes: Inboxes, *, overlap: Overlap = ALONE) -> Tensor:
    """The sum of all ranks' x, which `inboxes` must take. Every rank calls with the same shape, in the same order."""
    x_TE = x_TE.contiguous()
    out_TE = torch.empty_like(x_TE)
    _launch(x_TE, (None, None, 0.0), (out_TE, None), inboxes, overlap)
    return out_TE


def summed_add_rms_norm(
    x_TE: Tensor, stream: tuple[Tensor, Tensor, float], inboxes: Inboxes, *, overlap: Overlap = ALONE
) -> tuple[Tensor, Tensor]:
    """(rms_norm(sum + residual), sum + residual), where the sum is of all ranks' x.

    `stream`: the residual [T, E], the norm's weight [E] and epsilon.
    """
    x_TE, residual_TE = x_TE.contiguous(), stream[0].contiguous()
    out_TE, total_TE = torch.empty_like(x_TE), torch.empty_like(x_TE)
    _launch(x_TE, (residual_TE, *stream[1:]), (out_TE, total_TE), inboxes, overlap)
    return out_TE, total_TE


def _launch(
    x_TE: Tensor,
    stream: tuple[Tensor | None, Tensor | None, float],
    results: tuple[Tensor, Tensor | None],
    inboxes: Inboxes,
    overlap: Overlap,
) -> None:
    num_rows, size = x_TE.shape
    if not num_rows:
        return
    residual, weight, epsilon = stream
    block = triton.next_power_of_2(size)
    _summed_kernel[(min(num_rows, len(inboxes.turns)),)](
        x_TE, residual, weight, *results, inboxes.parts, inboxes.flags, inboxes.turns, num_rows, epsilon,
        RANK=inboxes.rank, WORLD=len(inboxes.parts), E=size, BLOCK=block,
        PLACE=inboxes.place_bytes // x_TE.element_size(), NORM=residual is not None, BEGIN=overlap.begin,
        num_warps=8 if block >= 4096 else 4, **overlap.options,
    )  # fmt: skip
