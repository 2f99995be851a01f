"""Paged attention composed of ops that every compiler has, in static shapes and bounded memory; seams for kernels.

Blocks are gathered by table some at a time, and a running softmax (Milakov & Gimelshein 2018; Rabe & Staats 2021) joins
what they give, in float32. A decode's rows each meet the blocks of their own; a prefill's tokens meet those of all its
few rows, masked. What no row owns may hold anything: its values count as zero.

Legend: T packed tokens, R rows, H query heads, K kv heads, G query heads of a kv head, D head dim, B blocks a row,
b blocks of a part, S tokens a block, L = b * S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.backends.bucketed.cache import BlockMajorKV
from mainspring.backends.bucketed.steps import StepPlan

PART_BYTES = 64 << 20
"""Of the largest float32 tensor of a part."""
MAX_PARTS = 16
"""Parts of a layer: each is unrolled into the program, so a step too large for so few has larger ones."""
LANES = 128
"""Width of a vector register. The compiler would copy a cache of narrower heads into a padded layout at each call."""
LOWEST = -1e30
"""A score that no softmax sees; finite, because the difference of infinities is none."""

PagedDecode = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, float], Tensor]
"""The kernel: q[R, H, D], keys and values [N, K, S, D], blocks[R, B], length[R], scale, softcap (0: none)."""


def kv_write(k_TKD: Tensor, v_TKD: Tensor, kv: BlockMajorKV, layer: int, slot_T: Tensor) -> None:
    """Stores each token's key and value at its slot; slot -1 stores nothing."""
    kv.write(layer, kv.places(slot_T), k_TKD, v_TKD)


FusedAttention = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
"""A kernel for prefills: q[1, H, T, D], keys and values [1, K, L, D], mask[1, 1, T, L] (added to the scores), scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How queries and keys become weights."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    """[H]"""

    @property
    def plain(self) -> bool:
        """Whether a scale is all."""
        return self.softcap is None and self.sinks is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The op `attention`. Kernels take what they can; the rest is composed."""

    kernel: PagedDecode | None = None
    multiple: int = LANES
    """Head dims that the kernel takes are multiples of it."""
    fused: FusedAttention | None = None

    def __call__(
        self,
        q_THD: Tensor,
        k_TKD: Tensor | None,
        v_TKD: Tensor | None,
        kv: BlockMajorKV,
        layer: int,
        plan: StepPlan,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """As `core.ops.attention.attention`."""
        if k_TKD is not None and v_TKD is not None:
            kv.write(layer, plan.places, k_TKD, v_TKD)
        keys, values = kv.keys[layer], kv.values[layer]
        fitting = plan.decode and window is None and sinks is None and q_THD.shape[-1] % self.multiple == 0
        if self.kernel is not None and fitting:
            return self.kernel(q_THD, keys, values, plan.block_table, plan.kv_length, scale, softcap or 0.0)
        scores = Scores(scale=scale, window=window, softcap=softcap, sinks=sinks)
        if self.fused is not None and not plan.decode and scores.plain:
            return fused_prefill(self.fused, q_THD, (keys, values), plan, scores)
        return composed(q_THD, (keys, values), plan, scores)


def composed(q_THD: Tensor, cache: tuple[Tensor, Tensor], plan: StepPlan, how: Scores) -> Tensor:
    """Of one layer's keys and values, by matrix products and a running softmax."""
    keys, values = cache
    parts = _decode_parts if plan.decode else _prefill_parts
    q_MGD = _grouped(q_THD, keys.shape[1], plan.decode) * how.scale
    softmax = RunningSoftmax(q_MGD)
    for keys_MLD, values_MLD, seen_ML in parts(keys, values, plan, how.window, q_THD.shape[1]):
        scores = q_MGD @ keys_MLD.transpose(-1, -2)
        softmax.add(capped(scores, how.softcap), seen_ML, values_MLD)
    sinks_KG = None if how.sinks is None else how.sinks.float().view(keys.shape[1], -1)
    return _ungrouped(softmax.result(_like_scores(sinks_KG, q_THD, plan.decode)), q_THD, plan.decode)


def fused_prefill(
    kernel: FusedAttention, q_THD: Tensor, cache: tuple[Tensor, Tensor], plan: StepPlan, how: Scores
) -> Tensor:
    """Of one layer's keys and values, all blocks of all rows in one call of a kernel that knows no pages."""
    _, num_kv_heads, size, head_dim = cache[0].shape
    held_L1, seen_TL = seen_by_queries(plan, size, how.window, 0, plan.block_table.numel())

    def gather(x: Tensor) -> Tensor:
        found = x.index_select(0, plan.block_table.flatten()).transpose(0, 1).reshape(1, num_kv_heads, -1, head_dim)
        return torch.where(held_L1, found, 0.0)

    mask_TL = torch.where(seen_TL, 0.0, LOWEST).to(q_THD.dtype)
    keys, values = (gather(x).to(q_THD.dtype) for x in cache)
    out = kernel(q_THD.transpose(0, 1)[None], keys, values, mask_TL[None, None], how.scale)
    # Padding sees nothing, and what a softmax of nothing gives is the kernel's own affair.
    return torch.where((plan.positions >= 0)[:, None, None], out[0].transpose(0, 1), 0.0)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores drawn towards zero, by Gemma 2's rule."""
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def seen_by_queries(plan: StepPlan, size: int, window: int | None, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Of `count` blocks of a prefill's flattened block table: what belongs to a row [L, 1], what queries see [T, L]."""
    slot_L = first * size + torch.arange(count * size, dtype=torch.int32, device=plan.kv_length.device)
    width = plan.block_table.shape[1] * size
    row_L, place_L = slot_L // width, slot_L % width
    held_L1 = (place_L < plan.kv_length[row_L])[:, None]
    seen_TL = (plan.rows[:, None] == row_L) & (place_L <= plan.positions[:, None])
    if window is not None:
        seen_TL = seen_TL & (place_L > plan.positions[:, None] - window)
    return held_L1, seen_TL


class RunningSoftmax:
    """Softmax-weighted sums of values that come in parts."""

    def __init__(self, q: Tensor) -> None:
        shape = (*q.shape[:-1], 1)
        self._best = torch.full(shape, LOWEST, device=q.device)
        self._total = torch.zeros(shape, device=q.device)
        self._sum = torch.zeros_like(q)

    def add(self, scores: Tensor, seen: Tensor, values: Tensor) -> None:
        """One part; `seen` says which scores count."""
        scores = torch.where(seen, scores, LOWEST)
        best = torch.maximum(self._best, scores.amax(dim=-1, keepdim=True))
        weights = torch.where(seen, (scores - best).exp(), 0.0)
        kept = (self._best - best).exp()
        self._total = self._total * kept + weights.sum(dim=-1, keepdim=True)
        self._sum = self._sum * kept + weights @ values
        self._best = best

    def result(self, sinks: Tensor | None) -> Tensor:
        """The sums; zeros for queries that saw nothing. `sinks` are scores without a value."""
        total = self._total
        if sinks is not None:
            best = torch.maximum(self._best, sinks)
            kept = (self._best - best).exp()
            return self._sum * kept / (total * kept + (sinks - best).exp())
        return self._sum / torch.where(total == 0, 1.0, total)


def _grouped(q_THD: Tensor, num_kv_heads: int, decode: bool) -> Tensor:
    """[R, K, G, D] for a decode; [K, T * G, D] for a prefill: the batches of its matrix products."""
    num_tokens, _, head_dim = q_THD.shape
    q = q_THD.float().view(num_tokens, num_kv_heads, -1, head_dim)
    return q if decode else q.transpose(0, 1).reshape(num_kv_heads, -1, head_dim)


def _ungrouped(out: Tensor, q_THD: Tensor, decode: bool) -> Tensor:
    if not decode:
        num_tokens, _, head_dim = q_THD.shape
        out = out.view(out.shape[0], num_tokens, -1, head_dim).transpose(0, 1)
    return out.reshape(q_THD.shape).to(q_THD.dtype)


def _like_scores(sinks_KG: Tensor | None, q_THD: Tensor, decode: bool) -> Tensor | None:
    if sinks_KG is None:
        return None
    return sinks_KG[None, :, :, None] if decode else sinks_KG.repeat(1, len(q_THD))[:, :, None]


Part = tuple[Tensor, Tensor, Tensor]


def _decode_parts(keys: Tensor, values: Tensor, plan: StepPlan, window: int | None, num_heads: int) -> Iterator[Part]:
    """Keys and values [R, K, L, D] of b blocks of each row, and what the row sees of them [R, 1, 1, L]."""
    num_rows, num_blocks = plan.block_table.shape
    _, num_kv_heads, size, head_dim = keys.shape
    width = _width(num_blocks, num_rows * num_kv_heads * size * head_dim)
    for first in range(0, num_blocks, width):
        blocks_Rb = plan.block_table[:, first : first + width]
        place_L = first * size + torch.arange(blocks_Rb.shape[1] * size, dtype=torch.int32, device=keys.device)
        seen_RL = place_L < plan.kv_length[:, None]
        held_R1L1 = seen_RL[:, None, :, None]
        if window is not None:
            seen_RL = seen_RL & (place_L > plan.positions[:, None] - window)

        def gather(cache: Tensor, blocks_Rb: Tensor = blocks_Rb) -> Tensor:
            found = cache.index_select(0, blocks_Rb.flatten()).float()
            found = found.view(num_rows, -1, num_kv_heads, size, head_dim).transpose(1, 2)
            return found.reshape(num_rows, num_kv_heads, -1, head_dim)

        yield gather(keys), torch.where(held_R1L1, gather(values), 0.0), seen_RL[:, None, None, :]


def _prefill_parts(keys: Tensor, values: Tensor, plan: StepPlan, window: int | None, num_heads: int) -> Iterator[Part]:
    """Keys and values [K, L, D] of b blocks of whichever row, and what each query sees of them [1, T * G, L]."""
    num_rows, num_blocks = plan.block_table.shape
    _, num_kv_heads, size, head_dim = keys.shape
    width = _width(num_rows * num_blocks, size * max(num_kv_heads * head_dim, num_heads * len(plan.rows)))
    blocks = plan.block_table.flatten()
    for first in range(0, len(blocks), width):
        blocks_b = blocks[first : first + width]
        held_L1, seen_TL = seen_by_queries(plan, size, window, first, len(blocks_b))
        seen_1ML = seen_TL[:, None].expand(-1, num_heads // num_kv_heads, -1).reshape(1, -1, seen_TL.shape[1])

        def gather(cache: Tensor, blocks_b: Tensor = blocks_b) -> Tensor:
            found = cache.index_select(0, blocks_b).float()
            return found.transpose(0, 1).reshape(num_kv_heads, -1, head_dim)

        yield gather(keys), torch.where(held_L1, gather(values), 0.0), seen_1ML


def _width(num_blocks: int, floats: int) -> int:
    """Blocks of a part, where each adds so many floats to its largest tensor."""
    return max(1, PART_BYTES // (4 * floats), -(-num_blocks // MAX_PARTS))
