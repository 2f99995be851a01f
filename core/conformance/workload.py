"""Requests that make an executor do everything once: the core's own scheduler decides, step by step.

Prompts around a block's end, one longer than a chunk, two that share a prefix, more of them than may run at once, and
so few blocks that some must wait or start again. Steps are planned one ahead of the last answer, as in the engine.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mainspring.core.backend import Executor, Pending
from mainspring.core.batch import Batch
from mainspring.core.request import Delta, RequestId, SamplingParams, Submit, TokenLogprobs
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler

MAX_SEQUENCES = 4
NEW_TOKENS = 6
LENGTH_BLOCKS = 6
"""Blocks of the longest sequence that may be."""
NUM_BLOCKS = 15
"""Fewer than `MAX_SEQUENCES` long sequences have."""


@dataclass(slots=True)
class Answer:
    """What one request got."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    error: str = ""


def prompts(block_size: int, vocabulary: int) -> list[list[int]]:
    """Of different lengths. The last two begin with the blocks of the first."""
    source = random.Random(5)  # noqa: S311  (test data)
    size = block_size
    found = [
        [source.randrange(vocabulary) for _ in range(length)]
        for length in (2 * size + 3, 1, size - 1, size, size + 1, 4 * size + 1)
    ]
    return [*found, [*found[0][: 2 * size], 1, 2, 3], [*found[0][: 2 * size - 1], 7]]


def scheduler_for(executor: Executor, *, prefix_caching: bool, mixes: bool) -> Scheduler:
    """The scheduler that the engine would build, with chunks of one block."""
    spec = executor.kv_spec()
    return Scheduler(
        pool=BlockPool(executor.num_blocks(), spec.block_size, prefix_caching=prefix_caching),
        max_sequences=MAX_SEQUENCES,
        max_length=LENGTH_BLOCKS * spec.block_size,
        max_batch_tokens=max_batch_tokens(spec.block_size),
        max_prefill_chunk=spec.block_size + 2,
        buckets=executor.buckets(),
        mixes_prefill_and_decode=mixes,
        clock=time.monotonic,
    )


def max_batch_tokens(block_size: int) -> int:
    """Tokens of a step: less than the longest prompt, so that it comes in chunks."""
    return 2 * block_size


def serve(
    executor: Executor,
    scheduler: Scheduler,
    wanted: list[list[int]],
    *,
    logprobs: int | None = None,
    before: Callable[[Batch], None] = lambda batch: None,
) -> list[Answer]:
    """Greedy continuations of all prompts, submitted in two waves. `before` sees each step before it runs."""
    answers = [Answer(prompt) for prompt in wanted]
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=logprobs)
    first = max(1, len(wanted) - 2)
    for wave in (range(first), range(first, len(wanted))):
        for number in wave:
            scheduler.submit(Submit(RequestId(number), wanted[number], params))
        for delta in _steps(executor, scheduler, before):
            answer = answers[delta.request_id]
            answer.tokens += delta.tokens
            answer.logprobs += delta.logprobs or []
            answer.error = answer.error or delta.message
    return answers


def _steps(executor: Executor, scheduler: Scheduler, before: Callable[[Batch], None]) -> Iterator[Delta]:
    flying: deque[tuple[Batch, Pending]] = deque()
    while scheduler.has_work:
        batch = scheduler.schedule()
        if batch is not None:
            before(batch)
            flying.append((batch, executor.execute(batch)))
        if flying and (batch is None or len(flying) > 1):
            oldest, pending = flying.popleft()
            yield from scheduler.commit(oldest, pending.result())
