"""Guesses that a sequence goes on as it did where it last said the same: n-gram or prompt lookup decoding.

Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, "Inference with Reference". Edits, summaries, code and JSON
copy much of their prompts. While a passage is being copied the next guess is known without looking; each token that
comes, drafted or not, says whether it was right. So plain decoding tells how well guessing would do.
"""

from __future__ import annotations

from mainspring.core.speculation.outlook import START, moved, worthwhile

PAIR, LONG = 2, 4
"""Tokens that must have been said before, in the same order; rather more than a pair."""
PLACES = 8
"""Where a pair was said that are looked at for more, the latest first."""


class Copying:
    """The outlook of one sequence, over its own list of tokens, which only grows. A token costs a few lookups."""

    def __init__(self, tokens: list[int], num_prompt: int) -> None:
        self._tokens = tokens
        self._num_prompt = num_prompt
        self._read = 0
        self._places: dict[tuple[int, int], int] = {}
        """By two tokens, where the next one came when they were last said."""
        self._before: dict[int, int] = {}
        """By such a place, the one before it behind the same two tokens."""
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
        tokens, places = self._tokens, self._places
        for place in range(max(self._read, 1), len(tokens)):
            if (source := self._source) is not None and place >= self._num_prompt:
                right = tokens[source] == tokens[place]
                self._average = moved(self._average, right)
                self._source = source + 1 if right else None
            pair = (tokens[place - 1], tokens[place])
            found = places.get(pair)
            places[pair] = place + 1
            if found is not None:
                self._before[place + 1] = found
            if self._source is None and found is not None and place + 1 >= self._num_prompt:
                self._source = self._longer(place + 1, found)
        self._read = len(tokens)

    def _longer(self, end: int, latest: int) -> int:
        """Of the latest places the first with the `LONG` tokens in front that stand before `end`; else `latest`."""
        said, place = self._tokens[max(end - LONG, 0) : end - PAIR], latest
        for _ in range(PLACES):
            if self._tokens[max(place - LONG, 0) : place - PAIR] == said:
                return place
            earlier = self._before.get(place)
            if earlier is None:
                break
            place = earlier
        return latest
