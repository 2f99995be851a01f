"""What the scheduler asks about guessing: who drafts in the next step, and what.

A sequence that drafts must know its last token, so it sits out while a step of it is in flight; everybody else is
planned ahead as always. So only sequences that are likely to gain by it draft, and only while the gate is open.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mainspring.core.scheduling.sequence import Sequence
from mainspring.core.speculation.copying import Copying
from mainspring.core.speculation.gate import Gate
from mainspring.core.speculation.offers import Offers
from mainspring.core.speculation.outlook import Outlook

LIKELY = 0.5
"""How likely a guess must be right for its sequence to leave the pipeline."""


@dataclass(slots=True)
class Speculation:
    """Of one scheduler."""

    count: int
    """Tokens drafted at once for a sequence, at most."""
    asks: bool = False
    """Whether the executor guesses, when asked; else sequences copy what they said before."""
    gate: Gate = field(default_factory=Gate)

    def drafting(self, sequences: list[Sequence], running: int) -> list[Sequence]:
        """Which of these sequences draft next, or wait to draft, among so many that decode."""
        if not sequences or not self.gate.open(running):
            return []
        return [sequence for sequence in sequences if self._outlook(sequence).likelihood() >= LIKELY]

    def propose(self, sequence: Sequence, most: int) -> list[int]:
        """At most so many guesses; none that would come after the sequence's end."""
        guesses = self._outlook(sequence).propose(min(most, self.count))
        for place, token in enumerate(guesses):
            if token in sequence.stop_ids:
                return guesses[:place]
        return guesses

    def offer(self, sequence: Sequence, guesses: list[int], behind: int) -> None:
        """What the executor guesses behind so many tokens of the sequence."""
        outlook = self._outlook(sequence)
        if isinstance(outlook, Offers):
            outlook.take(guesses, behind)

    def verified(self, sequence: Sequence, right: int, drafted: int) -> None:
        """So many of a sequence's guesses were right."""
        outlook = self._outlook(sequence)
        if isinstance(outlook, Offers):
            outlook.verified(right, drafted)

    def _outlook(self, sequence: Sequence) -> Outlook:
        if sequence.outlook is None:
            sequence.outlook = Offers(sequence.tokens) if self.asks else Copying(sequence.tokens, sequence.num_prompt)
        return sequence.outlook
