"""Where a drafter's keys and values go: in blocks of the target's ids, and past a sequence's last one in its own.

Drafts are computed at positions that the target has no blocks for yet. Those go to scratch blocks, a few a row, which
only the drafter's cache has; nothing reads them after the step. All is computed on the host but the positions, which
depend on how many drafts were right.

Legend: T tokens of a pass, R rows, B blocks a row, S tokens a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.execution.inputs import StepShape

Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Scratch:
    """`width` blocks for each row of the state table, from block `first` on."""

    first: int
    width: int

    @classmethod
    def behind(cls, num_blocks: int, count: int, block_size: int) -> Scratch:
        """For `count` drafts at once, behind the target's blocks."""
        return cls(num_blocks, blocks_a_row(count, block_size))

    def of(self, rows: npt.NDArray[np.int64]) -> Integers:
        """[R, width]"""
        found = self.first + rows[:, None] * self.width + np.arange(self.width)
        return found.astype(np.int32)


def blocks_a_row(count: int, block_size: int) -> int:
    """Scratch blocks that `count` positions past a block's end need at most."""
    return -(-count // block_size)


def overlaid(blocks: Integers, rows: npt.NDArray[np.int64], ends: Integers, scratch: Scratch, size: int) -> Integers:
    """[R, B] Block tables of these rows, whose blocks hold positions before `ends`, and scratch behind those."""
    past = (ends - 1) // size + 1
    width = min(int(past.max()) + scratch.width, blocks.shape[1])
    found = blocks[rows, :width]
    columns = past[:, None] + np.arange(scratch.width)
    places, offsets = np.nonzero(columns < width)
    found[places, columns[places, offsets]] = scratch.of(rows)[places, offsets]
    return found


def decode_shape(rows: int, blocks: int, block_size: int) -> StepShape:
    """Of a step in which each row computes one token and chooses."""
    return StepShape(
        tokens=rows, sequences=rows, blocks=blocks, samples=rows, max_query=1, max_kv=blocks * block_size,
        num_decodes=rows,
    )  # fmt: skip


def pass_shape(starts: Integers, counts: Integers, blocks: int) -> StepShape:
    """Of a pass over several tokens a row; none is chosen in it."""
    return StepShape(
        tokens=int(counts.sum()), sequences=len(counts), blocks=blocks, samples=0, max_query=int(counts.max()),
        max_kv=int((starts + counts).max()), num_decodes=int((counts == 1).sum()),
    )  # fmt: skip


def sections(words: Integers, shape: StepShape) -> list[Integers]:
    """The parts of a packed buffer, in the order of `StepShape.sizes`."""
    return np.split(words, np.cumsum(shape.sizes)[:-1])


def packed_decode(rows: npt.NDArray[np.int64], blocks_RB: Integers, shape: StepShape, nobody: int) -> Integers:
    """The words of `decode_shape`, but for what depends on positions. Rows that are missing are nobody's."""
    words = np.zeros(shape.words, dtype=np.int32)
    slot, _, token_rows, query_start, _, block_table, index, sample_rows, *_ = sections(words, shape)
    slot.view(np.int64)[:] = -1
    token_rows[:], sample_rows[:] = nobody, nobody
    token_rows[: len(rows)], sample_rows[: len(rows)] = rows, rows
    query_start[:] = np.arange(shape.sequences + 1)
    index[:] = np.arange(shape.sequences)
    block_table.reshape(shape.sequences, shape.blocks)[: len(rows), : blocks_RB.shape[1]] = blocks_RB
    return words


def packed_pass(
    rows: npt.NDArray[np.int64], starts: Integers, counts: Integers, blocks_RB: Integers, block_size: int
) -> tuple[Integers, StepShape]:
    """The words of a pass over `counts` tokens of each row from `starts` on, and its shape."""
    shape = pass_shape(starts, counts, blocks_RB.shape[1])
    words = np.zeros(shape.words, dtype=np.int32)
    slot, positions, token_rows, query_start, kv_length, block_table, *_ = sections(words, shape)
    past = counts.cumsum(dtype=np.int32)
    query_start[1:] = past
    kv_length[:] = starts + counts
    block_table[:] = blocks_RB.ravel()
    owners = np.arange(len(rows)).repeat(counts)
    positions[:] = np.arange(shape.tokens, dtype=np.int32) + (starts - past + counts).repeat(counts)
    token_rows[:] = rows[owners]
    block, offset = np.divmod(positions, block_size)
    slot.view(np.int64)[:] = blocks_RB[owners, block].astype(np.int64) * block_size + offset
    return words, shape


def slots(block_table_RB: Tensor, positions_R: Tensor, block_size: int) -> Tensor:
    """[R] int64: where a token at each row's position goes, on the device."""
    block_R1 = block_table_RB.gather(1, (positions_R // block_size)[:, None].long())
    return block_R1[:, 0].long() * block_size + (positions_R % block_size).long()


def as_tensor(words: Integers) -> Tensor:
    """The same memory."""
    return torch.from_numpy(words)
