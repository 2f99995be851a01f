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
less spends its time on calls. Flat between 1 and 8 MiB."""


@dataclass(frozen=True, slots=True)
class Store:
    """Keys or values of one layer: one memory, seen in two ways. Made once, because views cost as much as small ops."""

    by_block: Tensor
    """[K * num_blocks, S * D]"""
    by_token: Tensor
    """[K * num_blocks * S, D]"""

    @classmethod
    def allocate(cls, spec: KVSpec, num_blocks: int) -> Store:
        """Whatever the memory holds: attention reads nothing that it has not written."""
        rows, width = spec.heads * num_blocks, spec.block_size * spec.head_dim
        by_block = torch.empty(rows, width, dtype=getattr(torch, spec.dtype))
        return cls(by_block, by_block.view(-1, spec.head_dim))


@dataclass(frozen=True, slots=True)
class HeadMajorKV:
    """For each layer, keys and values as [K, num_blocks, S, D], and room to gather one part of a step."""

    keys: tuple[Store, ...]
    values: tuple[Store, ...]
    shape: tuple[int, int, int, int]
    """(K, num_blocks, S, D) of each layer."""
    scratch: tuple[Tensor, Tensor]
    """Flat; reused by every layer of every step, which spares the page faults of fresh memory."""

    @classmethod
    def allocate(cls, spec: KVSpec, num_blocks: int) -> HeadMajorKV:
        """An empty cache; the host gives each page when it is first written. Raises torch's error when it cannot."""
        keys, values = (tuple(Store.allocate(spec, num_blocks) for _ in range(spec.layers)) for _ in range(2))
        dtype = getattr(torch, spec.dtype)
        room = SCRATCH_BYTES // dtype.itemsize
        shape = (spec.heads, num_blocks, spec.block_size, spec.head_dim)
        return cls(keys, values, shape, (torch.empty(room, dtype=dtype), torch.empty(room, dtype=dtype)))

    def write(self, layer: int, rows: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Stores keys and values at `rows` [T * K] of the layer seen by token, heads outside."""
        head_dim = self.shape[3]
        for store, x_TKD in ((self.keys[layer], k_TKD), (self.values[layer], v_TKD)):
            store.by_token.index_copy_(0, rows, x_TKD.reshape(-1, head_dim).to(store.by_token.dtype))

    def gather(self, layer: int, blocks: Tensor, room: Sequence[Tensor]) -> None:
        """Copies `blocks` [n], an index into heads times blocks, to `room`: keys and values as [n, S * D] each."""
        torch.index_select(self.keys[layer].by_block, 0, blocks, out=room[0])
        torch.index_select(self.values[layer].by_block, 0, blocks, out=room[1])

    @property
    def block_room(self) -> int:
        """Blocks of one head that scratch holds."""
        return len(self.scratch[0]) // (self.shape[2] * self.shape[3])

    def room(self, num_blocks: int) -> tuple[Tensor, Tensor]:
        """Where so many blocks of one head can be gathered: in scratch, if they fit, which is then overwritten."""
        width = self.shape[2] * self.shape[3]
        keys, values = (
            flat[: num_blocks * width].view(num_blocks, width)
            if num_blocks * width <= len(flat)
            else flat.new_empty(num_blocks, width)
            for flat in self.scratch
        )
        return keys, values

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies the contents of blocks (source, destination) in all layers."""
        self.copy_blocks_from(self, pairs)

    def copy_blocks_from(self, other: HeadMajorKV, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks (source in `other`, destination here) in all layers."""
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            copy_blocks(theirs.by_block, mine.by_block, pairs, heads=self.shape[0])


def copy_blocks(source: Tensor, target: Tensor, pairs: Sequence[tuple[int, int]], *, heads: int) -> None:
    """Copies blocks (source, target) of every head from one [K * num_blocks, ...] to another."""
    read, written = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    head = torch.arange(heads)[:, None]
    taken = source.index_select(0, (head * (len(source) // heads) + read).flatten())
    target.index_copy_(0, (head * (len(target) // heads) + written).flatten(), taken)
