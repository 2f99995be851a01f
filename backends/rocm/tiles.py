"""Sizes of attention's programs on AMD GPUs: those whose compiled code keeps all in registers (docs/verified/rocm.md).

Nothing here was timed: no AMD GPU has run it.
"""

from __future__ import annotations

import torch

from mainspring.backends.rocm.chips import Chip
from mainspring.backends.triton.attention import Tile


def prefill_tile(chip: Chip, head_dim: int, group: int, dtype: torch.dtype) -> Tile:
    """Of a step with chunks. Rows are queries times the heads of a group, padded to a power of two."""
    least = 1 << max(0, group - 1).bit_length()
    if dtype == torch.float32:
        return Tile(max(16 if chip.small else 32, least), 16 if chip.small else 32, 4, 1)
    if chip.small:
        return Tile(max(64 if head_dim <= 128 else 16, least), 16, 4, 1)
    if head_dim > 128:
        return Tile(max(64, least), 32, 8, 1)
    return Tile(max(128, least), 64, 4, 1)


def decode_tile(chip: Chip, head_dim: int, dtype: torch.dtype) -> Tile:
    """Of a decode, whose rows are the heads of one group."""
    if dtype == torch.float32 or head_dim > 128:
        return Tile(16, 16 if chip.small else 32, 4, 1)
    return Tile(16, 32 if chip.small else 64, 4, 1 if chip.small else 2)
