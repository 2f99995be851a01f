"""One step while it is planned, and what the scheduler remembers of it until it is committed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mainspring.core.batch import Admission, Batch, Draft
from mainspring.core.request import TokenLogprobs
from mainspring.core.scheduling.limits import StepKind
from mainspring.core.scheduling.prompt_scores import PromptScores
from mainspring.core.scheduling.sequence import Request, Sequence


@dataclass(slots=True, eq=False)
class Step:
    """A batch and the sequences behind its rows, in the same order."""

    kind: StepKind
    batch: Batch
    tokens_left: int
    rows_left: int
    sequences: list[Sequence] = field(default_factory=list)
    sampled: list[Sequence] = field(default_factory=list)
    """Those of `sequences` that yield a token."""
    admitted: list[Sequence] = field(default_factory=list)
    """Those that got their row in this step: only they can have hit what earlier, uncommitted steps compute."""
    chunks: list[tuple[Sequence, int, int]] = field(default_factory=list)
    """(sequence, start, count) of rows that compute more than one token, which go to the end of the batch."""
    drafting: list[Sequence] = field(default_factory=list)
    """Those of the chunks' sequences that verify guesses, or ask for some."""
    wanting: dict[Sequence, None] = field(default_factory=dict)
    """Those of them for whose rows the executor is asked to guess on."""
    waiting: bool = False
    """Whether somebody sat this step out to draft in a later one."""
    scored: list[tuple[Request, PromptScores, int]] = field(default_factory=list)
    """Whose prompts the batch's `prompt_logprobs` are of, and the scores' epoch when they were asked for."""
    sources: list[int] = field(default_factory=list)
    """Blocks that the batch copies from, held until it is planned."""
    positions: int = 0
    """Positions that the longest row spans."""

    def add_decodes(self, sequences: list[Sequence]) -> None:
        """Adds rows that compute one token each and yield one. All at once: this is the hot loop."""
        if not sequences:
            return
        starts = [sequence.computed for sequence in sequences]
        for sequence in sequences:
            sequence.computed += 1
            sequence.in_flight += 1
        batch = self.batch
        batch.rows += [sequence.row for sequence in sequences]
        batch.starts += starts
        self.sequences += sequences
        self.sampled += sequences
        self.positions = max(self.positions, max(starts) + 1)
        self.tokens_left -= len(sequences)
        self.rows_left -= len(sequences)

    def add_chunk(self, sequence: Sequence, count: int) -> None:
        """Adds a row that computes `count` tokens of a prompt (or of what a preemption threw away)."""
        start = sequence.computed
        self.chunks.append((sequence, start, count))
        sequence.computed = start + count
        if sequence.computed == len(sequence.tokens):
            sequence.in_flight += 1
        self.positions = max(self.positions, start + count)
        self.tokens_left -= count
        self.rows_left -= 1

    def add_drafting(self, sequence: Sequence, guesses: list[int], *, wants: bool) -> None:
        """Adds a row that computes the sequence's last token and guesses behind it, and may ask for more of them."""
        count = 1 + len(guesses)
        self.chunks.append((sequence, sequence.computed, count))
        self.drafting.append(sequence)
        if wants:
            self.wanting[sequence] = None
        sequence.drafts, sequence.verifying = guesses, True
        sequence.computed += count
        sequence.in_flight += 1
        self.positions = max(self.positions, sequence.computed)
        self.tokens_left -= count
        self.rows_left -= 1

    def admit(self, sequence: Sequence) -> None:
        """Enters a sequence, which has its row and blocks, in the executor's table."""
        self.admitted.append(sequence)
        self.batch.admissions.append(
            Admission(
                row=sequence.row,
                tokens=list(sequence.tokens),
                num_prompt_tokens=sequence.num_prompt,
                params=sequence.params,
                seed=sequence.seed,
                blocks=list(sequence.blocks),
            )
        )

    def close(self) -> None:
        """Puts the rows of several tokens behind those of one, and counts."""
        batch = self.batch
        batch.counts = [1] * len(batch.rows)
        batch.samples = [True] * len(batch.rows)
        self.chunks.sort(key=_is_longer)
        for sequence, start, count in self.chunks:
            samples = sequence.verifying or start + count == len(sequence.tokens)
            if sequence in self.wanting:
                # In the order of rows, which is that of the result's drafts.
                self.wanting[sequence] = self.wanting.pop(sequence)
                batch.wanting.append(len(batch.rows))
            if sequence.drafts:
                batch.drafts.append(Draft(len(batch.rows), sequence.drafts))
            if sequence.request.scores is not None and not sequence.verifying:
                self._ask(sequence.request, sequence.request.scores, start, start + count)
            batch.rows.append(sequence.row)
            batch.starts.append(start)
            batch.counts.append(count)
            batch.samples.append(samples)
            self.sequences.append(sequence)
            if samples:
                self.sampled.append(sequence)
        longer = sum(1 for chunk in self.chunks if _is_longer(chunk))
        batch.num_decodes = len(batch.rows) - longer
        batch.num_tokens = sum(batch.counts)

    @property
    def only_decodes(self) -> bool:
        """Whether no prompt is in it."""
        return len(self.chunks) == len(self.drafting) and not self.admitted

    def answer_scores(self, found: Iterable[list[TokenLogprobs]]) -> list[Request]:
        """Hands what the batch's `prompt_logprobs` gave to those who asked; returns those whose numbers are none."""
        broken = []
        for (request, scores, epoch), tokens in zip(self.scored, found, strict=True):
            if epoch != scores.epoch:
                continue
            if any(entry.logprob != entry.logprob for entry in tokens):
                broken.append(request)
            else:
                scores.answer(tokens)
        return broken

    def _ask(self, request: Request, scores: PromptScores, start: int, end: int) -> None:
        asked = scores.ask(len(self.batch.rows), start, end)
        if asked is not None:
            self.batch.prompt_logprobs.append(asked)
            self.scored.append((request, scores, scores.epoch))


def _is_longer(chunk: tuple[Sequence, int, int]) -> bool:
    return chunk[2] > 1
