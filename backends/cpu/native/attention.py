"""Attention by the compiled kernel, and the cache it reads: keys transposed within their block.

Legend: T packed tokens, H query heads, K kv heads, D head dim, S tokens a block.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mainspring.backends.cpu.cache import copy_blocks
from mainspring.backends.cpu.native.elementwise import dense
from mainspring.backends.cpu.native.library import Attention, Kernel, Kernels, Step
from mainspring.core.backend import AttentionMetadata, KVSpec

LANES = 16
"""Of the kernel's vectors: it takes head dims and block sizes that are multiples of it."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of the cache, by the kernel's number for them."""


def takes(spec: KVSpec) -> bool:
    """Whether the kernel has this shape."""
    return spec.head_dim % LANES == 0 and spec.block_size % LANES == 0 and getattr(torch, spec.dtype) in DTYPES


@dataclass(frozen=True, slots=True)
class NativeKV:
    """For each layer, keys as [K, num_blocks, D, S] and values as [K, num_blocks, S, D]."""

    keys: tuple[Tensor, ...]
    """[K * num_blocks, S * D] each, as are values."""
    values: tuple[Tensor, ...]
    shape: tuple[int, int, int, int]
    """(K, num_blocks, S, D)"""
    places: tuple[tuple[int, int], ...]
    """Where each layer's keys and values begin in memory."""

    @classmethod
    def allocate(cls, spec: KVSpec, num_blocks: int) -> NativeKV:
        """Whatever the memory holds: attention reads nothing that it has not written."""
        size, dtype = (spec.heads * num_blocks, spec.block_size * spec.head_dim), getattr(torch, spec.dtype)
        keys, values = (tuple(torch.empty(size, dtype=dtype) for _ in range(spec.layers)) for _ in range(2))
        places = tuple((key.data_ptr(), value.data_ptr()) for key, value in zip(keys, values, strict=True))
        return cls(keys, values, (spec.heads, num_blocks, spec.block_size, spec.head_dim), places)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies the contents of blocks (source, destination) in all layers."""
        self.copy_blocks_from(self, pairs)

    def copy_blocks_from(self, other: NativeKV, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks (source in `other`, destination here) in all layers."""
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            copy_blocks(theirs, mine, pairs, heads=self.shape[0])


@dataclass(frozen=True, slots=True)
class NativePlan:
    """What all layers of a step share."""

    step: Step
    kept: tuple[Tensor, ...] = field(repr=False)
    """Tensors that the step points into."""
    padded: bool
    """Whether some tokens belong to no row: their outputs are zeros."""


def plan_native(metadata: AttentionMetadata) -> NativePlan:
    """Pointers and sizes, and nothing computed but whether there is padding."""
    slots, starts = metadata.slot.contiguous(), metadata.query_start.contiguous()
    lengths, table = metadata.kv_length.contiguous(), metadata.block_table.contiguous()
    step = Step(
        slots.data_ptr(), starts.data_ptr(), lengths.data_ptr(), table.data_ptr(), len(slots), len(lengths),
        table.shape[1],
    )  # fmt: skip
    counts = starts.diff()
    padded = int(counts[lengths > 0].sum()) != len(slots)
    return NativePlan(step, (slots, starts, lengths, table), padded)


def kv_write(k_TKD: Tensor, v_TKD: Tensor, kv: NativeKV, layer: int, slot_T: Tensor, kernels: Kernels) -> None:
    """Stores each token's key and value at its slot; slot -1 stores nothing."""
    slot_T = slot_T.contiguous()
    step = Step(slots=slot_T.data_ptr(), tokens=len(slot_T))
    record = _record(kv, layer, step)
    record.heads = record.kv_heads
    kept = _write(record, k_TKD, v_TKD)
    kernels.run(Kernel.ATTENTION, record, kept[0].numel())


def attention(
    q_THD: Tensor,
    k_TKD: Tensor | None,
    v_TKD: Tensor | None,
    kv: NativeKV,
    layer: int,
    plan: NativePlan,
    *,
    kernels: Kernels,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `core.ops.attention.attention`, with the plan of `plan_native`."""
    record, q32_THD = _record(kv, layer, plan.step), _floats(q_THD)
    record.query, record.query_stride, record.heads = q32_THD.data_ptr(), q32_THD.stride(0), q_THD.shape[1]
    kept = _write(record, k_TKD, v_TKD) if k_TKD is not None and v_TKD is not None else ()
    out_THD = kernels.empty(*q_THD.shape)
    if plan.padded:
        out_THD.zero_()
    sinks = None if sinks is None else sinks.float().contiguous()
    record.sinks = None if sinks is None else sinks.data_ptr()
    record.out = out_THD.data_ptr()
    record.scale, record.window, record.softcap = scale, window or 0, softcap or 0.0
    context = plan.step.table_width * kv.shape[2]
    kernels.run(Kernel.ATTENTION, record, q_THD.numel() * context)
    del kept  # until here the record pointed into it
    return out_THD.to(q_THD.dtype)


def _record(kv: NativeKV, layer: int, step: Step) -> Attention:
    heads, num_blocks, block_size, head_dim = kv.shape
    keys, values = kv.places[layer]
    return Attention(
        step=ctypes.addressof(step), keys=keys, values=values, num_blocks=num_blocks, kv_heads=heads,
        head_dim=head_dim, block_size=block_size, dtype=DTYPES.index(kv.keys[0].dtype),
    )  # fmt: skip


def _write(record: Attention, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
    """Has the record point to keys and values that are to be stored, and returns what it points into."""
    k_TKD, v_TKD = _floats(k_TKD), _floats(v_TKD)
    record.key, record.key_stride = k_TKD.data_ptr(), k_TKD.stride(0)
    record.value, record.value_stride = v_TKD.data_ptr(), v_TKD.stride(0)
    return k_TKD, v_TKD


def _floats(x_THD: Tensor) -> Tensor:
    """In float32, with the heads of a token in one piece; tokens may lie apart."""
    return x_THD if dense(x_THD) else x_THD.float().contiguous()
