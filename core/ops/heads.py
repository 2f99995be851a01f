"""What lies between a projection to queries, keys and values and attention, as one op: optional.

Legend: T packed tokens, H query heads, K kv heads, D head dim, R rotating dims, P positions of the rope table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mainspring.core.backend import AttentionPlan, KVCache
from mainspring.core.ops.attention import kv_write
from mainspring.core.ops.norm import rms_norm
from mainspring.core.ops.rope import rope


@dataclass(frozen=True, slots=True)
class HeadsStep:
    """Where a layer's heads go."""

    positions: Tensor
    """[T]"""
    cos_sin: Tensor
    """[P, R] float32, as `rope` takes it."""
    kv: KVCache
    layer: int
    plan: AttentionPlan
    """What `prepare_attention` returned."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights [D] of the RMS norms over each head of q and of k (Qwen3, Gemma 3)."""

    q: Tensor
    k: Tensor
    epsilon: float


def rotate_and_store(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, step: HeadsStep, norms: HeadNorms | None) -> Tensor:
    """q, normed where there are norms, and rotated: [T, H, D]. k, likewise, and v are in the cache then.

    This is the reference, on a cache of the reference layout and the plan that is the metadata itself.
    """
    if norms is not None:
        q_THD = rms_norm(q_THD, norms.q, norms.epsilon)
        k_TKD = rms_norm(k_TKD, norms.k, norms.epsilon)
    q_THD, k_TKD = rope(q_THD, k_TKD, step.positions, step.cos_sin)
    kv_write(k_TKD, v_TKD, step.kv, step.layer, step.plan.slot)
    return q_THD


RotateAndStore = Callable[[Tensor, Tensor, Tensor, HeadsStep, HeadNorms | None], Tensor]
