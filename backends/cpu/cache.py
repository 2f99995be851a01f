"""The CPU's paged KV cache: heads outside, so that what one head keeps of one block lies in one piece.

A gather of blocks is then a few large copies, and its result is at once the batch of matrices that attention
multiplies, without a transpose. Legend: K kv heads, S tokens a block, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import KVSpec

SCRATCH_BYTES = 4 << 20
"""Keys, and as many values, gathered at a time: more falls out of the processor's cache between gather and product,
less spends its time on calls. Flat between 1 and 8 MiB (benchmarks/cpu_ops.py)."""


@dataclass(frozen=True, slots=True)
class HeadMajorKV:
    """For each layer, keys and values as [K, num_blocks, S, D], and room to gather one part of a step."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    scratch: tuple[Tensor, Tensor]
    """Flat; reused by every layer of every step, which spares the page faults of fresh memory."""

    @classmethod
    def allocate(cls, spec: KVSpec, num_blocks: int) -> HeadMajorKV:
        """An empty cache; the host gives each page when it is first written. Raises torch's error when it cannot."""
        shape = (spec.heads, num_blocks, spec.block_size, spec.head_dim)
        dtype = getattr(torch, spec.dtype)
        keys, values = (tuple(torch.empty(shape, dtype=dtype) for _ in range(spec.layers)) for _ in range(2))
        room = SCRATCH_BYTES // dtype.itemsize
        return cls(keys, values, (torch.empty(room, dtype=dtype), torch.empty(room, dtype=dtype)))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(K, num_blocks, S, D) of each layer."""
        heads, num_blocks, block_size, head_dim = self.keys[0].shape
        return heads, num_blocks, block_size, head_dim

    def write(self, layer: int, rows: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Stores keys and values at `rows` [T * K] of the layer seen as one list of tokens, heads outside."""
        head_dim = k_TKD.shape[-1]
        for cache, x_TKD in ((self.keys[layer], k_TKD), (self.values[layer], v_TKD)):
            cache.view(-1, head_dim).index_copy_(0, rows, x_TKD.reshape(-1, head_dim).to(cache.dtype))

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `blocks` [n], an index into heads times blocks: [n * S, D] each, in scratch if they fit.

        What scratch held before is overwritten.
        """
        keys, values = (
            _gather(cache[layer], blocks, room)
            for cache, room in zip((self.keys, self.values), self.scratch, strict=True)
        )
        return keys, values

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies the contents of blocks (source, destination) in all layers."""
        self.copy_blocks_from(self, pairs)

    def copy_blocks_from(self, other: HeadMajorKV, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks (source in `other`, destination here) in all layers."""
        sources, destinations = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine.index_copy_(1, destinations, theirs.index_select(1, sources))


def _gather(cache: Tensor, blocks: Tensor, room: Tensor) -> Tensor:
    *_, block_size, head_dim = cache.shape
    rows, width = len(blocks), block_size * head_dim
    source = cache.view(-1, width)
    if rows * width > len(room):
        return source.index_select(0, blocks).view(-1, head_dim)
    return torch.index_select(source, 0, blocks, out=room[: rows * width].view(rows, width)).view(-1, head_dim)
