"""The running sequences' places in their grammars: one state for each row of the table, advanced by one call.

A step's mask depends on the token of the step before. So masks are made when the step's forward pass is already with
the device: by then the step before has ended, its tokens lie on the host, and the device computes on meanwhile. Rows
without a grammar wait for nothing but the copy of the others' masks.

Legend: V vocabulary, W words of 32 tokens, G rows of a step that follow a grammar.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Protocol

import numpy as np

from mainspring.core.grammar.protocol import GrammarError, Mask, Matcher
from mainspring.core.grammar.store import Grammars
from mainspring.core.request import Grammar

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Guide:
    """One sequence's place."""

    matcher: Matcher
    lost: bool = False
    """A token came that the grammar does not allow, or its engine gave up: the sequence must end as an error."""


Guesses = Mapping[int, Sequence[int]]
"""By table row, the tokens behind which a step chooses, too: such a row stands once a choice among a step's rows."""
NO_GUESSES: Guesses = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Coming:
    """Tokens that the device has been told to choose and the host has not seen yet."""

    guides: tuple[tuple[Guide, int, Sequence[int]], ...]
    """Each with the place of its first among the tokens, and what was guessed to come there."""
    tokens: Callable[[], Sequence[int]]


class Guiding(Protocol):
    """What an executor asks at each step. Belongs to the thread that gives steps to the device."""

    def admit(self, row: int, grammar: Grammar | None, said: Sequence[int]) -> None:
        """A sequence takes a row, having said some tokens already if it was preempted."""
        ...

    def expect(
        self,
        rows: Sequence[int],
        places: Sequence[int],
        tokens: Callable[[], Sequence[int]],
        guesses: Guesses = NO_GUESSES,
    ) -> None:
        """The step chooses for these rows; `tokens` waits for all that it chose, theirs at `places`."""
        ...

    def catch_up(self) -> None:
        """Goes on by the tokens of the step before. To be called at every step, before its own are expected."""
        ...

    def masks(self, rows: Sequence[int], guesses: Guesses = NO_GUESSES) -> Mask:
        """[G, W] What may come for each row, or behind each of its guesses."""
        ...

    def lost(self, rows: Sequence[int]) -> list[bool]:
        """Which rows cannot be held to their grammar any more."""
        ...


class GuidedElsewhere:
    """Of a rank that is told the masks by another: it follows no grammar, and only knows how large masks are."""

    def __init__(self, vocab_size: int) -> None:
        self._words = -(-vocab_size // 32)

    def admit(self, row: int, grammar: Grammar | None, said: Sequence[int]) -> None:
        """Nothing to keep."""

    def expect(
        self,
        rows: Sequence[int],
        places: Sequence[int],
        tokens: Callable[[], Sequence[int]],
        guesses: Guesses = NO_GUESSES,
    ) -> None:
        """Nothing to wait for."""

    def catch_up(self) -> None:
        """Nothing to go on by."""

    def masks(self, rows: Sequence[int], guesses: Guesses = NO_GUESSES) -> Mask:
        """Room for them."""
        return np.zeros((len(rows), self._words), dtype=np.int32)

    def lost(self, rows: Sequence[int]) -> list[bool]:
        """Whoever makes the masks tells."""
        return [False] * len(rows)


class Guides:
    """Follows the grammars of this process's sequences: `Guiding`."""

    def __init__(self, grammars: Grammars) -> None:
        grammars.followed = True
        self._grammars = grammars
        self._rows: dict[int, Guide] = {}
        self._coming: _Coming | None = None

    def admit(self, row: int, grammar: Grammar | None, said: Sequence[int]) -> None:
        """A sequence takes a row, having said some tokens already if it was preempted."""
        self._rows.pop(row, None)
        if grammar is None:
            return
        guide = self._rows[row] = Guide(self._grammars.matcher(grammar))
        for token in said:
            guide.lost = guide.lost or not guide.matcher.accept(token)

    def expect(
        self,
        rows: Sequence[int],
        places: Sequence[int],
        tokens: Callable[[], Sequence[int]],
        guesses: Guesses = NO_GUESSES,
    ) -> None:
        """The step chooses for these rows; `tokens` waits for all that it chose, theirs at `places`."""
        firsts = dict(zip(reversed(rows), reversed(places), strict=True))
        coming = [(self._rows[row], first, guesses.get(row, ())) for row, first in firsts.items() if row in self._rows]
        self._coming = _Coming(tuple(coming), tokens)

    def catch_up(self) -> None:
        """Goes on by the tokens of the step before. To be called at every step, before its own are expected."""
        if self._coming is None:
            return
        coming, self._coming = self._coming, None
        tokens = coming.tokens()
        for guide, first, guesses in coming.guides:
            for place, token in enumerate(tokens[first : first + 1 + len(guesses)]):
                if not guide.lost and not guide.matcher.accept(token):
                    guide.lost = True
                if guide.lost or place == len(guesses) or token != guesses[place]:
                    break

    def masks(self, rows: Sequence[int], guesses: Guesses = NO_GUESSES) -> Mask:
        """[G, W] What may come for each row, or behind each of its guesses.

        A row that is lost, or no longer there, may say anything, and so may what comes behind a guess that the grammar
        rules out: it will not hold.
        """
        masks_GW = np.full((len(rows), -(-self._grammars.vocab_size // 32)), -1, dtype=np.int32)
        for row, choices in groupby(range(len(rows)), key=rows.__getitem__):
            guide = self._rows.get(row)
            if guide is not None and not guide.lost:
                self._fill(guide, [masks_GW[choice] for choice in choices], guesses.get(row, ()))
        return masks_GW

    @staticmethod
    def _fill(guide: Guide, masks: Sequence[Mask], guesses: Sequence[int]) -> None:
        matcher, ahead = guide.matcher, 0
        try:
            matcher.fill(masks[0])
            for mask_W, guess in zip(masks[1:], guesses, strict=False):
                if not matcher.accept(guess):
                    break
                ahead += 1
                matcher.fill(mask_W)
        except GrammarError as error:
            _log.warning("a grammar is followed no more: %s", error)
            guide.lost = True
            masks[ahead].fill(-1)
        if ahead:
            matcher.rollback(ahead)

    def lost(self, rows: Sequence[int]) -> list[bool]:
        """Which rows cannot be held to their grammar any more."""
        return [row in self._rows and self._rows[row].lost for row in rows]
