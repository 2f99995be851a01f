"""Batches made by hand: a scheduler so plain that a test can see what it does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mainspring.core.batch import Admission, Batch, Bucket, Buckets, StepResult
from mainspring.core.execution.pending import StepPending
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.request import SamplingParams, TokenLogprobs

GREEDY = SamplingParams()


@dataclass
class Running:
    """One sequence. Its blocks are fixed from the start."""

    row: int
    prompt: list[int]
    blocks: list[int]
    params: SamplingParams = GREEDY
    seed: int = 0
    num_prompt_tokens: int | None = None
    """Less than the prompt's length when the sequence comes back from a preemption."""
    computed: int = 0
    planned: int = 0
    """Tokens sampled or to be sampled by steps in flight."""
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    bad: bool = False

    @property
    def decodes(self) -> bool:
        return self.computed >= len(self.prompt)

    def admission(self) -> Admission:
        num_prompt = len(self.prompt) if self.num_prompt_tokens is None else self.num_prompt_tokens
        return Admission(self.row, self.prompt, num_prompt, self.params, self.seed, self.blocks)


def plan(step: int, sequences: Sequence[Running], chunk: int, buckets: Buckets | None = None) -> Batch:
    """One step over all sequences: chunks of prompts, one token of the others; decodes first."""
    batch = Batch(step)
    for sequence in sorted(sequences, key=lambda sequence: not sequence.decodes):
        decodes = sequence.decodes
        count = 1 if decodes else min(chunk, len(sequence.prompt) - sequence.computed)
        if sequence.computed == 0:
            batch.admissions.append(sequence.admission())
        batch.rows.append(sequence.row)
        batch.starts.append(sequence.computed)
        batch.counts.append(count)
        sequence.computed += count
        batch.samples.append(sequence.decodes)
        sequence.planned += sequence.decodes
        batch.num_decodes += decodes
    batch.num_tokens = sum(batch.counts)
    if buckets is not None:
        blocks = -(-max(start + count for start, count in zip(batch.starts, batch.counts, strict=True)) // 4)
        batch.bucket = fitting(buckets, batch, blocks)
    return batch


def fitting(buckets: Buckets, batch: Batch, blocks: int) -> Bucket:
    decode = batch.num_tokens == len(batch.rows)
    bucket = buckets.smallest(batch.num_tokens, len(batch.rows), blocks, decode=decode)
    assert bucket is not None
    return bucket


def take(batch: Batch, sequences: Sequence[Running], result: StepResult) -> None:
    """Hands a step's tokens to its sequences."""
    rows = [row for row, samples in zip(batch.rows, batch.samples, strict=True) if samples]
    assert len(rows) == len(result.tokens)
    by_row = {sequence.row: sequence for sequence in sequences}
    for index, row in enumerate(rows):
        by_row[row].output.append(result.tokens[index])
        by_row[row].bad |= index in result.bad
        if result.logprobs is not None:
            by_row[row].logprobs.append(result.logprobs[index])


def run(
    executor: GraphExecutor,
    sequences: Sequence[Running],
    num_tokens: int,
    *,
    chunk: int = 1000,
    ahead: int = 0,
    buckets: Buckets | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Generates `num_tokens` for every sequence, planning up to `ahead` steps past the oldest unknown token."""
    flying: deque[tuple[Batch, StepPending]] = deque()
    step = 0
    while True:
        live = [sequence for sequence in sequences if sequence.planned < num_tokens]
        if live:
            batch = plan(step, live, chunk, buckets)
            flying.append((batch, executor.execute(batch)))
            step += 1
        while flying and (len(flying) > ahead or not live):
            oldest, pending = flying.popleft()
            take(oldest, sequences, pending.result())
            after_step()
        if not live:
            return [sequence.output for sequence in sequences]
