"""Guesses that a sequence goes on as it did where it last said the same: n-gram or prompt lookup decoding.

Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, "Inference with Reference". Edits, summaries, code and JSON
copy much of their prompts. While a passage is being copied the next guess is known without looking; each token that
comes, drafted or not, says whether it was right. So plain decoding tells how well guessing would do.
"""

from __future__ import annotations

from mainspring.core.speculation.outlook import START, moved, worthwhile

LONG, SHORT = 4, 2
"""Tokens that must have been said before, in the same order: rather more than fewer."""


class Copying:
    """The outlook of one sequence, over its own list of tokens, which only grows. A token costs a few lookups."""

    def __init__(self, tokens: list[int], num_prompt: int) -> None:
        self._tokens = tokens
        self._num_prompt = num_prompt
        self._read = 0
        self._places: dict[tuple[int, ...], int] = {}
        """By the last `LONG` or `SHORT` tokens, where the next one came when they were last said."""
        self._source: int | None = None
        """Where the next token is copied from."""
        self._average = START

    def likelihood(self) -> float:
        """How likely the next guess is right; 0 when nothing like the end was said before."""
        self._catch_up()
        return 0.0 if self._source is None else self._average

    def propose(self, most: int) -> list[int]:
        """What came next there; a passage that runs into the end is taken to repeat."""
        self._catch_up()
        if self._source is None:
            return []
        tokens, known, source = self._tokens, len(self._tokens), self._source
        guesses: list[int] = []
        for place in range(source, source + worthwhile(self._average, most)):
            guesses.append(tokens[place] if place < known else guesses[place - known])
        return guesses

    def _catch_up(self) -> None:
        tokens = self._tokens
        for place in range(self._read, len(tokens)):
            if (source := self._source) is not None and place >= self._num_prompt:
                right = tokens[source] == tokens[place]
                self._average = moved(self._average, right)
                self._source = source + 1 if right else None
            self._index(place)
        self._read = len(tokens)

    def _index(self, place: int) -> None:
        tokens, looking = self._tokens, self._source is None or place < self._num_prompt
        found = None
        for length in (SHORT, LONG):
            if place + 1 < length:
                break
            key = tuple(tokens[place + 1 - length : place + 1])
            if looking:
                found = self._places.get(key, found)
            self._places[key] = place + 1
        if looking:
            self._source = found
