"""What an engine for grammars does. Another one is a module with this protocol and a line in `ENGINES` of `store.py`.

Legend: V vocabulary, W words of 32 tokens each: ceil(V / 32).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from mainspring.core.grammar.messages import GrammarSpec

Mask = npt.NDArray[np.int32]
"""[W] Bit t % 32 of word t // 32 says whether token t may come; bits past the vocabulary say nothing."""


class GrammarError(Exception):
    """A grammar that cannot be used, in a sentence for whoever sent it."""


class Matcher(Protocol):
    """Where one sequence stands in its grammar. Belongs to one thread at a time."""

    def fill(self, mask_W: Mask) -> None:
        """Writes which tokens may come next. Once the grammar has ended those are the ends of the sequence.

        Raises `GrammarError` when the engine gave up: a limit on its work was reached.
        """
        ...

    def accept(self, token: int) -> bool:
        """Goes on by a token; False, and no step, when it may not come."""
        ...

    def rollback(self, count: int) -> None:
        """Takes back the last `count` accepted tokens: those of a draft that was not taken."""
        ...

    def copy(self) -> Matcher:
        """Another matcher at the same place, for another sequence."""
        ...


class GrammarEngine(Protocol):
    """Reads grammars for one vocabulary. Safe to use from several threads."""

    def source(self, spec: GrammarSpec) -> str:
        """What a request asks for, in the engine's own notation. Raises `GrammarError` for a kind it cannot say."""
        ...

    def matcher(self, source: str) -> Matcher:
        """At the beginning of a grammar, in the engine's own notation. Raises `GrammarError`."""
        ...

    def warnings(self, source: str) -> tuple[str, ...]:
        """What the grammar says and the engine does not enforce, a sentence each. Raises `GrammarError`."""
        ...
