"""Warm-up: steps that compute for nobody, and the pace that they show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mainspring.core.backend import Pending, ProgressCallback
from mainspring.core.batch import Admission, Batch, Bucket, Buckets, Draft, PromptRange
from mainspring.core.execution.sampling import FEW_ENTRIES, FEW_LIKELIEST, MORE_ENTRIES, MORE_LIKELIEST
from mainspring.core.execution.table import StateTable
from mainspring.core.plan import SCORED_ROWS
from mainspring.core.request import SamplingParams

WARMUP_TOKENS = 64
"""Tokens of the prefill step that machines without buckets warm up with: enough to load kernels and to time them."""

SLACK = 20.0
FLOOR_SECONDS = 30.0
"""A step may take this many times what warm-up measured, and never less than this, before it counts as hung."""

FEW_DRAFTING = 8
"""Rows up to which every program that drafts is warmed up."""

CONTEXT_TOKENS = 4096
"""Context at which attention is taken to double a token's cost. Only the order of magnitude matters."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that steps took, from above."""

    step: float = 0.0
    """Of the slowest step that was measured."""
    token: float = 0.0
    """Each token, at worst."""

    def seen(self, tokens: int, seconds: float) -> Pace:
        """With one more measurement."""
        # Steps of few tokens are all overhead; per token they would bound nothing.
        token = seconds / tokens if tokens >= WARMUP_TOKENS // 2 else 0.0
        return replace(self, step=max(self.step, seconds), token=max(self.token, token))

    def bound(self, tokens: int, context: int) -> float:
        """Seconds past which a step of this many tokens, the longest at this context, counts as hung."""
        return FLOOR_SECONDS + SLACK * (self.step + self.token * tokens) * (1 + context / CONTEXT_TOKENS)


def warm_up(
    execute: Callable[[Batch], Pending],
    table: StateTable,
    buckets: Buckets | None,
    progress: ProgressCallback,
    *,
    max_tokens: int,
    static: bool,
    drafts: bool,
    verifies: bool,
) -> Pace:
    """Runs every bucket, or one decode and one prefill step of at most `max_tokens`, and returns the device's pace.

    Each program runs twice, since the first run may compile; the second is timed. `static`: whatever may ever run is
    met here, in the shapes it will have. `drafts`: steps behind which a drafter runs are, too. `verifies`: so are small
    steps that choose behind each token.
    """
    pace = Pace()
    batches = dummy_batches(buckets, table, max_tokens, verifies=verifies)
    for done, batch in enumerate(batches):
        progress("warm-up", done, len(batches))
        execute(batch).result()
        began = time.monotonic()
        execute(batch).result()
        pace = pace.seen(batch.num_tokens, time.monotonic() - began)
    if drafts:
        drafting = list(drafting_batches(batches, every=static))
        for batch in drafting:
            execute(batch).result()
        batches = drafting if static else batches
    if static:
        for batch in shaped_batches(batches, table):
            execute(batch).result()
        for rows, batch in one_for_each_count(batches).items():
            _choose(execute, table, batch, (*shaped_variants(rows), *table.sampling.processors.variants()))
    else:
        _choose(execute, table, batches[-1], sampling_variants())
    progress("warm-up", len(batches), len(batches))
    return pace


def _choose(
    execute: Callable[[Batch], Pending], table: StateTable, batch: Batch, variants: Iterable[SamplingParams]
) -> None:
    """Runs a step once with each of these parameters for its rows, and leaves the plain ones behind."""
    for params in (*variants, SamplingParams()):
        table.admit(table.nobody, params)
        execute(batch).result()


def dummy_batches(
    buckets: Buckets | None, table: StateTable, max_tokens: int, *, verifies: bool = False
) -> list[Batch]:
    """One step a program. Large buckets come first, so that captured programs can share the memory of the largest.

    Where prefills are of any shape, one of the whole token budget goes before the decodes: it takes the memory that the
    largest step takes while there is still someone to tell.
    """
    if buckets is None:
        tokens = min(WARMUP_TOKENS, max_tokens, table.max_length)
        return [_decode(table, 1, None), _prefill(table, tokens, None)]
    descending = sorted(buckets.prefill, key=_size, reverse=True), sorted(buckets.decode, key=_size, reverse=True)
    prefills = [
        _prefill(table, min(bucket.tokens, bucket.blocks * table.block_size, table.max_length), bucket)
        for bucket in descending[0]
    ]
    if buckets.any_shape or not buckets.prefill:
        # Prefill buckets are then compiled when met: all but the largest, whose memory serves the others.
        prefills = [_prefill(table, min(max_tokens, table.max_length), None), *prefills[:1]]
        if verifies:
            prefills += [_verify(table, bucket) for bucket in descending[0] if 1 < bucket.tokens == bucket.sequences]
    return prefills + [_decode(table, bucket.sequences, bucket) for bucket in descending[1]]


def drafting_batches(batches: Sequence[Batch], *, every: bool) -> Iterator[Batch]:
    """These steps with drafts wanted for all rows: each where shapes must not vary, else the largest decode and the
    small ones, for large ones draft rarely.
    """
    if every:
        yield from (replace(batch, wanting=list(range(len(batch.rows)))) for batch in batches)
        return
    decodes = [batch for batch in batches if batch.num_tokens == len(batch.rows)]
    for place, batch in enumerate(decodes):
        if place == 0 or len(batch.rows) <= FEW_DRAFTING:
            yield replace(batch, wanting=list(range(len(batch.rows))))


def sampling_variants() -> tuple[SamplingParams, ...]:
    """Parameters that between them use every stage of the op `sample`, so that its kernels load."""
    drawn = SamplingParams(temperature=1.0)
    return drawn, SamplingParams(temperature=1.0, top_k=8, top_p=0.9, typical_p=0.9, min_p=0.1), SamplingParams()


def shaped_batches(batches: Sequence[Batch], table: StateTable) -> Iterator[Batch]:
    """For machines that compile all they run, what `dummy_batches` leaves out: an admission, a copy, long answers."""
    admission = Admission(table.nobody, [0], 1, SamplingParams(), seed=0, blocks=[0])
    yield replace(batches[-1], admissions=[admission], copies=[(0, 0)])
    for batch in batches:
        if batch.prompt_logprobs:
            yield replace(
                batch, prompt_logprobs=[replace(asked, top=MORE_LIKELIEST) for asked in batch.prompt_logprobs]
            )


def shaped_variants(rows: int) -> Iterator[SamplingParams]:
    """Likewise parameters which between them use every program that chooses tokens for so many rows."""
    yield from sampling_variants()
    yield SamplingParams(temperature=1.0, top_p=0.9)
    yield SamplingParams(logprobs=FEW_LIKELIEST, repetition_penalty=2.0)
    yield SamplingParams(logprobs=MORE_LIKELIEST)
    for size in (FEW_ENTRIES, MORE_ENTRIES):
        few = tuple(range(size // rows))
        yield SamplingParams(logit_bias=dict.fromkeys(few, 1.0), min_tokens=1, stop_token_ids=few)


def one_for_each_count(batches: Sequence[Batch]) -> dict[int, Batch]:
    """By the number of rows that choose, the smallest step that has so many."""
    return {batch.bucket.sequences: batch for batch in batches if batch.bucket is not None}


def _size(bucket: Bucket) -> tuple[int, int, int]:
    return bucket.tokens, bucket.sequences, bucket.blocks


def _decode(table: StateTable, rows: int, bucket: Bucket | None) -> Batch:
    return Batch(
        step=-1,
        rows=[table.nobody] * rows,
        starts=[0] * rows,
        counts=[1] * rows,
        samples=[True] * rows,
        num_decodes=rows,
        num_tokens=rows,
        bucket=bucket,
    )


def _verify(table: StateTable, bucket: Bucket) -> Batch:
    """Every row guesses one token ahead."""
    rows = bucket.tokens // 2
    drafts = [Draft(row, (0,)) for row in range(rows)]
    return replace(_decode(table, rows, bucket), counts=[2] * rows, num_decodes=0, num_tokens=2 * rows, drafts=drafts)


def _prefill(table: StateTable, tokens: int, bucket: Bucket | None) -> Batch:
    scored = min(tokens - 1, SCORED_ROWS)
    return Batch(
        step=-1,
        rows=[table.nobody],
        starts=[0],
        counts=[tokens],
        samples=[True],
        num_tokens=tokens,
        prompt_logprobs=[PromptRange(0, 1, scored, 0)] if scored else [],
        bucket=bucket,
    )
