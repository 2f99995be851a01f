"""The last steps the engine reported, kept on the server's side for the day it stops reporting.

A hung engine cannot be asked anything, whatever it hangs in; its server still knows what it said last. Written to the
log beside the stacks. Numbers only: nothing of any request is in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from mainspring.core.metrics import Stats
from mainspring.core.request import StepOutput

CAPACITY = 32


class FlightRecord:
    """The newest `CAPACITY` messages of the loop; older ones fall out."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, int, float, Stats]] = deque(maxlen=CAPACITY)

    def note(self, now: float, output: StepOutput) -> None:
        """One message, received at `now` of a monotonic clock."""
        self._entries.append((now, output.step, output.deadline, output.stats))

    def lines(self, now: float) -> Iterator[str]:
        """A line a message, the oldest first."""
        for received, step, bound, stats in self._entries:
            yield (
                f"{now - received:8.3f} s ago: step {step} done, next due within {bound:.1f} s; "
                f"{stats.batch_tokens} tokens in flight, {stats.running} sequences run, {stats.waiting} wait, "
                f"{stats.blocks_used} of {stats.blocks_total} blocks used"
            )
