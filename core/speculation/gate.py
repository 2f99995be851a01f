"""Whether drafting pays: tokens a second with it against tokens a second without, as this machine's steps went.

What a step with more tokens costs depends on machine, model, load and context, and what it brings on the text. Neither
is modelled: both are seen. For each size of batch (by powers of two) the gate keeps the rate of steps in which somebody
drafts and of steps in which nobody does, opens for a few steps to look, and stays open while it pays. While it does not
it stays closed, for longer each time, and at least until what the look lost is a hundredth of the time since.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LOOK_STEPS = 6
"""Steps after which a verdict is reached, of either kind."""
GAIN = 1.05
"""Rate with drafts over rate without, from which it pays: what is gained must show above the noise."""
LOST = 0.01
"""Share of the time that may go to looks."""
FIRST_PAUSE, LONGEST_PAUSE = 128, 8192
"""Steps that the gate stays closed after a verdict against it; each such verdict doubles it."""
REFRESH_STEPS = 512
"""Steps with drafts after which those without are looked at again: contexts grow, and machines change their clocks."""
MEMORY = 0.2
"""Weight of the latest step in a rate."""
HICCUP = 4.0
"""Times the mean past which a step's duration says nothing of steps (a machine that was busy with something else)."""


@dataclass(slots=True)
class _Rate:
    """Tokens a second over steps of one kind: a ratio of moving averages."""

    tokens: float = 0.0
    seconds: float = 0.0
    steps: int = 0

    def saw(self, tokens: int, seconds: float) -> None:
        if self.steps >= LOOK_STEPS and seconds > HICCUP * self.seconds:
            return
        self.steps += 1
        weight = max(MEMORY, 1 / self.steps)
        self.tokens += weight * (tokens - self.tokens)
        self.seconds += weight * (seconds - self.seconds)

    @property
    def value(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Size:
    """What is known of batches of about one size."""

    plain: _Rate = field(default_factory=_Rate)
    drafting: _Rate = field(default_factory=_Rate)
    lost: float = 0.0
    """Seconds by which plain steps would have brought the tokens of the steps with drafts sooner, since it opened."""
    begun: bool = False
    """Whether the first step of those has come: it may be the first of its shape, and says nothing of the others."""
    closed_for: int = 0
    """Steps without drafts to come."""
    pause: int = FIRST_PAUSE

    def open(self) -> bool:
        return self.plain.steps >= LOOK_STEPS and not self.closed_for

    def saw_plain(self, tokens: int, seconds: float) -> None:
        self.plain.saw(tokens, seconds)
        self.closed_for = max(self.closed_for - 1, 0)

    def saw_drafting(self, tokens: int, seconds: float) -> None:
        rate = self.plain.value
        self.lost += seconds - tokens / rate if rate else 0.0
        if not self.begun or not rate:  # a batch that shrank since the step was planned may be of an unknown size
            self.begun = True
            return
        self.drafting.saw(tokens, seconds)
        affordable = LOST * self.plain.seconds  # at each plain step
        if self.drafting.steps < LOOK_STEPS and self.lost < LONGEST_PAUSE * affordable:
            return
        if self.drafting.value < GAIN * rate:
            self.closed_for = min(max(self.pause, math.ceil(self.lost / affordable)), LONGEST_PAUSE)
            self.pause = min(2 * self.closed_for, LONGEST_PAUSE)
            self.drafting, self.lost, self.begun = _Rate(), 0.0, False
        elif self.drafting.steps % REFRESH_STEPS == 0:
            self.closed_for, self.pause, self.lost = LOOK_STEPS, FIRST_PAUSE, 0.0


class Gate:
    """For all sizes of batch."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    def open(self, rows: int) -> bool:
        """Whether sequences may draft in a batch of so many."""
        return self._size(rows).open()

    def saw(self, rows: int, tokens: int, seconds: float, *, drafting: bool) -> None:
        """A step of so many sequences brought so many tokens in so much time; in some of it somebody drafted, or waited
        to draft.
        """
        size = self._size(rows)
        if drafting:
            size.saw_drafting(tokens, seconds)
        else:
            size.saw_plain(tokens, seconds)

    def _size(self, rows: int) -> _Size:
        return self._sizes.setdefault(rows.bit_length(), _Size())
