"""Which positions a draft model has read: how many leading tokens of each block have their keys and values beside the
target's.

A draft model shares the target's block ids. It runs only when someone wants drafts, and reads then what it has missed:
prompts, what was decoded without it, what another sequence left in the prefix cache. Integers only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int32]
Rows = npt.NDArray[np.int64]


class Coverage:
    """Leading slots of each block that hold what the draft model made of the block's tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._filled = np.zeros(num_blocks, dtype=np.int32)
        self._block_size = block_size

    def copied(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Blocks (source, destination) whose contents were copied."""
        for source, destination in pairs:
            self._filled[destination] = self._filled[source]

    def overwritten(self, table: Integers, rows: Rows, starts: Integers, counts: Integers) -> None:
        """The target computes `counts` positions of these rows of the block table: what was read there is stale.

        Blocks are entered at their first slot or where they were left, so what lies behind is stale as well.
        """
        first, offsets = np.divmod(starts, self._block_size)
        entered = table[rows, first]
        left = np.minimum(self._filled[entered], offsets)
        lasts = (starts + counts - 1) // self._block_size
        for place in np.flatnonzero(lasts > first).tolist():
            self._filled[table[rows[place], first[place] : lasts[place] + 1]] = 0
        self._filled[entered] = left

    def read(self, blocks: Integers, end: int) -> None:
        """The draft model has read all positions before `end`."""
        whole, rest = divmod(end, self._block_size)
        self._filled[blocks[:whole]] = self._block_size
        if rest:
            self._filled[blocks[whole]] = max(self._filled[blocks[whole]], rest)

    def known(self, blocks: Integers, end: int) -> int:
        """How many leading positions, of those before `end`, need not be read again."""
        held = self._filled[blocks[: -(-end // self._block_size)]]
        short = np.flatnonzero(held < self._block_size)
        if not short.size:
            return end
        first = int(short[0])
        return min(end, first * self._block_size + int(held[first]))
