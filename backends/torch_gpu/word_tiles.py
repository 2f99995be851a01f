"""Sizes of programs that multiply by quantized weights."""

from __future__ import annotations

import triton

from mainspring.backends.triton.codes import PLANES
from mainspring.backends.triton.words import FEATURES, ROWS, WordTile, WordWeight

FEW_ROWS = 64
"""Up to so many, reading the weight is what takes time, and K is cut."""


def word_tile(rows: int, weight: WordWeight, processors: int) -> WordTile:
    """Four programs a processor, each with some blocks; of many rows, larger ones."""
    strips = triton.cdiv(weight.size, ROWS)
    blocks = triton.cdiv(weight.depth, PLANES[weight.kind] * FEATURES)
    padded = max(16, triton.next_power_of_2(rows))
    if rows <= FEW_ROWS:
        splits = max(1, min(blocks // 4, 4 * processors // strips))
        return WordTile(1, padded, splits, 4, 4, ahead=4)
    splits = max(1, min(blocks // 8, processors // (triton.cdiv(strips, 2) * triton.cdiv(rows, 128))))
    return WordTile(2, min(padded, 128), splits, 8, 3)
