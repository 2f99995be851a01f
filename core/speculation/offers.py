"""Guesses that the executor makes, as a sequence's outlook: how many of them were right."""

from __future__ import annotations

from collections.abc import Sequence

from mainspring.core.speculation.outlook import moved, worthwhile

HOPE = 0.8
"""What is thought of a drafter before it drafted for a sequence: it was made to be right."""
REPRIEVE = 0.02
"""What a sequence whose guesses are not asked for any more regains at each look, so that it is tried again."""


class Offers:
    """The outlook of one sequence, over its own list of tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._average = HOPE
        self._offered: Sequence[int] = ()
        self._behind = 0

    def take(self, offered: Sequence[int], behind: int) -> None:
        """What the executor guesses to come behind so many tokens."""
        self._offered, self._behind = offered, behind

    def verified(self, right: int, drafted: int) -> None:
        """So many of the guesses were right, one after the other."""
        for place in range(min(right + 1, drafted)):
            self._average = moved(self._average, place < right)

    def likelihood(self) -> float:
        """How likely the next guess is right."""
        self._average = min(self._average + REPRIEVE, 1.0) if self._average < HOPE else self._average
        return self._average

    def propose(self, most: int) -> list[int]:
        """The guesses, as long as they are likely; none where the sequence went on without them.

        They stay until it goes on: a step that takes no guesses may come first.
        """
        fitting = len(self._tokens) == self._behind
        return list(self._offered[: worthwhile(self._average, most)]) if fitting else []
