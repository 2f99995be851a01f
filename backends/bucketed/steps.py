"""What all layers of a step share: where its tokens stand, in tensors of the bucket's shape.

Legend: T packed tokens, R rows, B blocks a row, K kv heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mainspring.backends.bucketed.cache import BlockMajorKV
from mainspring.core.backend import AttentionMetadata


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Token t of a decode is row t's, and of a prefill rows[t]'s."""

    decode: bool
    block_table: Tensor
    """[R, B] int32"""
    kv_length: Tensor
    """[R] int32: tokens of each row after the step, 0 for padding."""
    rows: Tensor
    """[T] int32"""
    positions: Tensor
    """[T] int32; -1 for padding, which then sees nothing."""
    places: Tensor
    """[T * K] Where keys and values go, as `BlockMajorKV.write` takes it."""


def plan_step(metadata: AttentionMetadata, kv: BlockMajorKV) -> StepPlan:
    """The plan of a step; the shapes of `metadata` decide which program it is."""
    length_R, start_R1 = metadata.kv_length, metadata.query_start
    num_rows, num_tokens = len(length_R), len(metadata.slot)
    decode = metadata.max_query <= 1 and num_tokens == num_rows
    if decode:
        row_T = torch.arange(num_rows, dtype=torch.int32, device=length_R.device)
        position_T = length_R - 1
    else:
        token_T = torch.arange(num_tokens, dtype=torch.int32, device=length_R.device)
        past_T = (token_T[:, None] >= start_R1[1:]).sum(dim=1, dtype=torch.int32)
        row_T = past_T.clamp(max=num_rows - 1)
        last_T = (length_R - start_R1[1:])[row_T]
        position_T = torch.where(past_T < num_rows, token_T + last_T, -1)
    return StepPlan(decode, metadata.block_table, length_R, row_T, position_T, kv.places(metadata.slot))
