"""What sequences say to those who asked: a committed step's tokens become deltas, and sequences end, each for a reason.

Which tokens of a step hold is decided before (`verifying.py`); what an ended sequence gives back is the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

from mainspring.core.batch import StepResult
from mainspring.core.errors import ErrorKind
from mainspring.core.request import Delta, FinishReason
from mainspring.core.scheduling.ledger import Ledger
from mainspring.core.scheduling.sequence import Sequence, State
from mainspring.core.scheduling.step import Step

_ASTRAY = (
    "the answer cannot be held to its grammar any longer: following it takes too much work, or the request's other "
    "parameters leave none of its tokens"
)


class Answering:
    """Makes the deltas of one ledger's sequences. `later` are the steps that were planned and not committed yet."""

    def __init__(self, ledger: Ledger, later: Iterable[Step], eos_token_ids: frozenset[int]) -> None:
        self._ledger = ledger
        self._later = later
        self._eos = eos_token_ids

    def take(self, sampled: list[Sequence], result: StepResult) -> tuple[list[Delta], int]:
        """A delta for each of the step's tokens that somebody waits for, and how many tokens those deltas hold.

        `sampled` are the sequences that chose, in the result's order. This is the hot loop of a commit.
        """
        deltas: list[Delta] = []
        late: list[Sequence] = []
        withheld = 0
        decoding = State.DECODING
        for sequence, token, logprobs in zip(sampled, result.tokens, result.logprobs or repeat(None)):  # noqa: B905
            if sequence.state is not decoding:
                if not self._ledger.accepts_late(sequence):
                    continue
                late.append(sequence)
            sequence.in_flight -= 1
            known = sequence.tokens
            known.append(token)
            delta = Delta(sequence.request_id, sequence.index, [token])
            length = len(known)
            if length >= sequence.limit or (token in sequence.stop_ids and length > sequence.min_length):
                delta.finish = self._finish_reason(sequence, token)
                self._ledger.retire(sequence)
                if sequence.params.max_tokens == 0:
                    delta.tokens, delta.finish, logprobs = [], FinishReason.LENGTH, None
                    withheld += 1
            if logprobs is not None:
                delta.logprobs = [logprobs]
            if sequence.start is not None:
                delta.start, sequence.start = sequence.start, None
                if sequence.request.scores is not None:
                    delta.prompt_logprobs = sequence.request.scores.deliver()
            deltas.append(delta)
        for sequence in late:
            self._ledger.return_recalled(sequence)
        return deltas, len(deltas) - withheld

    def refuse(self, step: Step, result: StepResult) -> list[Delta]:
        """Ends those whose part of a result is worthless; hands what it says of prompts to those who asked."""
        deltas = self.reject([step.sampled[place] for place in result.bad]) if result.bad else []
        if result.astray:
            deltas += self.end_astray([step.sampled[place] for place in result.astray])
        if step.scored:
            for request in step.answer_scores(result.prompt_logprobs):
                deltas += self.reject(list(request.sequences))
        return deltas

    def reject(self, rows: list[Sequence]) -> list[Delta]:
        """Ends sequences whose numbers are none, one for each row that had such; nobody finds what they computed."""
        self._ledger.counters.nan_rows += len(rows)
        # Whoever starts again because it found another's bad blocks is not itself to blame.
        sequences = [sequence for sequence in rows if not sequence.discarded]
        self._ledger.distrust(sequences, self._later)
        return self.end_all(sequences, ErrorKind.NUMERICAL, "the model produced NaN or infinity for this request")

    def end_astray(self, sequences: list[Sequence]) -> list[Delta]:
        """Ends sequences that cannot be held to their grammars."""
        return self.end_all(sequences, ErrorKind.INVALID, _ASTRAY)

    def end_all(self, sequences: list[Sequence], kind: ErrorKind, message: str) -> list[Delta]:
        """Ends those of the sequences that live with an error."""
        return [self._end(sequence, FinishReason.ERROR, kind, message) for sequence in sequences if _is_live(sequence)]

    def cancel(self, sequences: list[Sequence]) -> list[Delta]:
        """Ends those of the sequences that live because nobody wants them any more."""
        return [self._end(sequence, FinishReason.CANCELLED) for sequence in sequences if _is_live(sequence)]

    def _end(
        self, sequence: Sequence, finish: FinishReason, error: ErrorKind | None = None, message: str = ""
    ) -> Delta:
        self._ledger.retire(sequence)
        return Delta(sequence.request_id, sequence.index, [], finish, None, error, message)

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason:
        if token not in sequence.stop_ids or len(sequence.tokens) <= sequence.min_length:
            return FinishReason.LENGTH
        ends = token in self._eos and not sequence.params.ignore_eos
        return FinishReason.EOS if ends else FinishReason.STOP


def _is_live(sequence: Sequence) -> bool:
    return sequence.state is not State.FINISHED
