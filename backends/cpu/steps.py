"""What one step's attention needs and all its layers share: where to write, which blocks to gather, what to hide.

Computed once a step from the metadata, lazily where it depends on a layer's window. A step's rows are of two kinds:
those with one query are computed together, as a batch of (row, kv head) *units* that have the group's query heads as
their queries; those with more, prefill chunks, one by one in tiles of queries.

Legend: R rows, T packed tokens, K kv heads, S tokens a block, U units (row, kv head), W blocks gathered a unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from mainspring.backends.cpu.cache import HeadMajorKV
from mainspring.core.backend import AttentionMetadata

TILE = 256
"""Queries of a prefill chunk that are attended at a time; bounds the mask and the scores."""

WASTE_TOKENS = 256
"""Padding that a group of decoding rows may hold in all, or an eighth of it where that is more: about what another
group would cost in calls."""


@dataclass(frozen=True, slots=True)
class Part:
    """Units that are gathered and multiplied together."""

    units: slice
    blocks: Tensor
    """[U * W] Index into heads times blocks."""
    hidden: Tensor | None
    """[U, tokens past `shown`] bool: what the units may not see; None when they see all."""
    shown: int
    """Leading tokens that every unit sees."""
    room: tuple[Tensor, Tensor]
    """Where keys and values are gathered, [U * W, S * D] each."""
    gathered: tuple[Tensor, Tensor]
    """The same memory as matrices, [U, W * S, D]."""


@dataclass(frozen=True, slots=True)
class Group:
    """Decoding rows of similar length."""

    tokens: slice | Tensor
    """Their places among the step's tokens."""
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """Some queries of a prefill chunk, and the range of gathered tokens they may see some of."""

    tokens: slice
    seen: slice
    causal: bool
    """Whether the range is the queries' own tokens, each of which sees all before it: no mask is needed."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A row that computes more than one token."""

    blocks: Tensor
    """[K * W] Index into heads times blocks."""
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The step as layers with one window see it."""

    groups: tuple[Group, ...]
    chunks: tuple[Chunk, ...]
    visible: Tensor
    """[TILE, width] bool, for the longest tile: shorter ones take its lower right corner."""
    num_kv_heads: int


@dataclass(slots=True)
class StepPlan:
    """What `prepare_attention` returns."""

    metadata: AttentionMetadata
    kv: HeadMajorKV
    starts: list[int]
    lengths: list[int]
    kept: Tensor | None
    """[n] Tokens that are written; None when all are."""
    rows: Tensor
    """[n * K] Where they go, heads inside, for `HeadMajorKV.write`."""
    counts: list[int]
    """Tokens that each row computes."""
    idle: bool
    """Whether some tokens belong to no row, or to one that holds nothing: their outputs are zeros."""
    views: dict[int | None, View] = field(default_factory=dict)

    def view(self, window: int | None) -> View:
        """The step as layers with this window see it."""
        if window not in self.views:
            self.views[window] = self._make_view(window)
        return self.views[window]

    def _make_view(self, window: int | None) -> View:
        busy = [row for row, length in enumerate(self.lengths) if length and self.counts[row]]
        decodes = [row for row in busy if self.counts[row] == 1]
        chunks = tuple(self._chunk(row, window) for row in busy if self.counts[row] > 1)
        groups = tuple(self._group(rows, window) for rows in similar(self._spans(decodes, window), self.kv.shape[2]))
        seen = [tile.seen for chunk in chunks for tile in chunk.tiles]
        width = max((span.stop - span.start for span in seen), default=0)
        return View(groups, chunks, _visible(width, window), self.kv.shape[0])

    def _first(self, row: int, window: int | None) -> int:
        """The first position that the row's first query sees."""
        first_query = self.lengths[row] - self.counts[row]
        return 0 if window is None else max(0, first_query - window + 1)

    def _spans(self, rows: Sequence[int], window: int | None) -> dict[int, int]:
        """Blocks that each row must gather."""
        block_size = self.kv.shape[2]
        return {row: -(-self.lengths[row] // block_size) - self._first(row, window) // block_size for row in rows}

    def _blocks(self, rows: Sequence[int], firsts: Sequence[int], width: int) -> Tensor:
        """[rows * K, width] Index into heads times blocks: `width` from each row's first; block 0 past its end."""
        num_heads, num_blocks, block_size, _ = self.kv.shape
        table = self.metadata.block_table
        columns = torch.tensor(firsts)[:, None] // block_size + torch.arange(width)
        used = (torch.tensor([self.lengths[row] for row in rows])[:, None] + block_size - 1) // block_size
        blocks = table[torch.tensor(rows)].long().gather(1, columns.clamp(max=table.shape[1] - 1))
        blocks = torch.where(columns < used, blocks, 0)
        heads = torch.arange(num_heads) * num_blocks
        return (blocks[:, None] + heads[:, None]).flatten(0, 1)

    def _chunk(self, row: int, window: int | None) -> Chunk:
        block_size = self.kv.shape[2]
        first = self._first(row, window)
        origin = first // block_size * block_size
        width = -(-self.lengths[row] // block_size) - first // block_size
        blocks = self._blocks([row], [first], width).flatten()
        return Chunk(blocks, tuple(self._tiles(row, origin, window)))

    def _tiles(self, row: int, origin: int, window: int | None) -> Iterator[Tile]:
        """`origin` is the position of the first gathered token."""
        start, stop, length = self.starts[row], self.starts[row + 1], self.lengths[row]
        for low in range(start, stop, TILE):
            high = min(low + TILE, stop)
            end = length - (stop - high)
            first = 0 if window is None else max(0, end - (high - low) - window + 1)
            width = end - first
            causal = width == high - low and (window is None or width <= window)
            yield Tile(slice(low, high), slice(first - origin, end - origin), causal)

    def _group(self, rows: Sequence[int], window: int | None) -> Group:
        block_size, num_heads = self.kv.shape[2], self.kv.shape[0]
        firsts = [self._first(row, window) for row in rows]
        width = max(self._spans(rows, window).values())
        blocks = self._blocks(rows, firsts, width)
        first = torch.tensor(firsts)[:, None]
        positions = first // block_size * block_size + torch.arange(width * block_size)
        length = torch.tensor([self.lengths[row] for row in rows])[:, None]
        hidden = ((positions >= length) | (positions < first)).repeat_interleave(num_heads, 0)
        step = max(1, self.kv.block_room // width)
        parts = tuple(
            self._part(blocks[low : low + step], hidden[low : low + step], low) for low in range(0, len(blocks), step)
        )
        return Group(self._places(rows), parts)

    def _part(self, blocks: Tensor, hidden: Tensor, first_unit: int) -> Part:
        units, width = blocks.shape
        columns = hidden.any(0).nonzero()
        shown = int(columns[0]) if len(columns) else hidden.shape[1]
        tail = hidden[:, shown:].contiguous() if len(columns) else None
        keys, values = room = self.kv.room(units * width)
        gathered = keys.view(units, hidden.shape[1], -1), values.view(units, hidden.shape[1], -1)
        return Part(slice(first_unit, first_unit + units), blocks.flatten(), tail, shown, room, gathered)

    def _places(self, rows: Sequence[int]) -> slice | Tensor:
        tokens = [self.starts[row] for row in rows]
        if tokens == list(range(tokens[0], tokens[0] + len(tokens))):
            return slice(tokens[0], tokens[0] + len(tokens))
        return torch.tensor(tokens)


def plan_step(metadata: AttentionMetadata, kv: HeadMajorKV) -> StepPlan:
    """Everything that does not depend on a layer's window."""
    num_heads, num_blocks, block_size, _ = kv.shape
    slots = metadata.slot
    kept = None if bool((slots >= 0).all()) else (slots >= 0).nonzero().squeeze(1)
    written = slots if kept is None else slots[kept]
    heads = torch.arange(num_heads) * (num_blocks * block_size)
    starts, lengths = metadata.query_start.tolist(), metadata.kv_length.tolist()
    counts = [end - start for start, end in pairwise(starts)]
    busy = sum(count for count, length in zip(counts, lengths, strict=True) if length)
    return StepPlan(
        metadata=metadata,
        kv=kv,
        starts=starts,
        lengths=lengths,
        kept=kept,
        rows=(written[:, None] + heads).flatten(),
        counts=counts,
        idle=busy != len(slots),
    )


def similar(spans: dict[int, int], block_size: int) -> list[list[int]]:
    """Rows (row -> blocks) in groups that waste little when each is padded to its longest; one group if that is enough,
    in the given order.
    """
    if not spans:
        return []
    longest = max(spans.values())
    if _affordable(longest * len(spans) - sum(spans.values()), sum(spans.values()), block_size):
        return [list(spans)]
    groups: list[list[int]] = []
    longest = waste = used = 0
    for row, blocks in sorted(spans.items(), key=lambda item: -item[1]):
        if not groups or not _affordable(waste + longest - blocks, used + blocks, block_size):
            groups.append([])
            longest, waste, used = blocks, 0, 0
        groups[-1].append(row)
        waste, used = waste + longest - blocks, used + blocks
    return groups


def _affordable(wasted_blocks: int, used_blocks: int, block_size: int) -> bool:
    return wasted_blocks * block_size <= max(WASTE_TOKENS, used_blocks * block_size // 8)


def _visible(width: int, window: int | None) -> Tensor:
    """What TILE queries see of the last `width` tokens, the last query's own being the last of them."""
    behind = torch.arange(-TILE + 1, 1)[:, None] - torch.arange(-width + 1, 1)
    visible = behind >= 0
    return visible if window is None else visible & (behind < window)
