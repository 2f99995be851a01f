"""What is known of a device that kernels must be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mainspring.backends.triton.attention import Tile
from mainspring.backends.triton.launch import ALONE, Overlap
from mainspring.backends.triton.moe import Tile as ExpertsTile


@dataclass(frozen=True, slots=True)
class Tuning:
    """The default of each is what Triton's kernels take on a machine that nobody has measured."""

    processors: int
    """That run programs side by side: below two programs each, sequences are split."""
    prefill: Callable[[int, int, int, torch.dtype], Tile | None] = field(default=lambda *_: None)
    """(tokens, head dim, heads a kv head, dtype) -> tile of a step with chunks; None: Triton's own choice."""
    decode: Callable[[int, torch.dtype], Tile | None] = field(default=lambda *_: None)
    """(head dim, dtype) -> positions, warps and stages of a decode."""
    experts: Callable[[int, int, torch.dtype], ExpertsTile | None] = field(default=lambda *_: None)
    """(pairs of a token and an expert, experts, dtype) -> tile of their products."""
    overlap: Overlap = ALONE
