"""Sizes of programs that multiply by quantized weights: as measured on an H100 at the shapes of an 8B model, and such
as fit in 64 KiB of shared memory, for machines that nobody has measured.
"""

from __future__ import annotations

import triton

from mainspring.backends.triton.codes import PLANES
from mainspring.backends.triton.scaled import ScaledTile, ScaledWeight
from mainspring.backends.triton.words import FEATURES, ROWS, WordTile, WordWeight

FEW_ROWS = 64
"""Up to so many, reading the weight is what takes time, and K is cut."""
FEWEST = 16
"""Rows of x that matrix units take."""


def word_tile(rows: int, weight: WordWeight, processors: int) -> WordTile:
    """Of few rows, as many programs as hide each other's waiting; of more, larger ones."""
    strips = triton.cdiv(weight.size, ROWS)
    blocks = triton.cdiv(weight.depth, PLANES[weight.kind] * FEATURES)
    padded = max(FEWEST, triton.next_power_of_2(rows))
    if rows <= FEWEST:
        return WordTile(1, padded, max(1, min(blocks // 4, round(6 * processors / strips))), 4, 4)
    if rows <= FEW_ROWS:
        wide = strips > 2 * processors
        return WordTile(2 if wide else 1, padded, max(1, min(blocks // 4, 2 * processors // strips)), 4, 4)
    tiles = triton.cdiv(strips, 2) * triton.cdiv(rows, 128)
    if tiles > 3 * processors:
        return WordTile(2, min(padded, 256), 1, 8, 3)
    # Two strips cut along K give wrong sums where codes are read by PTX: Triton 3.6 does not wait for them.
    row_tile = min(padded, 128)
    programs = strips * triton.cdiv(rows, row_tile)
    return WordTile(1, row_tile, max(1, min(blocks // 8, processors // programs)), 4, 4)


def small_word_tile(rows: int, weight: WordWeight, processors: int) -> WordTile:
    """As `word_tile`, on any machine."""
    strips = triton.cdiv(weight.size, ROWS)
    blocks = triton.cdiv(weight.depth, PLANES[weight.kind] * FEATURES)
    # More rows at once would not fit the registers of AMD's small chips beside the codes of a table.
    tile = min(FEW_ROWS // 2, max(FEWEST, triton.next_power_of_2(rows)))
    programs = strips * triton.cdiv(rows, tile)
    warps = 8 if tile > FEWEST or weight.high is not None else 4
    return WordTile(1, tile, max(1, min(blocks // 4, 2 * processors // programs)), warps, 2)


def scaled_tile(rows: int, weight: ScaledWeight, processors: int) -> ScaledTile:
    """The same for products of 8 bits on either side."""
    size, depth = weight.weight.shape
    padded = max(FEWEST, triton.next_power_of_2(rows))
    if rows <= FEW_ROWS:
        tiles, columns = triton.cdiv(size, 64), 256
        splits = max(1, min(depth // (2 * columns), 3 * processors // tiles))
        return ScaledTile(64, padded, columns, splits, 4, 4, ahead=512)
    tiles = triton.cdiv(size, 128) * triton.cdiv(rows, 128)
    return ScaledTile(128, min(padded, 128), 128, max(1, min(depth // 1024, processors // tiles)), 8, 4)


def small_scaled_tile(rows: int, weight: ScaledWeight, processors: int) -> ScaledTile:
    """As `scaled_tile`, on any machine."""
    size, depth = weight.weight.shape
    tile = min(FEW_ROWS, max(FEWEST, triton.next_power_of_2(rows)))
    programs = triton.cdiv(size, 64) * triton.cdiv(rows, tile)
    return ScaledTile(64, tile, 128, max(1, min(depth // 512, 2 * processors // programs)), 4, 2)
