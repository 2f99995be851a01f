"""Stop strings: found anywhere in the text, across any split of it, in time linear in the text."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """Text that may be shown, and the stop string that ended it, if one did."""

    text: str
    stop: str | None


class StopMatcher:
    """Watches one sequence's text for stop strings.

    The first stop string to *complete* wins, the longest of those that complete at the same character; so the answer
    does not depend on how the text was cut into deltas. With `keep` the stop string stays in the text and nothing is
    ever held back; without it, text that may be the beginning of a stop string is held until that is decided.

    One automaton a stop string (Knuth, Morris and Pratt 1977): a character costs amortised constant time each.
    """

    def __init__(self, stops: Sequence[str], keep: bool = False) -> None:
        self._stops = [(stop, _failures(stop)) for stop in stops if stop]
        self._matched = [0] * len(self._stops)
        self._keep = keep
        self._held = ""

    def fork(self) -> StopMatcher:
        """Another one that has seen the same text."""
        other = copy(self)
        other._matched = list(self._matched)
        return other

    def push(self, text: str) -> Found:
        """Take new text; give back what is now certain. Not to be called again once a stop was found."""
        if not self._stops:
            return Found(text, None)
        held_length = len(self._held)
        pending = self._held + text
        for position in range(held_length, len(pending)):
            stop = self._advance(pending[position])
            if stop is not None:
                self._held = ""
                end = position + 1 if self._keep else position + 1 - len(stop)
                return Found(pending[held_length:end] if self._keep else pending[:end], stop)
        if self._keep:
            return Found(text, None)
        cut = len(pending) - max(self._matched)
        self._held = pending[cut:]
        return Found(pending[:cut], None)

    def flush(self) -> str:
        """The text still held back, when the sequence ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        completed: str | None = None
        for number, (stop, failures) in enumerate(self._stops):
            matched = self._matched[number]
            while matched and stop[matched] != character:
                matched = failures[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                completed = stop if completed is None or len(stop) > len(completed) else completed
                matched = failures[matched - 1]
            self._matched[number] = matched
        return completed


def _failures(pattern: str) -> list[int]:
    """For each prefix of the pattern, the length of its longest proper prefix that is also its suffix."""
    failures = [0] * len(pattern)
    matched = 0
    for position in range(1, len(pattern)):
        while matched and pattern[matched] != pattern[position]:
            matched = failures[matched - 1]
        if pattern[matched] == pattern[position]:
            matched += 1
        failures[position] = matched
    return failures
