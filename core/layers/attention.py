"""Attention over the paged cache: what it does between a model's projections.

Legend: T packed tokens of a step, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mainspring.core.backend import AttentionPlan, KVCache
from mainspring.core.config import ModelConfig
from mainspring.core.layers.norm import RMSNorm
from mainspring.core.layers.rope import Rotary
from mainspring.core.ops import Ops
from mainspring.core.ops.heads import HeadNorms, HeadsStep
from mainspring.core.parallel.shard import ALONE, Shard, part_of


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What every attention layer of one step shares: the cache, and what `Device.prepare_attention` returned."""

    kv: KVCache
    plan: AttentionPlan


class PagedAttention(nn.Module):
    """Causal attention of one layer, over this rank's heads: writes the step's keys and values, attends to all that the
    cache holds.
    """

    def __init__(
        self, config: ModelConfig, layer: int, ops: Ops, shard: Shard = ALONE, *, cached_from: int = 0
    ) -> None:
        """`cached_from`: the layer that the cache's first is."""
        super().__init__()
        held = part_of(config, shard.world)
        self.num_heads, self.num_kv_heads, self.head_dim = held.num_heads, held.num_kv_heads, config.head_dim
        self.layer = layer - cached_from
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.window = config.window(layer)
        self.softcap = config.attention_softcap
        self._attention, self._rotate_and_store = ops.attention, ops.rotate_and_store

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, (H + 2K) * D], queries first, as q[T, H, D], k[T, K, D], v[T, K, D]: views, so not contiguous."""
        keys = self.num_heads + self.num_kv_heads
        heads = qkv.view(-1, keys + self.num_kv_heads, self.head_dim)
        return heads[:, : self.num_heads], heads[:, self.num_heads : keys], heads[:, keys:]

    def rotated(
        self,
        qkv: Tensor,
        positions_T: Tensor,
        step: AttentionStep,
        rotary: Rotary,
        norms: tuple[RMSNorm, RMSNorm] | None = None,
    ) -> Tensor:
        """[T, (H + 2K) * D] -> [T, H * D], with q and k normed, where there are norms over their heads, and rotated."""
        q_THD, k_TKD, v_TKD = self.split(qkv)
        if self._rotate_and_store is not None:
            heads = HeadsStep(positions_T, rotary.table, step.kv, self.layer, step.plan)
            weights = None if norms is None else HeadNorms(norms[0].weight, norms[1].weight, norms[0].epsilon)
            return self.forward(self._rotate_and_store(q_THD, k_TKD, v_TKD, heads, weights), None, None, step)
        if norms is not None:
            q_THD, k_TKD = norms[0](q_THD), norms[1](k_TKD)
        q_THD, k_TKD = rotary(q_THD, k_TKD, positions_T)
        return self.forward(q_THD, k_TKD, v_TKD, step)

    def forward(self, q_THD: Tensor, k_TKD: Tensor | None, v_TKD: Tensor | None, step: AttentionStep) -> Tensor:
        """[T, H * D]. k and v are None where they are in the cache already."""
        out_THD = self._attention(
            q_THD,
            k_TKD,
            v_TKD,
            step.kv,
            self.layer,
            step.plan,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
        )
        return out_THD.flatten(1)
