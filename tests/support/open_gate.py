"""Guesses of models so small that guessing never pays."""

from __future__ import annotations

from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.speculation.gate import Gate


class Open(Gate):
    """Lets everybody draft, whether or not it pays."""

    def open(self, rows: int) -> bool:
        return True


def open_gate(scheduler: Scheduler) -> None:
    """Of a scheduler that speculates; nothing to do for others."""
    if scheduler._speculation is not None:
        scheduler._speculation.gate = Open()
