"""Paged attention: launches of `attention_kernels` over a cache [num_blocks, S, K, D], and the tile sizes they take.

Legend: T packed tokens, R rows, H query heads, K kv heads, D head dim, G query heads a kv head, S tokens a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import triton
from torch import Tensor

from mainspring.backends.triton.attention_kernels import decode_kernel, merge_kernel, ragged_kernel
from mainspring.backends.triton.launch import ALONE, Overlap

MAX_SPLITS = 32
PROGRAMS_PER_PROCESSOR = 2
"""Programs that keep a processor's memory pipes full: below that, sequences are split among several."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of one layer, [num_blocks, S, K, D] each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Fresh:
    """Keys and values of the step's own tokens, [T, K, D] each, with the last dimension dense, and where they go."""

    keys: Tensor
    values: Tensor
    slot: Tensor
    """[T] int64; -1 writes nothing."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a step stand."""

    query_start: Tensor
    """[R+1] int32"""
    kv_length: Tensor
    """[R] int32"""
    block_table: Tensor
    """[R, B] int32"""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How products of queries and keys become weights."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    """[H]"""

    def arguments(self) -> tuple[Tensor | None, float, float, int]:
        """sinks, scale, softcap, window, as kernels take them."""
        return self.sinks, self.scale, self.softcap or 1.0, self.window or 0

    def flags(self) -> dict[str, bool]:
        """What is compiled in."""
        return {
            "SOFTCAP": self.softcap is not None,
            "WINDOW": self.window is not None,
            "SINKS": self.sinks is not None,
        }


@dataclass(frozen=True, slots=True)
class Tile:
    """Sizes of a ragged step's programs."""

    queries: int
    """Rows: queries times the heads of a group, padded to a power of two."""
    positions: int
    """Visited at once."""
    warps: int
    stages: int
    """Of the pipeline that loads keys and values."""
    options: Mapping[str, object] = field(default_factory=dict)
    """More that the machine's compiler takes."""


def num_splits(num_rows: int, num_kv_heads: int, processors: int) -> int:
    """Parts that each sequence of a decode is cut into: a power of two, fixed by the number of rows alone."""
    wanted = PROGRAMS_PER_PROCESSOR * processors // max(1, num_rows * num_kv_heads)
    return min(MAX_SPLITS, 1 << max(0, wanted.bit_length() - 1))


def decode(
    q_THD: Tensor,
    cache: Cache,
    rows: Rows,
    scoring: Scoring,
    out_THD: Tensor,
    *,
    splits: int,
    mixed: bool = False,
    fresh: Fresh | None = None,
    overlap: Overlap = ALONE,
    tile: Tile | None = None,
) -> None:
    """Attention of rows with one token each: token r belongs to row r. Rows of kv_length 0 get zeros.

    In a `mixed` step that holds of leading rows, found on the device; tokens of others get zeros, too.
    With `fresh` the tokens' keys and values are written to the cache on the way; else they are there already. `tile`
    (whose queries are always a group's) is for backends that know a better one than `decode_tile`.
    """
    num_rows, num_heads, head_dim = q_THD.shape
    if not num_rows:
        return
    num_kv_heads, block_size = cache.keys.shape[2], cache.keys.shape[1]
    dims = _dims(q_THD, cache)
    # A matrix unit takes no fewer than 16 rows.
    padded_group = max(16, triton.next_power_of_2(num_heads // num_kv_heads))
    sizes = (num_rows, num_heads, splits)
    partial = log_mass = out_THD
    if splits > 1:
        partial = torch.empty((*sizes, head_dim), dtype=torch.float32, device=q_THD.device)
        log_mass = torch.empty(sizes, dtype=torch.float32, device=q_THD.device)
    tile = tile or decode_tile(dims["D_PAD"], q_THD.dtype)
    sinks, scale, softcap, window = scoring.arguments()
    k_TKD, v_TKD, slot_T = (None, None, None) if fresh is None else (fresh.keys, fresh.values, fresh.slot)
    strides = [0] * 4 if fresh is None else [*fresh.keys.stride()[:2], *fresh.values.stride()[:2]]
    decode_kernel[(num_kv_heads, splits, num_rows)](
        out_THD, partial, log_mass, q_THD, k_TKD, v_TKD, slot_T, cache.keys, cache.values,
        rows.block_table, rows.query_start, rows.kv_length, sinks, scale, softcap, window,
        *q_THD.stride()[:2], *strides, rows.block_table.stride(0), *cache.keys.stride()[1:3],
        **dims, **scoring.flags(), G_PAD=padded_group, S=block_size, N=tile.positions, SPLITS=splits,
        FRESH=fresh is not None, MIXED=mixed, EARLY=overlap.step_inputs_early, BEGIN=overlap.begin,
        num_warps=tile.warps, num_stages=tile.stages, **tile.options, **overlap.options,
    )  # fmt: skip
    if splits > 1:
        merge_kernel[(num_rows * num_heads,)](
            out_THD, partial, log_mass, D=head_dim, D_PAD=dims["D_PAD"], SPLITS=splits, BEGIN=overlap.begin,
            num_warps=2, **overlap.options,
        )  # fmt: skip


def ragged(
    q_THD: Tensor,
    cache: Cache,
    rows: Rows,
    scoring: Scoring,
    out_THD: Tensor,
    *,
    mixed: bool = False,
    tile: Tile | None = None,
) -> None:
    """Attention of rows of any number of tokens. Tokens of no row are left as they are, and in a `mixed` step those
    that `decode` has answered. `tile` is for backends that know a better one than `ragged_tile`.
    """
    num_rows = rows.kv_length.shape[0]
    if not num_rows or not q_THD.shape[0]:
        return
    dims = _dims(q_THD, cache)
    padded_group = triton.next_power_of_2(q_THD.shape[1] // cache.keys.shape[2])
    tile = tile or ragged_tile(dims["D_PAD"], padded_group, q_THD.dtype)
    # Every row may leave one tile unfilled.
    num_tiles = q_THD.shape[0] // (tile.queries // padded_group) + num_rows
    sinks, scale, softcap, window = scoring.arguments()
    ragged_kernel[(cache.keys.shape[2], num_tiles)](
        out_THD, q_THD, cache.keys, cache.values, rows.block_table, rows.query_start, rows.kv_length,
        sinks, scale, softcap, window, num_rows, num_tiles,
        *q_THD.stride()[:2], rows.block_table.stride(0), *cache.keys.stride()[1:3],
        **dims, **scoring.flags(), G_PAD=padded_group, S=cache.keys.shape[1], M=tile.queries, N=tile.positions,
        MIXED=mixed, num_warps=tile.warps, num_stages=tile.stages, **tile.options,
    )  # fmt: skip


def _dims(q_THD: Tensor, cache: Cache) -> dict[str, int | str]:
    _, num_heads, head_dim = q_THD.shape
    return {
        "H": num_heads,
        "G": num_heads // cache.keys.shape[2],
        "D": head_dim,
        "D_PAD": max(16, triton.next_power_of_2(head_dim)),
        # Of float32, which is asked for where results are compared. Most machines refuse to be asked for tf32.
        "PRECISION": "ieee",
    }


def decode_tile(padded_dim: int, dtype: torch.dtype) -> Tile:
    """Of a decode, where nothing is known of the machine."""
    if dtype == torch.float32:
        return Tile(16, 32, 4, 2)
    return Tile(16, 64, 4, 3) if padded_dim <= 128 else Tile(16, 32, 4, 2)


def ragged_tile(padded_dim: int, padded_group: int, dtype: torch.dtype) -> Tile:
    """Of a step with chunks, where nothing is known of the machine."""
    if dtype == torch.float32:
        return Tile(max(32, padded_group), 32, 4, 2)
    if padded_dim > 128:
        return Tile(max(64, padded_group), 32, 4, 2)
    return Tile(max(128, padded_group), 64, 4, 2)
