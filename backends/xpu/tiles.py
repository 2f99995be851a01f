"""Sizes of attention's programs on Intel GPUs: small, for spilled registers are what ocloc warns of.

Nothing here was timed: no Intel GPU has run it.
"""

from __future__ import annotations

import torch

from mainspring.backends.triton.attention import Tile


def prefill_tile(num_tokens: int, head_dim: int, group: int, dtype: torch.dtype) -> Tile:
    """Of a step with chunks. Rows are queries times the heads of a group, padded to a power of two."""
    least = 1 << max(0, group - 1).bit_length()
    if dtype == torch.float32:
        return Tile(max(32, least), 32, 8, 2)
    return Tile(max(64, least), 32, 8, 2)


def decode_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """Of a decode, whose rows are the heads of one group."""
    return Tile(16, 32, 4, 2)
