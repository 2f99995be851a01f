"""Which of a step's choices hold: all up to the first that differs from the guess that the next one was made behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mainspring.core.batch import StepResult
from mainspring.core.request import Delta
from mainspring.core.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Verified:
    """A step's result without the choices that do not hold."""

    result: StepResult
    sampled: list[Sequence]
    """Whose each of its tokens is."""
    right: dict[Sequence, int]
    """How many guesses were right, of the sequences that had some or asked for some."""
    bad: list[Sequence]
    astray: list[Sequence]
    """Sequences that end behind tokens that hold: the next choice is not finite, or cannot follow the grammar."""


def verify(sampled: list[Sequence], result: StepResult) -> Verified:
    """`sampled` are the sequences that chose, in the result's order, with `drafts` chosen behind.

    A sequence whose results are worthless anyway keeps one, so that they are counted down.
    """
    bad, astray = frozenset(result.bad), frozenset(result.astray)
    kept: list[int] = []
    verified = Verified(result, [], {}, [], [])
    first = 0
    for sequence in sampled:
        held = 0 if sequence.discarded else _held(result.tokens, first, sequence.drafts)
        last = first + held
        if held and (last in bad or last in astray):
            (verified.bad if last in bad else verified.astray).append(sequence)
            last -= 1
        if sequence.verifying:
            verified.right[sequence] = last - first
        kept += range(first, last + 1)
        verified.sampled.extend([sequence] * (last + 1 - first))
        first += 1 + len(sequence.drafts)
    logprobs = None if result.logprobs is None else [result.logprobs[place] for place in kept]
    shortened = replace(
        result,
        tokens=[result.tokens[place] for place in kept],
        logprobs=logprobs,
        bad=tuple(place for place, choice in enumerate(kept) if choice in bad),
        astray=tuple(place for place, choice in enumerate(kept) if choice in astray),
    )
    return replace(verified, result=shortened)


def _held(tokens: list[int], first: int, guesses: list[int]) -> int:
    """How many guesses were right, one after the other."""
    for place, guess in enumerate(guesses):
        if tokens[first + place] != guess:
            return place
    return len(guesses)


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
