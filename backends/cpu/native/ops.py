"""The compiled kernels under the names of the core's ops.

Attention and the writing of keys go by the cache: a model whose shapes the kernel does not take has torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mainspring.backends.cpu import attention as by_torch
from mainspring.backends.cpu.native import attention as native
from mainspring.backends.cpu.native.elementwise import Elementwise
from mainspring.backends.cpu.native.library import Kernels


def native_ops(kernels: Kernels) -> Mapping[str, Callable[..., Any]]:
    """Overrides for `Device.ops`."""
    small = Elementwise(kernels)

    def attention(q: Tensor, k: Tensor | None, v: Tensor | None, kv: Any, layer: int, plan: Any, **how: Any) -> Tensor:
        if isinstance(kv, native.NativeKV):
            return native.attention(q, k, v, kv, layer, plan, kernels=kernels, **how)
        return by_torch.attention(q, k, v, kv, layer, plan, **how)

    def kv_write(k: Tensor, v: Tensor, kv: Any, layer: int, slot: Tensor) -> None:
        if isinstance(kv, native.NativeKV):
            native.kv_write(k, v, kv, layer, slot, kernels)
        else:
            by_torch.kv_write(k, v, kv, layer, slot)

    return {
        "rms_norm": small.rms_norm,
        "add_rms_norm": small.add_rms_norm,
        "rope": small.rope,
        "silu_mul": small.silu_mul,
        "sample": small.sample,
        "logprobs": small.logprobs,
        "apply_bitmask": small.apply_bitmask,
        "kv_write": kv_write,
        "attention": attention,
    }
