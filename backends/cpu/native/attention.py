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
from mainspring.backends.cpu.native.library import Attention, Kernels
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
    """A step as the kernel takes it: what all layers share is written into the record once."""

    record: Attention
    kept: tuple[Tensor, ...] = field(repr=False)
    """Tensors that the record points into."""
    padded: bool
    """Whether some tokens belong to no row: their outputs are zeros."""


def plan_native(metadata: AttentionMetadata, kv: NativeKV, kernels: Kernels) -> NativePlan:
    """Pointers and sizes, and nothing computed but whether there is padding."""
    slots, starts = metadata.slot.contiguous(), metadata.query_start.contiguous()
    lengths, table = metadata.kv_length.contiguous(), metadata.block_table.contiguous()
    heads, num_blocks, block_size, head_dim = kv.shape
    record = Attention(
        slots=slots.data_ptr(), starts=starts.data_ptr(), lengths=lengths.data_ptr(), table=table.data_ptr(),
        tokens=len(slots), rows=len(lengths), table_width=table.shape[1], num_blocks=num_blocks, kv_heads=heads,
        head_dim=head_dim, block_size=block_size, dtype=DTYPES.index(kv.keys[0].dtype), threads=kernels.threads,
    )  # fmt: skip
    counts = starts.diff()
    padded = int(counts[lengths > 0].sum()) != len(slots)
    return NativePlan(record, (slots, starts, lengths, table), padded)


def kv_write(k_TKD: Tensor, v_TKD: Tensor, kv: NativeKV, layer: int, slot_T: Tensor, kernels: Kernels) -> None:
    """Stores each token's key and value at its slot; slot -1 stores nothing."""
    heads, num_blocks, block_size, head_dim = kv.shape
    k_TKD, v_TKD, slot_T = _floats(k_TKD), _floats(v_TKD), slot_T.contiguous()
    keys, values = kv.places[layer]
    record = Attention(
        key=k_TKD.data_ptr(), value=v_TKD.data_ptr(), keys=keys, values=values, slots=slot_T.data_ptr(),
        key_stride=k_TKD.stride(0), value_stride=v_TKD.stride(0), tokens=len(slot_T), num_blocks=num_blocks,
        heads=heads, kv_heads=heads, head_dim=head_dim, block_size=block_size,
        dtype=DTYPES.index(kv.keys[0].dtype), threads=kernels.threads,
    )  # fmt: skip
    kernels.attention(ctypes.byref(record))


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
    record, q32_THD = plan.record, _floats(q_THD)
    record.query, record.query_stride, record.heads = q32_THD.data_ptr(), q32_THD.stride(0), q_THD.shape[1]
    if k_TKD is not None and v_TKD is not None:
        k_TKD, v_TKD = _floats(k_TKD), _floats(v_TKD)
        record.key, record.key_stride = k_TKD.data_ptr(), k_TKD.stride(0)
        record.value, record.value_stride = v_TKD.data_ptr(), v_TKD.stride(0)
    else:
        record.key = None
    out_THD = (torch.zeros if plan.padded else torch.empty)(q_THD.shape, dtype=torch.float32)
    sinks = None if sinks is None else sinks.float().contiguous()
    record.sinks = None if sinks is None else sinks.data_ptr()
    record.out = out_THD.data_ptr()
    record.keys, record.values = kv.places[layer]
    record.scale, record.window, record.softcap = scale, window or 0, softcap or 0.0
    kernels.attention(ctypes.byref(record))
    return out_THD.to(q_THD.dtype)


def _floats(x_THD: Tensor) -> Tensor:
    """In float32, with the heads of a token in one piece; tokens may lie apart."""
    return x_THD if dense(x_THD) else x_THD.float().contiguous()
