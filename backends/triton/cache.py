"""Writing keys and values where a step's slots say. The cache is [num_blocks, S, K, D].

Legend: T packed tokens, K kv heads, D head dim, S tokens a block.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mainspring.backends.triton.launch import ALONE, Overlap


@triton.jit(do_not_specialize_on_alignment=["slot"])
def _write_kernel(
    k, v, keys, values, slot, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    BEGIN()
    place = tl.load(slot + token)
    if place < 0:
        return
    e = tl.arange(0, BLOCK)
    inside = e < K * D
    head, d = e // D, e % D
    k_E = tl.load(k + token * k_token_stride + head * k_head_stride + d, mask=inside)
    v_E = tl.load(v + token * v_token_stride + head * v_head_stride + d, mask=inside)
    tl.store(keys + place * (K * D) + e, k_E.to(keys.dtype.element_ty), mask=inside)
    tl.store(values + place * (K * D) + e, v_E.to(values.dtype.element_ty), mask=inside)


def kv_write(
    k_TKD: Tensor, v_TKD: Tensor, keys: Tensor, values: Tensor, slot_T: Tensor, *, overlap: Overlap = ALONE
) -> None:
    """Stores each token's key and value at its slot; slot -1 stores nothing."""
    num_tokens, num_heads, head_dim = k_TKD.shape
    if not num_tokens:
        return
    k_TKD, v_TKD = (x if x.stride(2) == 1 else x.contiguous() for x in (k_TKD, v_TKD))
    _write_kernel[(num_tokens,)](
        k_TKD, v_TKD, keys, values, slot_T, *k_TKD.stride()[:2], *v_TKD.stride()[:2],
        K=num_heads, D=head_dim, BLOCK=triton.next_power_of_2(num_heads * head_dim), BEGIN=overlap.begin, num_warps=4,
        **overlap.options,
    )  # fmt: skip
