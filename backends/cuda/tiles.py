"""Sizes of attention's programs on NVIDIA GPUs, as measured on an H100."""

from __future__ import annotations

import torch

from mainspring.backends.triton.attention import Tile
from mainspring.backends.triton.moe import Tile as ExpertsTile

LONG_PREFILL = 2048
"""Tokens of a step from which large tiles still leave every processor some."""


def prefill_tile(num_tokens: int, head_dim: int, group: int, dtype: torch.dtype) -> Tile | None:
    """Of a step with chunks. None: nothing better is known than what Triton's own machines take."""
    if dtype == torch.float32 or head_dim > 128 or group > 64:
        return None
    if num_tokens < LONG_PREFILL:
        return Tile(64, 64, 4, 2)
    # Two programs of eight warps fill a processor's registers, and one computes while the other waits for its products.
    return Tile(128, 64, 8, 2, {"maxnreg": 128})


def experts_tile(pairs: int, experts: int, dtype: torch.dtype) -> ExpertsTile | None:
    """Of products with experts, by the rows that each has on average."""
    if dtype == torch.float32:
        return None
    rows = pairs / experts
    if rows <= 16:
        return ExpertsTile(16, 64, 256, 4, 3)
    if rows <= 48:
        return ExpertsTile(64, 128, 64, 4, 4)
    return ExpertsTile(128, 128, 64, 8, 3)
