"""Who runs: the sequences that hold a row of the executor's state table, and who of them gives way."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import merge

from mainspring.core.scheduling.sequence import Rank, Sequence, State

MAX_PREEMPTIONS = 4
"""After so many a sequence is pinned: it is admitted only with room for all it may ever hold, and never gives way."""


def rank_of(sequence: Sequence) -> Rank:
    """The key that both lists are sorted by."""
    return sequence.rank


def is_pinned(sequence: Sequence) -> bool:
    """Whether the sequence has given way often enough."""
    return sequence.preemptions >= MAX_PREEMPTIONS


class Running:
    """Rows and their holders. A row may be given out again at once: batches execute in order."""

    def __init__(self, max_sequences: int) -> None:
        self.decoding: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        """Both sorted by rank, the most urgent first."""
        self.free_rows = list(range(max_sequences - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.decoding
        yield from self.prefilling

    def add(self, sequence: Sequence) -> None:
        """Gives a sequence a row."""
        sequence.row = self.free_rows.pop()
        decodes = sequence.remaining == 1
        sequence.state = State.DECODING if decodes else State.PREFILLING
        insort(self.decoding if decodes else self.prefilling, sequence, key=rank_of)

    def start_decoding(self, sequence: Sequence) -> None:
        """The sequence has at most one token of its prompt left to compute."""
        self._take_out(self.prefilling, sequence)
        sequence.state = State.DECODING
        insort(self.decoding, sequence, key=rank_of)

    def remove(self, sequence: Sequence) -> None:
        """Takes the row back. The caller sets the state that follows."""
        self._take_out(self.decoding if sequence.state is State.DECODING else self.prefilling, sequence)
        self.free_rows.append(sequence.row)
        sequence.row = -1

    def yielding(self) -> Iterator[Sequence]:
        """Those that may be preempted, the least urgent first."""
        backwards = merge(reversed(self.decoding), reversed(self.prefilling), key=rank_of, reverse=True)
        return (sequence for sequence in backwards if not is_pinned(sequence))

    @staticmethod
    def _take_out(members: list[Sequence], sequence: Sequence) -> None:
        del members[bisect_left(members, sequence.rank, key=rank_of)]
