"""Flat paged attention for decodes: one list of the blocks of all rows, and whose each of them is.

Queries are spread to blocks by a one-hot mapping, each block attends by itself, and what a row's blocks give is summed
by the mapping's transpose, weighted by what each block's largest score is against its row's: matrix products where a
gather or a scatter would be slow. Published for Gaudi by Habana as "flat PA"; the running softmax is Milakov &
Gimelshein's (2018). A step's list is as long as its bucket's table, rows times blocks a row.

Legend: R rows, B blocks a row, NB = R * B blocks of the list, H query heads, K kv heads, G query heads of a kv head,
D head dim, S tokens a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.backends.bucketed.attention import LOWEST, FusedAttention, Scores, capped, composed, fused_prefill
from mainspring.backends.bucketed.cache import BlockMajorKV
from mainspring.backends.bucketed.steps import StepPlan, plan_step
from mainspring.core.backend import AttentionMetadata

BlockSoftmax = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""Scores [NB, K, G, 1, S], bias [NB, 1, 1, 1, S] and group [NB] of blocks: weights, largest score and sum of each."""


@dataclass(frozen=True, slots=True)
class FlatBlocks:
    """The block list of a decode."""

    blocks: Tensor
    """[NB] Which block of the cache."""
    group: Tensor
    """[NB] int64: its row, R where it is nobody's."""
    mapping: Tensor
    """[NB, R] float32, one-hot; a block that is nobody's has no row."""
    held: Tensor
    """[NB, S] Whether a place holds a token of the row."""
    place: Tensor
    """[NB, S] int32: its position in the row's sequence."""


@dataclass(frozen=True, slots=True)
class GaudiPlan:
    """A step; `flat` for decodes."""

    step: StepPlan
    flat: FlatBlocks | None


def plan_gaudi(metadata: AttentionMetadata, kv: BlockMajorKV) -> GaudiPlan:
    """The plan of a step; the shapes of `metadata` decide which program it is."""
    step = plan_step(metadata, kv)
    return GaudiPlan(step, flatten(step, kv.keys[0].shape[2]) if step.decode else None)


def flatten(step: StepPlan, size: int) -> FlatBlocks:
    """The list of a decode's blocks, those past a row's end among them, as nobody's."""
    num_rows, width = step.block_table.shape
    device = step.block_table.device
    index_N = torch.arange(num_rows * width, dtype=torch.int32, device=device)
    row_N = index_N // width
    first_N = (index_N - row_N * width) * size
    length_N = step.kv_length.index_select(0, row_N)
    used_N = first_N < length_N
    group_N = torch.where(used_N, row_N, num_rows).long()
    rows_R = torch.arange(num_rows, dtype=torch.int64, device=device)
    place_NS = first_N[:, None] + torch.arange(size, dtype=torch.int32, device=device)
    mapping_NR = (group_N[:, None] == rows_R).float()
    return FlatBlocks(step.block_table.flatten(), group_N, mapping_NR, place_NS < length_N[:, None], place_NS)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaudiAttention:
    """The op `attention`: flat for decodes, the bridge's fused kernel or a composition for everything else."""

    fused: FusedAttention | None = None
    block_softmax: BlockSoftmax | None = None

    def __call__(
        self,
        q_THD: Tensor,
        k_TKD: Tensor | None,
        v_TKD: Tensor | None,
        kv: BlockMajorKV,
        layer: int,
        plan: GaudiPlan,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """As `core.ops.attention.attention`."""
        if k_TKD is not None and v_TKD is not None:
            kv.write(layer, plan.step.places, k_TKD, v_TKD)
        cache = kv.keys[layer], kv.values[layer]
        how = Scores(scale=scale, window=window, softcap=softcap, sinks=sinks)
        if plan.flat is not None:
            return flat_decode(q_THD, cache, plan.flat, how, self.block_softmax)
        if self.fused is not None and how.plain:
            return fused_prefill(self.fused, q_THD, cache, plan.step, how)
        return composed(q_THD, cache, plan.step, how)


def flat_decode(
    q_RHD: Tensor, cache: tuple[Tensor, Tensor], flat: FlatBlocks, how: Scores, block_softmax: BlockSoftmax | None
) -> Tensor:
    """Every row's one query over the blocks of its own."""
    num_rows, num_heads, head_dim = q_RHD.shape
    num_kv_heads = cache[0].shape[1]
    keys_NKSD, values_NKSD = (x.index_select(0, flat.blocks) for x in cache)
    values_NKSD = torch.where(flat.held[:, None, :, None], values_NKSD, 0.0)
    # Products in the cache's dtype, as the matrix unit takes them; sums over blocks in float32.
    q_RM = (q_RHD * how.scale).to(keys_NKSD.dtype).view(num_rows, -1)
    q_NKGD = (flat.mapping.to(q_RM.dtype) @ q_RM).view(-1, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores_NKGS = capped((q_NKGD @ keys_NKSD.transpose(-1, -2)).float(), how.softcap)
    seen_NS = _seen(flat, how.window)
    weights_NKGS, best_NH, total_NH = _softmax_in_blocks(scores_NKGS, seen_NS, flat.group, block_softmax)
    sums_NHD = (weights_NKGS.to(values_NKSD.dtype) @ values_NKSD).view(-1, num_heads, head_dim).float()
    return _joined(sums_NHD, best_NH, total_NH, flat, how.sinks).to(q_RHD.dtype)


def _seen(flat: FlatBlocks, window: int | None) -> Tensor:
    """[NB, S]: what the block's row sees of it."""
    if window is None:
        return flat.held
    # The query stands at the last place that its row holds.
    last_N = torch.where(flat.held, flat.place, -1).amax(dim=-1)
    num_rows = flat.mapping.shape[1]
    last_R1 = torch.full((num_rows + 1,), -1, dtype=torch.int32, device=last_N.device)
    query_N = last_R1.index_reduce(0, flat.group, last_N, "amax").index_select(0, flat.group)
    return flat.held & (flat.place > query_N[:, None] - window)


def _softmax_in_blocks(
    scores_NKGS: Tensor, seen_NS: Tensor, group_N: Tensor, block_softmax: BlockSoftmax | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of each block against its own largest score, that score and the weights' sum, [NB, H] each."""
    seen_N11S = seen_NS[:, None, None, :]
    # What nobody wrote may be no number, and would stay one under a bias.
    scores_NKGS = torch.where(seen_N11S, scores_NKGS, LOWEST)
    if block_softmax is not None:
        bias = torch.where(seen_N11S, 0.0, LOWEST)[:, :, :, None, :]
        weights, best, total = block_softmax(scores_NKGS[:, :, :, None, :], bias, group_N)
        weights = weights.view(scores_NKGS.shape)
    else:
        best = scores_NKGS.amax(dim=-1, keepdim=True)
        weights = (scores_NKGS - best).exp()
        total = weights.sum(dim=-1, keepdim=True)
    # A block of which nothing is seen has the lowest score as its best, which its row's best makes nothing of.
    return weights, best.reshape(len(seen_NS), -1), total.reshape(len(seen_NS), -1)


def _joined(sums_NHD: Tensor, best_NH: Tensor, total_NH: Tensor, flat: FlatBlocks, sinks_H: Tensor | None) -> Tensor:
    """[R, H, D]: what the blocks of a row give together; zeros for rows without any."""
    num_rows, (_, num_heads, head_dim) = flat.mapping.shape[1], sums_NHD.shape
    lowest_GH = torch.full((num_rows + 1, num_heads), LOWEST, device=sums_NHD.device)
    if sinks_H is not None:
        lowest_GH = torch.maximum(lowest_GH, sinks_H.float())
    best_GH = lowest_GH.index_reduce(0, flat.group, best_NH, "amax")
    share_NH = (best_NH - best_GH.index_select(0, flat.group)).exp()
    mapping_RN = flat.mapping.t()
    total_RH = mapping_RN @ (total_NH * share_NH)
    if sinks_H is not None:
        total_RH = total_RH + (sinks_H.float() - best_GH[:num_rows]).exp()
    sums_RHD = (mapping_RN @ (sums_NHD * share_NH[:, :, None]).view(len(share_NH), -1)).view(-1, num_heads, head_dim)
    return sums_RHD / torch.where(total_RH == 0, 1.0, total_RH)[:, :, None]
