"""The policy of the engine: which sequences compute which tokens in the next step.

Pure: integers, an injected clock and an injected seed; no I/O, no tensors, no threads. The engine calls, in a loop:

    deltas += scheduler.expire()                  # every turn, also while idle: deadlines
    batch = scheduler.schedule()                  # may run ahead of commit, usually by one step
    deltas += scheduler.commit(oldest, result)    # in the order of schedule(); or fail(oldest, kind, message)

What the rest relies on: batches execute in the order they were scheduled. So rows and blocks of a sequence that ended
are given out again at once, though a batch already scheduled may still write to them: whoever gets them writes later
than that. And a block may be found in the prefix cache once a scheduled batch fills it: only later batches find it.

Order among sequences is one number, their rank (`sequence.py`): priority, ageing and arrival. The best-ranked goes
first in the queue; the worst-ranked gives way when blocks run out. Shapes and sizes are `limits.py`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from copy import copy

from mainspring.core.batch import Batch, Buckets, StepResult
from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.metrics import Stats
from mainspring.core.request import Delta, RequestId, Submit
from mainspring.core.scheduling.answering import Answering
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.ledger import Ledger
from mainspring.core.scheduling.limits import derive_limits
from mainspring.core.scheduling.planner import Planner
from mainspring.core.scheduling.prompt_scores import PromptScores
from mainspring.core.scheduling.sequence import Request, Sequence, State
from mainspring.core.scheduling.step import Step
from mainspring.core.scheduling.verifying import Verified, joined, verify
from mainspring.core.scheduling.waiting import Deadlines
from mainspring.core.speculation.speculation import Speculation

LONGEST_RETRY = 60.0
"""Seconds: the most a refused client is told to wait."""


class Scheduler:
    """Owns every live request from `submit` to its last delta."""

    def __init__(
        self,
        *,
        pool: BlockPool,
        max_sequences: int,
        max_length: int,
        max_batch_tokens: int,
        max_prefill_chunk: int | None = None,
        max_waiting_requests: int = 1024,
        max_waiting_tokens: int = 4_000_000,
        eos_token_ids: tuple[int, ...] = (),
        buckets: Buckets | None = None,
        mixes_prefill_and_decode: bool = True,
        clock: Callable[[], float],
        seed: int = 0,
        speculation: Speculation | None = None,
    ) -> None:
        """Raises `ValueError` when nothing could ever be scheduled under these limits."""
        self.limits = derive_limits(
            pool=pool,
            max_sequences=max_sequences,
            max_length=max_length,
            max_batch_tokens=max_batch_tokens,
            max_prefill_chunk=max_prefill_chunk,
            buckets=buckets,
            mixes=mixes_prefill_and_decode,
        )
        self._max_waiting_requests = max_waiting_requests
        self._max_waiting_tokens = max_waiting_tokens
        self._eos = frozenset(eos_token_ids)
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311  (noise for sampling, no secret)
        self._ledger = Ledger(pool, self.limits.max_sequences)
        self._planner = Planner(self.limits, self._ledger, speculation)
        self._speculation = speculation
        self._committed_at: float | None = None
        self._deadlines = Deadlines()
        self._pending: deque[Step] = deque()
        self._answering = Answering(self._ledger, self._pending, self._eos)
        self._draining = False
        self._numbers = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is live or any step uncommitted."""
        return bool(self._ledger.requests or self._pending)

    def submit(self, submit: Submit) -> None:
        """Takes a request. Raises `RequestError`: INVALID, OVERLOADED (with `retry_after`) or SHUTTING_DOWN."""
        if self._draining:
            raise RequestError(ErrorKind.SHUTTING_DOWN, "the server is shutting down and takes no new requests")
        if submit.request_id in self._ledger.requests:
            raise RequestError(ErrorKind.INVALID, f"request {submit.request_id} is live already; choose another id")
        self.limits.validate(submit)
        self._check_load(len(submit.tokens))
        now = self._clock()
        deadline = None if submit.timeout is None else now + submit.timeout
        request = Request(submit, self._numbers, now, deadline, _prompt_scores(submit))
        self._numbers += submit.n
        request.sequences = self._make_sequences(request)
        self._deadlines.add(request, len(self._ledger.requests))
        self._ledger.enroll(request)

    def cancel(self, request_id: RequestId, index: int | None = None) -> list[Delta]:
        """Ends a request, or one of its sequences, now. Unknown ids give no deltas."""
        request = self._ledger.requests.get(request_id)
        if request is None:
            return []
        ending = [sequence for sequence in request.sequences if index is None or sequence.index == index]
        deltas = self._answering.cancel(ending)
        self._ledger.counters.requests_aborted += bool(deltas) and not request.live
        return deltas

    def expire(self) -> list[Delta]:
        """Ends every request whose deadline has passed. Called once a turn of the loop, also while nothing runs."""
        deltas = []
        for request in self._deadlines.passed(self._clock()):
            message = f"the request did not finish within its timeout of {request.submit.timeout:g} s; allow it more"
            deltas += self._answering.end_all(request.sequences, ErrorKind.DEADLINE, message)
        return deltas

    def drain(self) -> None:
        """Refuses new requests from now on; those already taken run to their end."""
        self._draining = True

    def schedule(self) -> Batch | None:
        """The next step, or None when nothing can be computed before the next commit or submit."""
        counters = self._ledger.counters
        step = self._planner.plan(counters.steps + 1, self._clock())
        if step is None:
            return None
        self._pending.append(step)
        counters.steps += 1
        counters.batch_tokens = step.batch.num_tokens
        return step.batch

    def commit(self, batch: Batch, result: StepResult) -> list[Delta]:
        """Takes the oldest uncommitted step's tokens. Steps are committed, or failed, in the order of `schedule`."""
        step = self._oldest(batch)
        choices = len(step.sampled) + sum(len(draft.tokens) for draft in batch.drafts)
        if len(result.tokens) != choices:
            raise ValueError(f"step {batch.step} samples {choices} tokens, its result has {len(result.tokens)}")
        verified = None if self._speculation is None else self._verify(step, result, self._speculation)
        if verified is not None:
            step.sampled, result = verified.sampled, verified.result
        deltas = self._answering.refuse(step, result)
        taken, num_tokens = self._answering.take(step.sampled, result)
        deltas += taken
        if self._speculation is not None:
            self._watch(step, len(deltas), self._speculation)
        self._ledger.counters.generated_tokens += num_tokens
        if verified is not None:
            deltas = joined(deltas)
            deltas += self._answering.reject(verified.bad) if verified.bad else []
            deltas += self._answering.end_astray(verified.astray)
        return deltas

    def fail(self, batch: Batch, kind: ErrorKind, message: str) -> list[Delta]:
        """The oldest uncommitted step failed as a whole: its sequences end with this error, and no others.

        Sequences of later steps that rely on what the failed one should have computed start again. An executor applies
        the table changes of a failed batch (admissions, new blocks) as those of any other.
        """
        step = self._oldest(batch)
        self._ledger.distrust(step.sequences, self._pending)
        return self._answering.end_all(step.sequences, kind, message)

    def stats(self) -> Stats:
        """Gauges as of now and counters since start. The caller owns the result."""
        ledger = self._ledger
        stats = copy(ledger.counters)
        stats.running = len(ledger.running)
        stats.waiting = ledger.live - stats.running
        stats.waiting_tokens = ledger.queue.tokens
        stats.blocks_used = ledger.pool.num_used
        return stats

    def check(self) -> list[str]:
        """Sentences about broken invariants, for tests and idle moments; empty when all is well."""
        return self._ledger.check()

    def _verify(self, step: Step, result: StepResult, speculation: Speculation) -> Verified | None:
        """What holds of a step in which somebody drafted; None for other steps."""
        if not step.drafting:
            return None
        verified, counters = verify(step.sampled, result), self._ledger.counters
        for sequence in step.drafting:
            right, drafted = verified.right[sequence], len(sequence.drafts)
            speculation.verified(sequence, right, drafted)
            counters.draft_rows += bool(drafted)
            counters.draft_tokens += drafted
            counters.accepted_tokens += right
            sequence.drafts, sequence.verifying = [], False
            sequence.in_flight += right  # as many results are to come as tokens
            if sequence.state is State.DECODING:
                sequence.computed = len(sequence.tokens) + right
        for sequence, guesses in zip(step.wanting, result.drafts):  # noqa: B905  (executors may guess nothing at all)
            speculation.offer(sequence, list(guesses), len(sequence.tokens) + 1 + verified.right[sequence])
        return verified

    def _watch(self, step: Step, num_tokens: int, speculation: Speculation) -> None:
        """Tells the gate what a step brought in what time, if the device had work all the while."""
        now, before = self._clock(), self._committed_at
        self._committed_at = now if self._ledger.running.decoding else None
        if before is not None and step.only_decodes:
            drafting = step.waiting or bool(step.drafting)
            speculation.gate.saw(len(self._ledger.running.decoding) or 1, num_tokens, now - before, drafting=drafting)

    def _check_load(self, tokens: int) -> None:
        requests, waiting_tokens = self._would_wait(tokens)
        if requests > self._max_waiting_requests:
            problem = f"{requests - 1} requests wait, and at most {self._max_waiting_requests} may"
        elif requests > 1 and waiting_tokens > self._max_waiting_tokens:
            problem = (
                f"{waiting_tokens - tokens} tokens wait, and at most {self._max_waiting_tokens} may with this "
                f"prompt's {tokens}"
            )
        else:
            return
        retry_after = min(max(1.0, self._ledger.last_wait), LONGEST_RETRY)
        raise RequestError(
            ErrorKind.OVERLOADED, f"{problem}; try again in {retry_after:.0f} s", retry_after=retry_after
        )

    def _would_wait(self, tokens: int) -> tuple[int, int]:
        """Requests, and their tokens, that would wait with one more of so many tokens.

        Of a burst the queue holds everything until the next step is planned; what then finds a row and blocks does not
        count. Who that is depends on ranks, so it is counted at the mean length of all of them.
        """
        queue, pool = self._ledger.queue, self._ledger.pool
        requests, total = len(queue) + 1, queue.tokens + tokens
        blocks = pool.blocks_for(total) + requests
        enter = min(len(self._ledger.running.free_rows), requests * pool.num_free // blocks)
        waiting = max(requests - enter, 0)
        return waiting, total * waiting // requests

    def _make_sequences(self, request: Request) -> list[Sequence]:
        submit = request.submit
        params, num_prompt = submit.params, len(submit.tokens) - submit.said
        seed = self._random.getrandbits(32) if params.seed is None else params.seed
        stop_ids = frozenset(params.stop_token_ids)
        return [
            Sequence(
                request=request,
                request_id=submit.request_id,
                index=index,
                rank=request.rank(index),
                priority=submit.priority,
                params=params,
                seed=seed + index,
                tokens=list(submit.tokens),
                num_prompt=num_prompt,
                limit=self.limits.length(num_prompt, params),
                min_length=num_prompt + params.min_tokens,
                stop_ids=stop_ids if params.ignore_eos else stop_ids | self._eos,
            )
            for index in range(submit.n)
        ]

    def _oldest(self, batch: Batch) -> Step:
        if not self._pending or self._pending[0].batch is not batch:
            expected = self._pending[0].batch.step if self._pending else None
            raise ValueError(f"step {batch.step} is answered, but the oldest uncommitted step is {expected}")
        return self._pending.popleft()


def _prompt_scores(submit: Submit) -> PromptScores | None:
    top = submit.params.prompt_logprobs
    return None if top is None else PromptScores(len(submit.tokens), top)
