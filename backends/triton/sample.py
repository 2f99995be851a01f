"""Choosing tokens without sorting the vocabulary: argmax in parts, thresholds by bisection, noise made where it is
used.

The noise is a hash of (seed, position, token id), word for word that of the reference: MurmurHash3_x86_32 and the
uniform made of it are exact integers and two roundings, so fused multiply-adds are switched off.

top_k and top_p each reduce to a threshold t: a score v stays when fewer than k scores, or less than the wanted mass,
lie above v. That count is a step function of v and scores are at most 0, so the lowest v that stays is found bit by
bit in 31 passes over the row, which lies in cache.

Legend: N rows, V vocabulary, C parts of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

PARTS = 32
"""Parts that a row is cut into. One number for all, so that one kernel serves any number of rows."""
BLOCK = 1024
INFINITE_BITS = tl.constexpr(0x7F800000)
UNIFORM_SCALE = tl.constexpr(2.0**-31 * (1 - 2.0**-24))
UNIFORM_SHIFT = tl.constexpr(2.0**-32)


@triton.jit
def _scramble(word):
    word = word * 0xCC9E2D51
    word = (word << 15) | (word >> 17)
    return word * 0x1B873593


@triton.jit
def _absorb(state, scrambled):
    state = state ^ scrambled
    state = (state << 13) | (state >> 19)
    return state * 5 + 0xE6546B64


@triton.jit
def _gumbel(state, token):
    """Standard Gumbel noise of a token, given the hash state after seed and position."""
    h = _absorb(state, _scramble(token.to(tl.uint32))) ^ 16
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    u = (h & 0x7FFFFFFF).to(tl.int32).to(tl.float32) * UNIFORM_SCALE + UNIFORM_SHIFT
    return -libdevice.log(-libdevice.log1p(-u))


@triton.jit
def _row_peak(peaks, row, C: tl.constexpr):
    return tl.max(tl.load(peaks + row * C + tl.arange(0, C)), 0)


@triton.jit
def _score(logits, v, inside, peak, heat):
    """(logit - peak) / temperature, rounded as the reference rounds."""
    x = tl.load(logits + v, mask=inside, other=float("-inf")).to(tl.float32) - peak
    return tl.math.div_rn(x, tl.zeros_like(x) + heat)


@triton.jit
def _peaks_kernel(logits, peaks, places, row_stride, length, V: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit of one part, and the first place that it stands at; infinity where one is no number."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = part * length + i
    broken = tl.zeros((BLOCK,), tl.int32)
    for start in range(part * length, (part + 1) * length, BLOCK):
        v = start + i
        x = tl.load(logits + row * row_stride + v, mask=v < V, other=float("-inf")).to(tl.float32)
        place = tl.where(x > best, v, place)
        best = tl.where(x > best, x, best)
        broken |= (x != x).to(tl.int32)
    peak = tl.max(best, 0)
    # Nothing compares with NaN, so it is told as the infinity that is as bad.
    tl.store(peaks + row * C + part, tl.where(tl.max(broken, 0) > 0, float("inf"), peak))
    tl.store(places + row * C + part, tl.min(tl.where(best == peak, place, V - 1), 0))


@triton.jit(do_not_specialize_on_alignment=["temperature", "key", "position", "min_p"])
def _draws_kernel(
    logits, row_peaks, row_places, thresholds, temperature, key, position, min_p, peaks, places, row_stride, length,
    V: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """As `_peaks_kernel`, of scores with noise; what that found stays for rows of temperature 0, which are not read."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heat = tl.load(temperature + row)
    if heat <= 0:
        tl.store(peaks + row * C + part, tl.load(row_peaks + row * C + part))
        tl.store(places + row * C + part, tl.load(row_places + row * C + part))
        return
    peak = _row_peak(row_peaks, row, C)
    state = tl.load(key + row).to(tl.uint32, bitcast=True)
    state = _absorb(state, _scramble(tl.load(position + row).to(tl.uint32, bitcast=True)))
    floor = float("-inf")
    if CUT:
        floor = tl.maximum(tl.load(thresholds + row), libdevice.log(tl.load(min_p + row)))
    i = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = part * length + i
    for start in range(part * length, (part + 1) * length, BLOCK):
        v = start + i
        x = _score(logits + row * row_stride, v, v < V, peak, heat)
        if CUT:
            x = tl.where(x < floor, float("-inf"), x)
        x = x + _gumbel(state, v)
        place = tl.where(x > best, v, place)
        best = tl.where(x > best, x, best)
    highest = tl.max(best, 0)
    tl.store(peaks + row * C + part, highest)
    tl.store(places + row * C + part, tl.min(tl.where(best == highest, place, V - 1), 0))


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["bad", "table_rows", "positions"])
def _choose_kernel(
    peaks, places, ids, row_peaks, bad, table, table_rows, positions, table_stride,
    V: tl.constexpr, C: tl.constexpr, TOLD: tl.constexpr,
):  # fmt: skip
    """The best of a row's parts; with TOLD also into the token table, and whether the row's logits were not finite."""
    row = tl.program_id(0)
    c = tl.arange(0, C)
    peaks_C = tl.load(peaks + row * C + c)
    places_C = tl.load(places + row * C + c)
    best = tl.where(peaks_C == tl.max(peaks_C, 0), places_C, V - 1)
    chosen = tl.minimum(tl.min(best, 0), V - 1)
    tl.store(ids + row, chosen)
    if TOLD:
        peak = _row_peak(row_peaks, row, C)
        tl.store(bad + row, ((peak == float("inf")) | (peak == float("-inf"))).to(tl.int32))
        place = tl.load(table_rows + row).to(tl.int64) * table_stride + tl.load(positions + row)
        tl.store(table + place, chosen)


@triton.jit
def _above(logits, score, peak, heat, V: tl.constexpr, BLOCK: tl.constexpr):
    """(how many scores lie above one, their mass)."""
    i = tl.arange(0, BLOCK)
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        x = _score(logits, start + i, start + i < V, peak, heat)
        higher = x > score
        count += higher.to(tl.int32)
        mass += tl.where(higher, tl.exp(x), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _negative(bits):
    return -(bits.to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize_on_alignment=["temperature", "top_k", "top_p"])
def _thresholds_kernel(
    logits, row_peaks, temperature, top_k, top_p, thresholds, row_stride,
    V: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
):  # fmt: skip
    """The lowest score of a row that top_k, and top_p of what that leaves, keep; -inf where nothing is cut."""
    row = tl.program_id(0).to(tl.int64)
    heat, k, share = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row)
    limited = (k > 0) & (k < V)
    threshold = float("-inf")
    if heat > 0:
        logits += row * row_stride
        peak = _row_peak(row_peaks, row, C)
        lowest = tl.full((), INFINITE_BITS, tl.int32)
        if TOP_K:
            if limited:
                lowest = tl.zeros((), tl.int32)
                for step in range(31):
                    tried = lowest | (1 << (30 - step))
                    if tried <= INFINITE_BITS:
                        count, _ = _above(logits, _negative(tried), peak, heat, V, BLOCK)
                        if count < k:
                            lowest = tried
                threshold = _negative(lowest)
        if TOP_P:
            if share < 1:
                count, mass = _above(logits, _negative(lowest), peak, heat, V, BLOCK)
                if limited:
                    # Of scores that tie at the k-th place, only so many belong to the k.
                    mass += (k - count).to(tl.float32) * tl.exp(_negative(lowest))
                wanted = share * mass
                kept = tl.zeros((), tl.int32)
                for step in range(31):
                    tried = kept | (1 << (30 - step))
                    if tried <= INFINITE_BITS:
                        _, mass = _above(logits, _negative(tried), peak, heat, V, BLOCK)
                        if mass < wanted:
                            kept = tried
                threshold = tl.maximum(threshold, _negative(kept))
    tl.store(thresholds + row, threshold)


@dataclass(frozen=True, slots=True)
class Peaks:
    """The largest logit of each part of each row, and where it stands: [N, C] each."""

    height: Tensor
    place: Tensor


def thresholds(
    logits_NV: Tensor,
    peaks: Peaks,
    temperature_N: Tensor,
    top_k_N: Tensor,
    top_p_N: Tensor,
    *,
    any_top_k: bool,
    any_top_p: bool,
) -> Tensor:
    """[N] float32: scores (logit - largest) / temperature below it are cut. Rows without a limit are not read."""
    num_rows, vocab_size = logits_NV.shape
    out_N = torch.empty(num_rows, dtype=torch.float32, device=logits_NV.device)
    if num_rows:
        _thresholds_kernel[(num_rows,)](
            logits_NV, peaks.height, temperature_N, top_k_N, top_p_N, out_N, logits_NV.stride(0),
            V=vocab_size, C=PARTS, BLOCK=4096, TOP_K=any_top_k, TOP_P=any_top_p, num_warps=16, enable_fp_fusion=False,
        )  # fmt: skip
    return out_N


def draw(
    logits_NV: Tensor,
    peaks: Peaks,
    temperature_N: Tensor,
    key_N: Tensor,
    position_N: Tensor,
    *,
    cut: tuple[Tensor, Tensor] | None = None,
) -> Peaks:
    """The peaks after noise was added to what `cut` (thresholds, min_p) leaves: those of a draw from its softmax.

    `key` is the hash state after the row's seed. Rows of temperature 0 keep their peaks.
    """
    num_rows, vocab_size = logits_NV.shape
    drawn = Peaks(torch.empty_like(peaks.height), torch.empty_like(peaks.place))
    thresholds_N, min_p_N = cut or (None, None)
    if num_rows:
        _draws_kernel[(num_rows, PARTS)](
            logits_NV, peaks.height, peaks.place, thresholds_N, temperature_N, key_N, position_N, min_p_N,
            drawn.height, drawn.place, logits_NV.stride(0), _part_length(vocab_size),
            V=vocab_size, C=PARTS, BLOCK=BLOCK, CUT=cut is not None, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return drawn


def _part_length(vocab_size: int) -> int:
    return triton.cdiv(triton.cdiv(vocab_size, PARTS), BLOCK) * BLOCK


def find_peaks(logits_NV: Tensor) -> Peaks:
    """What every choice begins with."""
    num_rows, vocab_size = logits_NV.shape
    peaks_NC = torch.empty((num_rows, PARTS), dtype=torch.float32, device=logits_NV.device)
    places_NC = torch.empty((num_rows, PARTS), dtype=torch.int32, device=logits_NV.device)
    if num_rows:
        _peaks_kernel[(num_rows, PARTS)](
            logits_NV, peaks_NC, places_NC, logits_NV.stride(0), _part_length(vocab_size),
            V=vocab_size, C=PARTS, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return Peaks(peaks_NC, places_NC)


def highest(peaks: Peaks, vocab_size: int) -> Tensor:
    """The id that each row's highest peak stands at, the first of equals: [N] int32."""
    num_rows = len(peaks.height)
    ids_N = torch.empty(num_rows, dtype=torch.int32, device=peaks.height.device)
    if num_rows:
        _choose_kernel[(num_rows,)](
            peaks.height, peaks.place, ids_N, None, None, None, None, None, 0,
            V=vocab_size, C=PARTS, TOLD=False, num_warps=1,
        )  # fmt: skip
    return ids_N


@dataclass(frozen=True, slots=True)
class Destination:
    """Where chosen ids go: (rows[n], positions[n]) of the token table."""

    tokens: Tensor
    """[R, P]"""
    rows: Tensor
    positions: Tensor


def record(drawn: Peaks, peaks: Peaks, vocab_size: int, destination: Destination) -> Tensor:
    """[2, N] int32: what `highest` gives, which goes to the token table as well, and whether the row of logits that
    `peaks` were found in was not finite.
    """
    num_rows = len(drawn.height)
    chosen_2N = torch.empty((2, num_rows), dtype=torch.int32, device=drawn.height.device)
    if num_rows:
        table = destination.tokens
        _choose_kernel[(num_rows,)](
            drawn.height, drawn.place, chosen_2N, peaks.height, chosen_2N[1],
            table, destination.rows, destination.positions, table.stride(0),
            V=vocab_size, C=PARTS, TOLD=True, num_warps=1,
        )  # fmt: skip
    return chosen_2N
