"""Which beginnings live on, which answers count, when to stop: the rules of transformers' `generate(num_beams=...)`.

Numbers in, numbers out; who extends the beginnings is not here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Literal, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Beams:
    """How to search."""

    width: int
    """Beginnings that are extended side by side, at least 2; also how many answers are kept."""
    length_penalty: float = 1.0
    """An answer of L tokens has the score log p / L ** length_penalty: above 0 it favours long ones."""
    early_stopping: bool | Literal["never"] = False
    """True: stop with `width` answers. False: when the best beginning, at its length, is no better than they are.
    "never": when it could not become better at any length (exact without a length penalty).
    """


class Hypothesis(Protocol):
    """A beginning, or an answer."""

    @property
    def logprob(self) -> float:
        """Of all its tokens together."""
        ...

    @property
    def length(self) -> int:
        """Tokens generated, at least 1."""
        ...

    @property
    def ended(self) -> bool:
        """Nothing may follow."""
        ...


H = TypeVar("H", bound=Hypothesis)


class BeamSearch(Generic[H]):
    """The state of one search. `running` is what to extend next, best first."""

    def __init__(self, beams: Beams, first: H, max_tokens: int) -> None:
        self._beams = beams
        self._max_tokens = max_tokens
        self._answers: list[tuple[float, H]] = []
        self.running: list[H] = [first]

    def advance(self, extensions: Sequence[H]) -> None:
        """Takes what the running beginnings may become, each by a token: the likeliest of each, in any order.

        Of those only the `width` best may become answers, so that no poor one ends the search early.
        """
        ranked = sorted(extensions, key=attrgetter("logprob"), reverse=True)
        width = self._beams.width
        self.running = [each for each in ranked if not each.ended][:width]
        if self._beams.early_stopping is not True or len(self._answers) < width:
            ended = [(self._score(each, each.length), each) for each in ranked[:width] if each.ended]
            self._answers = heapq.nlargest(width, self._answers + ended, key=lambda pair: pair[0])

    @property
    def done(self) -> bool:
        """Whether the answers are final."""
        if not self.running:
            return True
        if len(self._answers) < self._beams.width:
            return False
        best = self.running[0]
        later = self._beams.early_stopping == "never" and self._beams.length_penalty > 0
        within = self._score(best, self._max_tokens if later else best.length)
        return self._beams.early_stopping is True or within <= self._answers[-1][0]

    def answers(self) -> list[tuple[float, H]]:
        """Scores and answers, best first. Fewer than `width` where a grammar allows no more."""
        return self._answers

    def _score(self, hypothesis: H, length: int) -> float:
        return hypothesis.logprob / math.pow(length, self._beams.length_penalty)
