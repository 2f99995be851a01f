"""The log-probabilities of a request's prompt: which of them steps were asked for, and which have come back.

They belong to the request, not to a sequence: whichever sequence computes a position of the prompt first answers for
all. Steps are asked in the order of positions and answer in the order of steps, so what came back is always a prefix.
"""

from __future__ import annotations

from mainspring.core.batch import PromptRange
from mainspring.core.request import TokenLogprobs


class PromptScores:
    """Of a prompt of `num_tokens`, with `top` likeliest tokens at each position. The first token has none."""

    def __init__(self, num_tokens: int, top: int) -> None:
        self.epoch = 0
        """Answers to questions of an earlier epoch do not count."""
        self._num_tokens = num_tokens
        self._top = top
        self._asked = 1
        """Position of the first token that no step was asked for."""
        self._found: list[TokenLogprobs] | None = []
        """None once they are delivered."""

    @property
    def settled(self) -> int:
        """Positions that nobody need compute again for their logits."""
        return self._num_tokens if self._asked == self._num_tokens else self._asked - 1

    def ask(self, index: int, start: int, end: int) -> PromptRange | None:
        """What row `index` of a step, which computes positions `start` to `end`, is to answer; None for nothing new."""
        first, past = self._asked, min(end + 1, self._num_tokens)
        if past <= first:
            return None
        if start >= first:
            raise ValueError(f"positions {first - 1} to {start} are skipped, but their logits are wanted")
        self._asked = past
        return PromptRange(index, first, past - first, self._top)

    def answer(self, found: list[TokenLogprobs]) -> None:
        """Takes what the oldest open question of this epoch gave."""
        if self._found is not None:
            self._found += found

    def forget_open(self) -> bool:
        """Open questions will have no answer that counts. Returns whether there were any: they must be asked again."""
        self.epoch += 1
        if self._found is None or self._asked == len(self._found) + 1:
            return False
        self._asked = len(self._found) + 1
        return True

    def deliver(self) -> list[TokenLogprobs] | None:
        """All of them, the first time; the first token of the request to come out says that they are complete."""
        found, self._found = self._found, None
        return found
