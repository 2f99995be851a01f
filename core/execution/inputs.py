"""From a `Batch` to the integers of one step: computed on the host, vectorised, packed into one buffer, copied once.

Legend: T packed tokens, R rows, B blocks a row, N rows that choose a token; padding counts in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata
from mainspring.core.batch import Batch, Bucket
from mainspring.core.execution.sampling import PACKED_COLUMNS, any_stage
from mainspring.core.execution.table import StateTable
from mainspring.core.ops.sample import SamplingTensors


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes that a step's buffer is laid out by, and the host integers that kernels are launched with."""

    tokens: int
    sequences: int
    blocks: int
    samples: int
    max_query: int
    max_kv: int
    num_decodes: int
    chooses: bool = False
    """Whether the program chooses tokens, so that it must be told how."""
    verifies: bool = False
    """Whether some tokens may be guesses, which come with the step and not from the token table."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Words of each section: slot (two a token; first, so that its 64-bit words are aligned), position and table
        row of each token, query_start, kv_length, block_table, index, table row and position of each choice, the
        sampling parameters of each, and each token's guess.
        """
        return (
            2 * self.tokens,
            self.tokens,
            self.tokens,
            self.sequences + 1,
            self.sequences,
            self.sequences * self.blocks,
            self.samples,
            self.samples,
            self.samples,
            PACKED_COLUMNS * self.samples if self.chooses else 0,
            self.tokens if self.verifies else 0,
        )

    @property
    def words(self) -> int:
        """int32 words in all."""
        return sum(self.sizes)


@dataclass(frozen=True, slots=True)
class StepTensors:
    """One step's integers on the device: views of one buffer, or of `moved` from one. For a bucket of a device that
    captures they are the same objects at every step."""

    positions: Tensor
    """[T]"""
    token_rows: Tensor
    """[T] Row of the token table that each input id is read from."""
    metadata: AttentionMetadata
    sample_index: Tensor
    """[N] Which of the T tokens the choice follows."""
    sample_rows: Tensor
    """[N] Row of the token table that the chosen id goes to."""
    sample_positions: Tensor
    """[N] Position that it takes there."""
    sampling: SamplingTensors | None
    """How each is chosen, where the program does that."""
    guesses: Tensor | None = None
    """[T] What was guessed at each position, -1 where the token table knows; None in steps without guesses."""


def exact_shape(batch: Batch, block_size: int) -> StepShape:
    """The shape of a step as it is, for machines that take any."""
    max_kv = max(map(int.__add__, batch.starts, batch.counts))
    return StepShape(
        tokens=batch.num_tokens,
        sequences=len(batch.rows),
        blocks=-(-max_kv // block_size),
        samples=batch.num_choices,
        max_query=max(batch.counts),
        max_kv=max_kv,
        num_decodes=batch.num_decodes,
        verifies=bool(batch.drafts),
    )


def padded_shape(
    bucket: Bucket, block_size: int, *, decode: bool, chooses: bool = False, verifies: bool = False
) -> StepShape:
    """The shape of a bucket. Its host integers are constants, so a captured program may bake them in."""
    return StepShape(
        tokens=bucket.tokens,
        sequences=bucket.sequences,
        blocks=bucket.blocks,
        samples=bucket.sequences,
        max_query=1 if decode else bucket.tokens,
        max_kv=bucket.blocks * block_size,
        num_decodes=bucket.sequences if decode else 0,
        chooses=chooses,
        verifies=verifies and not decode,
    )


def all_decode(batch: Batch) -> bool:
    """Whether the batch belongs to the decode family of buckets."""
    return batch.num_tokens == len(batch.rows)


def view(buffer: Tensor, shape: StepShape) -> StepTensors:
    """The sections of a packed int32 buffer."""
    sections = buffer[: shape.words].split_with_sizes(shape.sizes)
    slot, positions, token_rows, query_start, kv_length, block_table, index, rows, places, columns, guesses = sections
    metadata = AttentionMetadata(
        query_start=query_start,
        kv_length=kv_length,
        block_table=block_table.view(shape.sequences, shape.blocks),
        slot=slot.view(torch.int64),
        max_query=shape.max_query,
        max_kv=shape.max_kv,
        num_decodes=shape.num_decodes,
    )
    sampling = any_stage(columns.view(PACKED_COLUMNS, shape.samples), places) if shape.chooses else None
    return StepTensors(
        positions, token_rows, metadata, index, rows, places, sampling, guesses if shape.verifies else None
    )


def moved(inputs: StepTensors, device: str) -> StepTensors:
    """The same on a device, each section in a memory of its own: for programs that take tensors, not views."""
    metadata = inputs.metadata
    return replace(
        inputs,
        positions=inputs.positions.to(device),
        token_rows=inputs.token_rows.to(device),
        metadata=replace(
            metadata,
            query_start=metadata.query_start.to(device),
            kv_length=metadata.kv_length.to(device),
            block_table=metadata.block_table.to(device),
            slot=metadata.slot.to(device),
        ),
        sample_index=inputs.sample_index.to(device),
        sample_rows=inputs.sample_rows.to(device),
        sample_positions=inputs.sample_positions.to(device),
        guesses=None if inputs.guesses is None else inputs.guesses.to(device),
    )


def fill(buffer: npt.NDArray[np.int32], batch: Batch, table: StateTable, shape: StepShape) -> npt.NDArray[np.int64]:
    """Writes the step's integers, padding included, and returns the table row of each choice, padding excluded.

    Padding is inert: slot -1, kv_length 0, block 0, and the row of nobody.
    """
    ends = list(accumulate(shape.sizes))
    sections = [buffer[end - size : end] for size, end in zip(shape.sizes, ends, strict=True)]
    slot, positions, token_rows, query_start, kv_length, block_table, index, rows, places, columns, guesses = sections
    batch_rows = np.array(batch.rows, dtype=np.int64)
    starts = np.array(batch.starts, dtype=np.int32)
    counts = np.array(batch.counts, dtype=np.int32)
    num_rows, num_tokens = len(batch_rows), batch.num_tokens

    past = counts.cumsum(dtype=np.int32)
    query_start[0] = 0
    query_start[1 : num_rows + 1] = past
    query_start[num_rows + 1 :] = num_tokens
    np.add(starts, counts, out=kv_length[:num_rows])
    kv_length[num_rows:] = 0
    blocks = block_table.reshape(shape.sequences, shape.blocks)
    blocks[:num_rows] = table.blocks[batch_rows, : shape.blocks]
    blocks[num_rows:] = 0

    if num_tokens == num_rows:
        owners, places_T = batch_rows, starts
    else:
        owners = batch_rows.repeat(counts)
        places_T = np.arange(num_tokens, dtype=np.int32) + (starts - past + counts).repeat(counts)
    token_rows[:num_tokens], token_rows[num_tokens:] = owners, table.nobody
    positions[:num_tokens], positions[num_tokens:] = places_T, 0
    _fill_slots(slot.view(np.int64), owners, places_T, table)

    choosing, offsets = _choices(batch)
    num_choosing = len(choosing)
    chosen_rows = batch_rows[choosing]
    index[:num_choosing], index[num_choosing:] = past[choosing] - offsets, 0
    rows[:num_choosing], rows[num_choosing:] = chosen_rows, table.nobody
    # What is chosen for nobody goes where nobody's input is not read, so that padding computes the same at every run.
    places[:num_choosing], places[num_choosing:] = kv_length[:num_rows][choosing] - offsets + 1, table.max_length
    if shape.verifies:
        guesses[:] = -1
        for draft in batch.drafts:
            end = past[draft.index]
            guesses[end - len(draft.tokens) : end] = draft.tokens
    if shape.chooses:
        table.sampling.pack(rows, columns.reshape(PACKED_COLUMNS, shape.samples))
    return chosen_rows


def _choices(batch: Batch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The row of each choice, and of how many of the row's last tokens it follows the first."""
    counts = np.array(batch.samples, dtype=np.int64)
    if not batch.drafts:
        choosing = np.flatnonzero(counts)
        return choosing, np.ones_like(choosing)
    for draft in batch.drafts:
        counts[draft.index] += len(draft.tokens)
    choosing = np.arange(len(counts)).repeat(counts)
    return choosing, counts.cumsum().repeat(counts) - np.arange(len(choosing))


def _fill_slots(
    slot: npt.NDArray[np.int64], owners: npt.NDArray[np.int64], places: npt.NDArray[np.int32], table: StateTable
) -> None:
    """Where keys and values go: block * block size + offset. Nobody's go nowhere."""
    block, offset = np.divmod(places, table.block_size)
    used = slot[: len(owners)]
    used[:] = table.blocks[owners, block]
    used *= table.block_size
    used += offset
    used[owners == table.nobody] = -1
    slot[len(owners) :] = -1
