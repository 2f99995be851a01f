"""What is tried: shapes of ragged batches, head geometries, and the tensors that place a batch in a paged cache.

All lengths are stated in blocks and tokens around their boundaries, where indexing goes wrong. Legend: R rows of a
step, T packed tokens, B blocks a row, S tokens a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata, Capabilities, Device, ShapeLimits
from mainspring.core.batch import Bucket, Buckets

TOKENS = (0, 1, 3, 33)
"""Of the ops that know no sequences, where any shape is taken."""


def limits(block_size: int) -> ShapeLimits:
    """The largest step that is tried; buckets are made up to it."""
    return ShapeLimits(tokens=8 * block_size, sequences=8, blocks=8)


def token_counts(device: Device, capabilities: Capabilities) -> tuple[int, ...]:
    """Tokens of a step that ops without a cache are tried with: the smallest bucket and the largest, or any."""
    buckets = _only_shapes(device, capabilities)
    if buckets is None:
        return TOKENS
    counts = [bucket.tokens for bucket in (*buckets.decode, *buckets.prefill)]
    return tuple(sorted({min(counts), max(counts)}))


def row_count(device: Device, capabilities: Capabilities, rows: int) -> int:
    """Rows that choose a token, `rows` of them wanted: those of the smallest bucket that has so many."""
    buckets = _only_shapes(device, capabilities)
    counts = [rows] if buckets is None else [bucket.sequences for bucket in (*buckets.decode, *buckets.prefill)]
    return min((count for count in counts if count >= rows), default=max(counts))


def _only_shapes(device: Device, capabilities: Capabilities) -> Buckets | None:
    """The buckets of a device that takes no other shape."""
    return device.buckets(limits(capabilities.block_sizes[0])) if capabilities.shapes == "bucketed" else None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence: `new` tokens computed by the step, the last of `length` that it then has."""

    new: int
    length: int


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """A step by name. Rows with one new token come first."""

    name: str
    rows: tuple[Row, ...]
    padded_rows: int = 0
    padded_tokens: int = 0

    @property
    def mixed(self) -> bool:
        """Whether rows with one new token stand beside rows with more."""
        return len({row.new == 1 for row in self.rows}) == 2


@dataclass(frozen=True, slots=True)
class Geometry:
    """Heads of an attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.num_heads}/{self.num_kv_heads} heads of {self.head_dim}"


GEOMETRIES = (
    Geometry(6, 2, 64),
    Geometry(9, 3, 64),
    Geometry(4, 4, 64),
    Geometry(8, 1, 128),
    Geometry(4, 2, 32),
)
"""The first is used where heads are not the question: two groups of three tell apart every way of sharing heads."""


def geometries(head_dims: Sequence[int]) -> tuple[Geometry, ...]:
    """Those a backend with these head dims takes; its first dim stands in for others."""
    if not head_dims:
        return GEOMETRIES
    fitting = (
        geometry if geometry.head_dim in head_dims else replace(geometry, head_dim=head_dims[0])
        for geometry in GEOMETRIES
    )
    return tuple(dict.fromkeys(fitting))


def ragged_batches(block_size: int) -> tuple[RaggedBatch, ...]:
    """The steps that every attention must get right. The last is the one to use where batches are not the question."""
    size = block_size

    def rows(*pairs: tuple[int, int]) -> tuple[Row, ...]:
        return tuple(Row(new, length) for new, length in pairs)

    return (
        RaggedBatch("one token of one sequence", rows((1, 1))),
        RaggedBatch("one decode", rows((1, 2 * size + 3))),
        RaggedBatch(
            "decodes around a block's end", rows((1, size - 1), (1, size), (1, size + 1), (1, 2 * size), (1, 2))
        ),
        RaggedBatch("decodes of very different lengths", rows((1, 1), (1, 5 * size + 3), (1, 2), (1, size))),
        RaggedBatch("whole prompts around a block's end", rows((size - 1,) * 2, (size,) * 2, (size + 1,) * 2)),
        RaggedBatch("a prompt of several blocks", rows((3 * size + 5,) * 2)),
        RaggedBatch("chunks after a prefix", rows((size, 3 * size), (5, size + 5), (7, 2 * size + 1))),
        RaggedBatch("nothing but padding", (), padded_rows=2, padded_tokens=3),
        RaggedBatch("padded decodes", rows((1, size + 1), (1, 3)), padded_rows=2, padded_tokens=2),
        RaggedBatch("an empty step", ()),
        RaggedBatch(
            "decodes, chunks, prompts and padding",
            rows((1, 2 * size), (1, size + 1), (1, 5), (4, size + 2), (size + 3, size + 3)),
            padded_rows=1,
            padded_tokens=3,
        ),
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """A batch in a cache: the step itself, and the steps before it."""

    batch: RaggedBatch
    tables: tuple[tuple[int, ...], ...]
    """Blocks of each row."""
    num_blocks: int
    history: tuple[AttentionMetadata, ...]
    """Earlier steps, one for each row that has a past."""
    step: AttentionMetadata
    stale: tuple[AttentionMetadata, ...]
    """Steps that write every slot of every block but block 0."""


def place(batch: RaggedBatch, block_size: int, buckets: Buckets | None, generator: torch.Generator) -> Placed:
    """Gives rows shuffled blocks, the last block of the cache among them, and leaves some to nobody.

    Shapes are padded to `buckets`.
    """
    needed = [-(-row.length // block_size) for row in batch.rows]
    num_blocks = sum(needed) + 3
    # The row that comes first gets the last block first: -1 as an index would hit what it has written before.
    free = [num_blocks - 1, *(torch.randperm(num_blocks - 2, generator=generator) + 1).tolist()]
    tables = [[free.pop(0) for _ in range(count)] for count in needed]
    step = _metadata(batch.rows, tables, block_size, (batch.padded_rows, batch.padded_tokens))
    return Placed(
        batch=batch,
        tables=tuple(map(tuple, tables)),
        num_blocks=num_blocks,
        history=tuple(
            step_of([Row(row.length - row.new, row.length - row.new)], [table], block_size, buckets)
            for row, table in zip(batch.rows, tables, strict=True)
            if row.length > row.new
        ),
        step=fit(step, block_size, buckets),
        stale=_stale_steps(num_blocks, block_size, buckets),
    )


def step_of(
    rows: Sequence[Row], tables: Sequence[Sequence[int]], block_size: int, buckets: Buckets | None
) -> AttentionMetadata:
    """A step of these rows in these blocks."""
    return fit(_metadata(rows, tables, block_size, (0, 0)), block_size, buckets)


STALE_BLOCKS = 4
"""Blocks that one step spoils; small, so that it fits the buckets of devices that have them."""


def _stale_steps(num_blocks: int, block_size: int, buckets: Buckets | None) -> tuple[AttentionMetadata, ...]:
    blocks = range(1, num_blocks)
    tables = [blocks[low : low + STALE_BLOCKS] for low in range(0, len(blocks), STALE_BLOCKS)]
    lengths = [len(table) * block_size for table in tables]
    return tuple(
        step_of([Row(length, length)], [table], block_size, buckets)
        for table, length in zip(tables, lengths, strict=True)
    )


def _metadata(
    rows: Sequence[Row], tables: Sequence[Sequence[int]], block_size: int, padding: tuple[int, int]
) -> AttentionMetadata:
    padded_rows, padded_tokens = padding
    counts = [row.new for row in rows] + [0] * padded_rows
    slots = [
        table[position // block_size] * block_size + position % block_size
        for row, table in zip(rows, tables, strict=True)
        for position in range(row.length - row.new, row.length)
    ]
    width = max(map(len, tables), default=0) + 1
    table = [list(blocks) + [0] * (width - len(blocks)) for blocks in tables] + [[0] * width] * padded_rows
    lengths = [row.length for row in rows] + [0] * padded_rows
    return AttentionMetadata(
        query_start=torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
        kv_length=torch.tensor(lengths, dtype=torch.int32),
        block_table=torch.tensor(table, dtype=torch.int32).reshape(len(table), width),
        slot=torch.tensor(slots + [-1] * padded_tokens, dtype=torch.int64),
        max_query=max(counts, default=0),
        max_kv=max(lengths, default=0),
        num_decodes=sum(row.new == 1 for row in rows),
    )


def fit(metadata: AttentionMetadata, block_size: int, buckets: Buckets | None) -> AttentionMetadata:
    """The step padded to the cheapest bucket that holds it; as it is where the device takes any shape.

    Raises `ValueError` when no bucket holds it.
    """
    if buckets is None:
        return metadata
    tokens, (rows, width) = len(metadata.slot), metadata.block_table.shape
    decode = metadata.num_decodes == int((metadata.kv_length > 0).sum())
    if not (decode or buckets.prefill):
        return metadata
    bucket = buckets.smallest(tokens, rows, width, decode=decode)
    if bucket is None:
        raise ValueError(f"no bucket holds a step of {tokens} tokens, {rows} rows and {width} blocks a row")
    return _padded(metadata, bucket, block_size, decode=decode)


def _padded(metadata: AttentionMetadata, bucket: Bucket, block_size: int, *, decode: bool) -> AttentionMetadata:
    """As an executor pads: the host integers are the bucket's too."""
    rows, width = metadata.block_table.shape
    block_table = torch.zeros(bucket.sequences, bucket.blocks, dtype=torch.int32)
    block_table[:rows, :width] = metadata.block_table
    last = metadata.query_start[-1:].expand(bucket.sequences - rows)
    return replace(
        metadata,
        query_start=torch.cat((metadata.query_start, last)),
        kv_length=_extended(metadata.kv_length, bucket.sequences, 0),
        block_table=block_table,
        slot=_extended(metadata.slot, bucket.tokens, -1),
        max_query=1 if decode else bucket.tokens,
        max_kv=bucket.blocks * block_size,
        num_decodes=bucket.sequences if decode else 0,
    )


def _extended(values: Tensor, size: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, size - len(values)), value=fill)


def moved(metadata: AttentionMetadata, device: str) -> AttentionMetadata:
    """The same step on a device."""
    return replace(
        metadata,
        query_start=metadata.query_start.to(device),
        kv_length=metadata.kv_length.to(device),
        block_table=metadata.block_table.to(device),
        slot=metadata.slot.to(device),
    )
