"""The paged KV cache in static shapes: the tokens of a head of a block side by side, as a matrix unit wants them.

Every write has the same shape: tokens that store nothing store into a block of nobody's behind the last. Legend: K kv
heads, S tokens a block, D head dim, N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import KVSpec

PAIRS = 16
"""Blocks that one program copies; fewer are filled up with copies into the sink."""


@dataclass(frozen=True, slots=True)
class BlockMajorKV:
    """For each layer, keys and values as [N + 1, K, S, D]; the last block is the sink."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    flush: Callable[[], None]
    """`Device.flush`."""

    @classmethod
    def allocate(cls, spec: KVSpec, num_blocks: int, device: str, flush: Callable[[], None]) -> BlockMajorKV:
        """Zeros, since a lazy device has no memory without a value."""
        shape = (num_blocks + 1, spec.heads, spec.block_size, spec.head_dim)
        dtype = getattr(torch, spec.dtype)

        def layers() -> tuple[Tensor, ...]:
            return tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(spec.layers))

        kv = cls(layers(), layers(), flush)
        flush()
        return kv

    @property
    def sink(self) -> int:
        """The block that belongs to nobody and is never read."""
        return self.keys[0].shape[0] - 1

    def places(self, slot_T: Tensor) -> Tensor:
        """[T * K] Where each head of each token stands in a layer seen as [(N + 1) * K * S, D]; slot -1 in the sink."""
        _, num_heads, size, _ = self.keys[0].shape
        slot_T = torch.where(slot_T < 0, self.sink * size, slot_T.long())
        first_T = slot_T // size * (num_heads * size) + slot_T % size
        head_K = torch.arange(num_heads, device=slot_T.device, dtype=slot_T.dtype) * size
        return (first_T[:, None] + head_K).flatten()

    def write(self, layer: int, places: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> None:
        """Stores keys and values where `places` says."""
        for cache, x_TKD in ((self.keys[layer], k_TKD), (self.values[layer], v_TKD)):
            rows = x_TKD.reshape(-1, cache.shape[-1]).to(cache.dtype)
            cache.view(-1, cache.shape[-1]).index_copy_(0, places, rows)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies the contents of blocks (source, destination) in all layers."""
        self.copy_blocks_from(self, pairs)

    def copy_blocks_from(self, other: BlockMajorKV, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks (source in `other`, destination here) in all layers."""
        for begin in range(0, len(pairs), PAIRS):
            part = [*pairs[begin : begin + PAIRS], *[(0, self.sink)] * (begin + PAIRS - len(pairs))]
            sources, targets = (torch.tensor(column) for column in zip(*part, strict=True))
            sources, targets = sources.to(other.keys[0].device), targets.to(self.keys[0].device)
            for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
                mine.index_copy_(0, targets, theirs.index_select(0, sources).to(mine.device))
            self.flush()
