"""How well a sequence's next tokens can be guessed."""

from __future__ import annotations

from typing import Protocol

MEMORY = 0.25
"""Weight of the latest guess in a moving average."""
START = 0.3
"""What is thought of a sequence before it was guessed at."""
UNLIKELY = 0.2
"""A line of guesses goes on while all of it is likelier than this to be right."""


class Outlook(Protocol):
    """Of one sequence."""

    def likelihood(self) -> float:
        """How likely the next guess is right; 0 when there is none."""
        ...

    def propose(self, most: int) -> list[int]:
        """At most so many tokens to come next."""
        ...


def moved(average: float, right: bool) -> float:
    """A moving average after one more guess."""
    return average + MEMORY * (right - average)


def worthwhile(likelihood: float, most: int) -> int:
    """How long a line of guesses, each as likely as this, stays likely enough; at most `most`."""
    count, whole = 0, likelihood
    while count < most and whole > UNLIKELY:
        count += 1
        whole *= likelihood
    return count
