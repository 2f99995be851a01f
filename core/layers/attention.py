"""Attention over the paged cache: what it does between a model's projections.

Legend: T packed tokens of a step, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from mainspring.core.backend import AttentionPlan, KVCache
from mainspring.core.config import ModelConfig
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

    def __init__(self, config: ModelConfig, layer: int, attention: Callable[..., Tensor], shard: Shard = ALONE) -> None:
        super().__init__()
        held = part_of(config, shard.world)
        self.num_heads, self.num_kv_heads, self.head_dim = held.num_heads, held.num_kv_heads, config.head_dim
        self.layer = layer
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.window = config.window(layer)
        self.softcap = config.attention_softcap
        self._attention = attention

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, (H + 2K) * D], queries first, as q[T, H, D], k[T, K, D], v[T, K, D]: views, so not contiguous."""
        keys = self.num_heads + self.num_kv_heads
        heads = qkv.view(-1, keys + self.num_kv_heads, self.head_dim)
        return heads[:, : self.num_heads], heads[:, self.num_heads : keys], heads[:, keys:]

    def forward(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, step: AttentionStep) -> Tensor:
        """[T, H * D]."""
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
