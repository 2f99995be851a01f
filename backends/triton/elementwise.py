"""The small ops between matmuls, each one pass over its input: norms, rope, the gated activation.

Statistics and angles are float32. Intermediate results are rounded to the input's dtype where the reference rounds
them, so that greedy tokens stay those of the model's authors.

Legend: T packed tokens, E hidden size, I intermediate size, H query heads, K kv heads, D head dim, R rotating dims.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, Overlap


@triton.jit(do_not_specialize=["num_rows"])
def _norm_kernel(
    x, residual, weight, out, total, num_rows, outer_stride, inner_stride, epsilon,
    INNER: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
    BEGIN: tl.constexpr,
):  # fmt: skip
    """ROWS rows a program; row r of x begins at r // INNER outer strides and r % INNER inner ones."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, BLOCK)
    inside = (r[:, None] < num_rows) & (e[None, :] < E)
    source = (r // INNER).to(tl.int64) * outer_stride + (r % INNER) * inner_stride
    dense = r.to(tl.int64)[:, None] * E + e[None, :]
    weight_E = tl.load(weight + e, mask=e < E, other=0.0)
    BEGIN()
    x_RE = tl.load(x + source[:, None] + e[None, :], mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x_RE += tl.load(residual + dense, mask=inside, other=0.0).to(tl.float32)
        rounded = x_RE.to(total.dtype.element_ty)
        tl.store(total + dense, rounded, mask=inside)
        x_RE = rounded.to(tl.float32)
    scale_R = tl.rsqrt(tl.sum(x_RE * x_RE, 1) / E + epsilon)
    normed = (x_RE * scale_R[:, None]).to(out.dtype.element_ty)
    tl.store(out + dense, (normed.to(tl.float32) * weight_E.to(tl.float32)[None, :]).to(normed.dtype), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, overlap: Overlap = ALONE) -> Tensor:
    """x / rms(x) * weight over the last dimension, of [T, E] or [T, H, D] with any strides but the last."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inner = x.shape[1] if x.dim() == 3 else 1
    strides = (x.stride(0), x.stride(1) if x.dim() == 3 else 0)
    _launch_norm(x, out, weight, (None, None), inner=inner, strides=strides, epsilon=epsilon, overlap=overlap)
    return out


def add_rms_norm(
    x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, epsilon: float, *, overlap: Overlap = ALONE
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual)."""
    x_TE, residual_TE = x_TE.contiguous(), residual_TE.contiguous()
    out_TE, total_TE = torch.empty_like(x_TE), torch.empty_like(x_TE)
    strides = (x_TE.shape[1], 0)
    _launch_norm(
        x_TE, out_TE, weight_E, (residual_TE, total_TE), inner=1, strides=strides, epsilon=epsilon, overlap=overlap
    )
    return out_TE, total_TE


def _launch_norm(
    x: Tensor,
    out: Tensor,
    weight: Tensor,
    added: tuple[Tensor | None, Tensor | None],
    *,
    inner: int,
    strides: tuple[int, int],
    epsilon: float,
    overlap: Overlap,
) -> None:
    size = x.shape[-1]
    num_rows = x.numel() // size
    if not num_rows:
        return
    block = triton.next_power_of_2(size)
    rows = max(1, 2048 // block)
    residual, total = added
    _norm_kernel[(triton.cdiv(num_rows, rows),)](
        x, residual, weight, out, total, num_rows, *strides, epsilon,
        INNER=inner, E=size, ROWS=rows, BLOCK=block, ADD=residual is not None, BEGIN=overlap.begin,
        num_warps=8 if block >= 4096 else 4, **overlap.options,
    )  # fmt: skip


@triton.jit
def _turn(
    x, out, token, first_head, num_heads, token_stride, head_stride, cos_P, sin_P,
    D: tl.constexpr, HALF: tl.constexpr, P_PAD: tl.constexpr, HEADS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Some heads of one token."""
    h, p = first_head + tl.arange(0, HEADS), tl.arange(0, P_PAD)
    inside = (h[:, None] < num_heads) & (p[None, :] < HALF)
    source = x + token * token_stride + h[:, None] * head_stride
    target = out + (token * num_heads + h[:, None]) * D
    first = tl.load(source + p[None, :], mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + p[None, :] + HALF, mask=inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(target + p[None, :], (first * cos_P - second * sin_P).to(dtype), mask=inside)
    tl.store(target + p[None, :] + HALF, (second * cos_P + first * sin_P).to(dtype), mask=inside)
    if D > 2 * HALF:
        d = tl.arange(0, REST)
        kept = (h[:, None] < num_heads) & (d[None, :] >= 2 * HALF) & (d[None, :] < D)
        tl.store(target + d[None, :], tl.load(source + d[None, :], mask=kept), mask=kept)


@triton.jit(do_not_specialize_on_alignment=["positions"])
def _rope_kernel(
    q, k, q_out, k_out, positions, table, q_token_stride, q_head_stride, k_token_stride, k_head_stride,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, P_PAD: tl.constexpr, HEADS: tl.constexpr,
    REST: tl.constexpr, EARLY: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """Program (token, group of heads); the groups of q come first."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p = tl.arange(0, P_PAD)
    if not EARLY:
        BEGIN()
    row = table + tl.load(positions + token).to(tl.int64) * (2 * HALF)
    cos_P = tl.load(row + p, mask=p < HALF, other=0.0)[None, :]
    sin_P = tl.load(row + HALF + p, mask=p < HALF, other=0.0)[None, :]
    if EARLY:
        BEGIN()
    groups_of_q: tl.constexpr = (H + HEADS - 1) // HEADS
    if group < groups_of_q:
        _turn(
            q, q_out, token, group * HEADS, H, q_token_stride, q_head_stride, cos_P, sin_P, D, HALF, P_PAD, HEADS, REST
        )
    else:
        first = (group - groups_of_q) * HEADS
        _turn(k, k_out, token, first, K, k_token_stride, k_head_stride, cos_P, sin_P, D, HALF, P_PAD, HEADS, REST)


HEADS_AT_ONCE = 8


def rope(
    q_THD: Tensor, k_TKD: Tensor, positions_T: Tensor, cos_sin_PR: Tensor, *, overlap: Overlap = ALONE
) -> tuple[Tensor, Tensor]:
    """Rotates the leading R dimensions of each head; table [positions, R] float32, half cosines, half sines."""
    num_tokens, num_heads, head_dim = q_THD.shape
    num_kv_heads, rotary_dim = k_TKD.shape[1], cos_sin_PR.shape[1]
    q_THD, k_TKD = (x if x.stride(2) == 1 else x.contiguous() for x in (q_THD, k_TKD))
    q_out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    k_out = torch.empty(k_TKD.shape, dtype=k_TKD.dtype, device=k_TKD.device)
    groups = triton.cdiv(num_heads, HEADS_AT_ONCE) + triton.cdiv(num_kv_heads, HEADS_AT_ONCE)
    if num_tokens:
        _rope_kernel[(num_tokens, groups)](
            q_THD, k_TKD, q_out, k_out, positions_T, cos_sin_PR, *q_THD.stride()[:2], *k_TKD.stride()[:2],
            H=num_heads, K=num_kv_heads, D=head_dim, HALF=rotary_dim // 2,
            P_PAD=triton.next_power_of_2(max(1, rotary_dim // 2)), HEADS=HEADS_AT_ONCE,
            REST=triton.next_power_of_2(head_dim), EARLY=overlap.step_inputs_early, BEGIN=overlap.begin,
            num_warps=4, **overlap.options,
        )  # fmt: skip
    return q_out, k_out


@triton.jit
def _silu_mul_kernel(x, out, I: tl.constexpr, BLOCK: tl.constexpr, BEGIN: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    BEGIN()
    gate = tl.load(x + token * (2 * I) + i, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + token * (2 * I) + I + i, mask=inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    swished = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + token * I + i, (swished * up).to(dtype), mask=inside)


def silu_mul(x_T2I: Tensor, *, overlap: Overlap = ALONE) -> Tensor:
    """silu(gate) * up, [T, 2I] -> [T, I]."""
    x_T2I = x_T2I.contiguous()
    num_tokens, size = x_T2I.shape[0], x_T2I.shape[1] // 2
    out_TI = torch.empty((num_tokens, size), dtype=x_T2I.dtype, device=x_T2I.device)
    if num_tokens:
        _silu_mul_kernel[(num_tokens, triton.cdiv(size, 1024))](
            x_T2I, out_TI, I=size, BLOCK=1024, BEGIN=overlap.begin, num_warps=4, **overlap.options
        )
    return out_TI
