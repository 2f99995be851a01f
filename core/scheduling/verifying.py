"""Which of a step's choices hold: all up to the first that differs from the guess that the next one was made behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mainspring.core.batch import StepResult
from mainspring.core.request import Delta, TokenLogprobs
from mainspring.core.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Verified:
    """A step's result without the choices that do not hold."""

    result: StepResult
    sampled: list[Sequence]
    """Whose each of its tokens is."""
    right: dict[Sequence, int]
    """How many guesses were right, of the sequences that had some or asked for some."""


def verify(sampled: list[Sequence], result: StepResult) -> Verified:
    """`sampled` are the sequences that chose, in the result's order, with `drafts` chosen behind.

    A choice that is not finite, or of a sequence that is lost, is only told when it is a row's first: behind guesses it
    is made again, after what holds before it was delivered. A sequence whose results are worthless anyway keeps one, so
    that they are counted down.
    """
    bad, astray = frozenset(result.bad), frozenset(result.astray)
    broken = bad | astray
    kept: list[int] = []
    owners: list[Sequence] = []
    right: dict[Sequence, int] = {}
    first = 0
    for sequence in sampled:
        held = 0
        if not sequence.discarded:
            for place, guess in enumerate(sequence.drafts, first):
                if result.tokens[place] != guess or not broken.isdisjoint((place, place + 1)):
                    break
                held += 1
        if sequence.verifying:
            right[sequence] = held
        kept += range(first, first + held + 1)
        owners += [sequence] * (held + 1)
        first += 1 + len(sequence.drafts)
    logprobs: list[TokenLogprobs | None] | None = None
    if result.logprobs is not None:
        logprobs = [result.logprobs[place] for place in kept]
    shortened = replace(
        result,
        tokens=[result.tokens[place] for place in kept],
        logprobs=logprobs,
        bad=tuple(place for place, choice in enumerate(kept) if choice in bad),
        astray=tuple(place for place, choice in enumerate(kept) if choice in astray),
    )
    return Verified(shortened, owners, right)


def joined(deltas: list[Delta]) -> list[Delta]:
    """One delta for each sequence and step, though several tokens came of it."""
    whole: list[Delta] = []
    for delta in deltas:
        last = whole[-1] if whole else None
        if last is None or last.finish is not None or (last.request_id, last.index) != (delta.request_id, delta.index):
            whole.append(delta)
            continue
        last.tokens += delta.tokens
        last.finish = delta.finish
        if delta.logprobs is not None:
            last.logprobs = [*(last.logprobs or ()), *delta.logprobs]
    return whole
