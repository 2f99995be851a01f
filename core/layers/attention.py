"""Attention layers over the paged cache.

Legend: T packed tokens of a step, H query heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.core.backend import AttentionPlan, KVCache


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What every attention layer of one step shares: the cache, and what `Device.prepare_attention` returned."""

    kv: KVCache
    plan: AttentionPlan
