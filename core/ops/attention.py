"""Paged attention, its cache, and the reference for both: one call for prefill, chunk, decode and any mix of them.

The reference gathers each row's blocks and attends in float32, one row at a time: clear and exact, not fast. A backend
that keeps the reference layout (`PagedKV`) inherits it; one with its own layout overrides `attention` and `kv_write`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata, KVSpec


@dataclass(frozen=True, slots=True)
class PagedKV:
    """The reference cache layout: for each layer, keys and values as [num_blocks, S, K, D]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def allocate(cls, spec: KVSpec, num_blocks: int, device: str) -> PagedKV:
        """A cache of zeros. Raises torch's own error when the memory is not there."""
        shape = (num_blocks, spec.block_size, spec.heads, spec.head_dim)
        dtype = getattr(torch, spec.dtype)

        def layer() -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(tuple(layer() for _ in range(spec.layers)), tuple(layer() for _ in range(spec.layers)))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies the contents of blocks (source, destination) in all layers."""
        self.copy_blocks_from(self, pairs)

    def copy_blocks_from(self, other: PagedKV, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies blocks (source in `other`, destination here) in all layers."""
        index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            source, destination = index[:, 0].to(theirs.device), index[:, 1].to(mine.device)
            mine[destination] = theirs[source].to(mine.device)


def kv_write(k_TKD: Tensor, v_TKD: Tensor, kv: PagedKV, layer: int, slot_T: Tensor) -> None:
    """Stores each token's key and value at its slot; slot -1 stores nothing."""
    for cache, x in ((kv.keys[layer], k_TKD), (kv.values[layer], v_TKD)):
        kept = slot_T >= 0
        cache.view(-1, *cache.shape[2:])[slot_T[kept]] = x[kept].to(cache.dtype)


def attention(
    q_THD: Tensor,
    k_TKD: Tensor | None,
    v_TKD: Tensor | None,
    kv: PagedKV,
    layer: int,
    plan: AttentionMetadata,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Writes the step's keys and values, then attends causally to all that the cache holds: [T, H, D].

    k and v are None when a fused op has already written them. `plan` is what `prepare_attention` returned: here the
    metadata itself. Query i of a row that has kv_length n and m queries stands at position n - m + i and sees positions
    up to its own; with a `window` w only the last w of those. `softcap` c replaces scores s by c * tanh(s / c) before
    the mask. `sinks[H]` adds to each softmax one more score that has no value. Padded tokens return zeros.
    """
    if k_TKD is not None and v_TKD is not None:
        kv_write(k_TKD, v_TKD, kv, layer, plan.slot)
    out_THD = torch.zeros_like(q_THD)
    starts, lengths = plan.query_start.tolist(), plan.kv_length.tolist()
    for row, length in enumerate(lengths):
        span = slice(starts[row], starts[row + 1])
        if length == 0 or span.start == span.stop:
            continue
        keys, values = (_gather(cache[layer], plan.block_table[row], length) for cache in (kv.keys, kv.values))
        mask = _visible(span.stop - span.start, length, window, q_THD.device)
        out_THD[span] = _attend(q_THD[span].float(), keys, values, mask, scale, softcap, sinks).to(q_THD.dtype)
    return out_THD


def _gather(cache: Tensor, blocks_B: Tensor, length: int) -> Tensor:
    """The first `length` entries of a sequence, [length, K, D] float32."""
    block_size = cache.shape[1]
    used = blocks_B[: (length + block_size - 1) // block_size].long()
    return cache[used].flatten(0, 1)[:length].float()


def _visible(num_queries: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, length] bool: which positions each query may see."""
    query = torch.arange(length - num_queries, length, device=device)[:, None]
    key = torch.arange(length, device=device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : k.shape[0]]
    return torch.einsum("hqk,khd->qhd", weights, v)
