"""Who waits: the queue of sequences that want a row, and the deadlines of requests. Two heaps that forget lazily."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from mainspring.core.scheduling.sequence import Rank, Request, Sequence, State

SLACK = 64
"""Entries of ended requests that a heap may carry before it is rebuilt."""


class WaitingQueue:
    """Sequences in the order of their rank. Every operation is O(log n), counted over many."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of the sequences that wait."""
        self._heap: list[tuple[Rank, Sequence]] = []
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sequence: Sequence) -> None:
        """Queues a sequence; it must not be queued already."""
        sequence.state = State.WAITING
        heappush(self._heap, (sequence.rank, sequence))
        self._length += 1
        self.tokens += len(sequence.tokens)

    def head(self) -> Sequence | None:
        """The sequence that `pop` would return."""
        heap = self._heap
        while heap and heap[0][1].state is not State.WAITING:
            heappop(heap)
        return heap[0][1] if heap else None

    def pop(self) -> Sequence | None:
        """Takes out the best-ranked sequence; None when nothing waits."""
        sequence = self.head()
        if sequence is not None:
            heappop(self._heap)
            self._length -= 1
            self.tokens -= len(sequence.tokens)
        return sequence

    def discard(self, sequence: Sequence) -> None:
        """Takes a queued sequence out for good."""
        sequence.state = State.FINISHED
        self._length -= 1
        self.tokens -= len(sequence.tokens)
        if len(self._heap) > 2 * self._length + SLACK:
            self._heap = [entry for entry in self._heap if entry[1].state is State.WAITING]
            heapify(self._heap)


class Deadlines:
    """Requests by the moment they end."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def add(self, request: Request, live: int) -> None:
        """Watches a request, if it has a deadline. `live` is how many requests have not ended yet."""
        if request.deadline is None:
            return
        if len(self._heap) > 2 * live + SLACK:
            self._heap = [entry for entry in self._heap if entry[2].live]
            heapify(self._heap)
        heappush(self._heap, (request.deadline, request.number, request))

    def passed(self, now: float) -> list[Request]:
        """Takes out the live requests whose deadline has come."""
        heap, passed = self._heap, []
        while heap and heap[0][0] <= now:
            request = heappop(heap)[2]
            if request.live:
                passed.append(request)
        return passed
