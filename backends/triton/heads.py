"""What lies between a model's projection to queries, keys and values and its attention, in one pass: norms over each
head where the model has them, rotation, and the cache written.

Statistics and angles are float32; results are rounded where the ops one by one would round them.

Legend: T packed tokens, H query heads, K kv heads, D head dim, R rotating dims, S tokens a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, Overlap

HEADS_AT_ONCE = 8


@triton.jit
def _head_parts(
    x, weight, inside_HP, inside_HR, epsilon, p, r, D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr
):
    """Of some heads: the dimensions that pair with later ones, those, and the rest; normed."""
    first = tl.load(x + p[None, :], mask=inside_HP, other=0.0)
    second = tl.load(x + p[None, :] + HALF, mask=inside_HP, other=0.0)
    dtype = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    rest = tl.load(x + r[None, :], mask=inside_HR, other=0.0).to(tl.float32)
    if NORM:
        squares_H = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
        scale_H = tl.rsqrt(squares_H / D + epsilon)[:, None]
        early_P = tl.load(weight + p, mask=p < HALF, other=0.0).to(tl.float32)[None, :]
        late_P = tl.load(weight + HALF + p, mask=p < HALF, other=0.0).to(tl.float32)[None, :]
        rest_R = tl.load(weight + r, mask=r < D, other=0.0).to(tl.float32)[None, :]
        first = ((first * scale_H).to(dtype).to(tl.float32) * early_P).to(dtype).to(tl.float32)
        second = ((second * scale_H).to(dtype).to(tl.float32) * late_P).to(dtype).to(tl.float32)
        rest = ((rest * scale_H).to(dtype).to(tl.float32) * rest_R).to(dtype).to(tl.float32)
    return first, second, rest


@triton.jit(do_not_specialize_on_alignment=["positions", "slot"])
def _heads_kernel(
    q, k, v, q_out, keys, values, positions, slot, table, q_weight, k_weight, epsilon,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, HALF: tl.constexpr, P_PAD: tl.constexpr,
    REST: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr, EARLY: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """Program (token, group of heads); the groups of q come first. A group of k takes those heads of v along."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p, r = tl.arange(0, P_PAD), 2 * HALF + tl.arange(0, REST)
    if not EARLY:
        BEGIN()
    place = tl.load(slot + token)
    angles = table + tl.load(positions + token).to(tl.int64) * (2 * HALF)
    cos_P = tl.load(angles + p, mask=p < HALF, other=0.0)[None, :]
    sin_P = tl.load(angles + HALF + p, mask=p < HALF, other=0.0)[None, :]
    if EARLY:
        BEGIN()
    groups_of_q: tl.constexpr = (H + HEADS - 1) // HEADS
    if group < groups_of_q:
        h = group * HEADS + tl.arange(0, HEADS)
        inside_HP, inside_HR = (h[:, None] < H) & (p[None, :] < HALF), (h[:, None] < H) & (r[None, :] < D)
        source = q + token * q_token_stride + h[:, None] * q_head_stride
        first, second, rest = _head_parts(source, q_weight, inside_HP, inside_HR, epsilon, p, r, D, HALF, NORM)
        target = q_out + (token * H + h[:, None]) * D
        tl.store(target + p[None, :], (first * cos_P - second * sin_P).to(q_out.dtype.element_ty), mask=inside_HP)
        tl.store(
            target + HALF + p[None, :], (second * cos_P + first * sin_P).to(q_out.dtype.element_ty), mask=inside_HP
        )
        tl.store(target + r[None, :], rest.to(q_out.dtype.element_ty), mask=inside_HR)
    elif place >= 0:
        h, d = (group - groups_of_q) * HEADS + tl.arange(0, HEADS), tl.arange(0, D_PAD)
        inside_HP, inside_HR = (h[:, None] < K) & (p[None, :] < HALF), (h[:, None] < K) & (r[None, :] < D)
        source = k + token * k_token_stride + h[:, None] * k_head_stride
        first, second, rest = _head_parts(source, k_weight, inside_HP, inside_HR, epsilon, p, r, D, HALF, NORM)
        target = keys + (place * K + h[:, None]) * D

        tl.store(
            target + p[None, :],
            (first * cos_P - second * sin_P).to(k.dtype.element_ty).to(keys.dtype.element_ty),
            mask=inside_HP,
        )
        tl.store(
            target + HALF + p[None, :],
            (second * cos_P + first * sin_P).to(k.dtype.element_ty).to(keys.dtype.element_ty),
            mask=inside_HP,
        )
        tl.store(target + r[None, :], rest.to(k.dtype.element_ty).to(keys.dtype.element_ty), mask=inside_HR)
        inside_HD = (h[:, None] < K) & (d[None, :] < D)
        v_HD = tl.load(v + token * v_token_stride + h[:, None] * v_head_stride + d[None, :], mask=inside_HD)
        tl.store(values + (place * K + h[:, None]) * D + d[None, :], v_HD.to(values.dtype.element_ty), mask=inside_HD)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a step's tokens stand in their sequences, [T], and in the cache, [T] int64 (-1: nowhere); and the table of
    angles, [positions, R] float32, half cosines, half sines."""

    positions: Tensor
    slot: Tensor
    cos_sin: Tensor


def rotate_and_store(
    heads: tuple[Tensor, Tensor, Tensor],
    places: Places,
    cache: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor, float] | None = None,
    *,
    overlap: Overlap = ALONE,
) -> Tensor:
    """q[T, H, D], k and v[T, K, D] to q normed and rotated; k, likewise, and v go to the cache [num_blocks, S, K, D].

    `norms`: weights [D] for the heads of q and of k, and their epsilon.
    """
    q_THD, k_TKD, v_TKD = (x if x.stride(2) == 1 else x.contiguous() for x in heads)
    num_tokens, num_heads, head_dim = q_THD.shape
    num_kv_heads, half = k_TKD.shape[1], places.cos_sin.shape[1] // 2
    q_out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    q_weight, k_weight, epsilon = norms or (None, None, 0.0)
    groups = triton.cdiv(num_heads, HEADS_AT_ONCE) + triton.cdiv(num_kv_heads, HEADS_AT_ONCE)
    if num_tokens:
        _heads_kernel[(num_tokens, groups)](
            q_THD, k_TKD, v_TKD, q_out, *cache, places.positions, places.slot, places.cos_sin, q_weight, k_weight,
            epsilon, *q_THD.stride()[:2], *k_TKD.stride()[:2], *v_TKD.stride()[:2],
            H=num_heads, K=num_kv_heads, D=head_dim, D_PAD=triton.next_power_of_2(head_dim), HALF=half,
            P_PAD=triton.next_power_of_2(max(1, half)), REST=triton.next_power_of_2(max(1, head_dim - 2 * half)),
            HEADS=HEADS_AT_ONCE, NORM=norms is not None, EARLY=overlap.step_inputs_early, BEGIN=overlap.begin,
            num_warps=4, **overlap.options,
        )  # fmt: skip
    return q_out
