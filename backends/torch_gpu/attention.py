"""Attention and the cache of the contract, on the kernels of `backends/triton`: which rows go to which kernel.

Rows with one token are a decode, whose sequences may be split among processors; all others are ragged. A captured step
launches what it launched, so which of its rows are which is found on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.attention import Cache, Fresh, Rows, Scoring, decode, num_splits, ragged
from mainspring.backends.triton.cache import kv_write as write
from mainspring.backends.triton.heads import Places
from mainspring.backends.triton.heads import rotate_and_store as fused
from mainspring.backends.triton.launch import ALONE, Overlap
from mainspring.core.backend import AttentionMetadata
from mainspring.core.ops.attention import PagedKV
from mainspring.core.ops.heads import HeadNorms, HeadsStep

FEW_ROWS = 16
"""Up to so many rows of a bucket, decodes among chunks are not worth launches of their own."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What all layers of a step share."""

    rows: Rows
    slot: Tensor
    splits: int
    """Parts that each row with one token is cut into."""
    decodes: bool
    """Whether leading rows with one token each have their own kernel."""
    chunks: bool
    """Whether there may be other rows."""


def plan_step(metadata: AttentionMetadata, num_kv_heads: int, processors: int) -> StepPlan:
    """From host integers alone: nothing is launched and nothing waits."""
    whole = metadata.max_query <= 1
    num_rows = metadata.kv_length.shape[0]
    return StepPlan(
        rows=Rows(metadata.query_start, metadata.kv_length, metadata.block_table),
        slot=metadata.slot,
        splits=num_splits(num_rows, num_kv_heads, processors),
        decodes=whole or metadata.num_decodes > 0 or num_rows > FEW_ROWS,
        chunks=not whole,
    )


def kv_write(
    k_TKD: Tensor, v_TKD: Tensor, kv: PagedKV, layer: int, slot_T: Tensor, *, overlap: Overlap = ALONE
) -> None:
    """As `core.ops.attention.kv_write`."""
    write(k_TKD, v_TKD, kv.keys[layer], kv.values[layer], slot_T, overlap=overlap)


def rotate_and_store(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    step: HeadsStep,
    norms: HeadNorms | None,
    *,
    overlap: Overlap = ALONE,
) -> Tensor:
    """As `core.ops.heads.rotate_and_store`, with the plan of `plan_step`."""
    places = Places(step.positions, step.plan.slot, step.cos_sin)
    cache = step.kv.keys[step.layer], step.kv.values[step.layer]
    weights = None if norms is None else (norms.q, norms.k, norms.epsilon)
    return fused((q_THD, k_TKD, v_TKD), places, cache, weights, overlap=overlap)


def attention(
    q_THD: Tensor,
    k_TKD: Tensor | None,
    v_TKD: Tensor | None,
    kv: PagedKV,
    layer: int,
    plan: StepPlan,
    *,
    tuning: Tuning,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    overlap: Overlap = ALONE,
) -> Tensor:
    """As `core.ops.attention.attention`, with the plan of `plan_step`."""
    fresh = None
    if k_TKD is not None and v_TKD is not None:
        if not plan.chunks:
            k_TKD, v_TKD = (x if x.stride(2) == 1 else x.contiguous() for x in (k_TKD, v_TKD))
            fresh = Fresh(k_TKD, v_TKD, plan.slot)
        else:
            kv_write(k_TKD, v_TKD, kv, layer, plan.slot, overlap=overlap)
    cache = Cache(kv.keys[layer], kv.values[layer])
    scoring = Scoring(scale, window, softcap, sinks)
    q_THD = q_THD if q_THD.stride(2) == 1 else q_THD.contiguous()
    count = min(len(plan.rows.kv_length), len(q_THD))
    # Padded tokens beside chunks belong to no row, and nobody else would write their zeros.
    make = torch.zeros if plan.chunks or count < len(q_THD) else torch.empty
    out_THD = make(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    if plan.decodes:
        decode(
            q_THD[:count], cache, plan.rows, scoring, out_THD[:count],
            splits=plan.splits, mixed=plan.chunks, fresh=fresh, overlap=overlap,
            tile=tuning.decode(q_THD.shape[2], q_THD.dtype),
        )  # fmt: skip
    if plan.chunks:
        tile = tuning.prefill(len(q_THD), q_THD.shape[2], q_THD.shape[1] // cache.keys.shape[2], q_THD.dtype)
        ragged(q_THD, cache, plan.rows, scoring, out_THD, mixed=plan.decodes, tile=tile)
    return out_THD
