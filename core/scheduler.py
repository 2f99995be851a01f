"""The policy of the engine: which sequences compute which tokens in the next step.

Pure: integers, an injected clock and an injected seed; no I/O, no tensors, no threads. The engine calls, in a loop:

    deltas += scheduler.expire()                  # every turn, also while idle: deadlines
    batch = scheduler.schedule()                  # may run one step ahead of commit
    ...
    deltas += scheduler.commit(oldest, result)    # in the order of schedule(); or fail(oldest, kind, message)
"""

from __future__ import annotations

from collections.abc import Callable

from mainspring.core.batch import Batch, Buckets, StepResult
from mainspring.core.blocks import BlockPool
from mainspring.core.errors import ErrorKind
from mainspring.core.metrics import Stats
from mainspring.core.request import Delta, RequestId, Submit


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
    ) -> None:
        raise NotImplementedError

    @property
    def has_work(self) -> bool:
        """Whether any request is live."""
        raise NotImplementedError

    def submit(self, submit: Submit) -> None:
        """Takes a request. Raises `RequestError` (INVALID, OVERLOADED with retry_after, SHUTTING_DOWN)."""
        raise NotImplementedError

    def cancel(self, request_id: RequestId, index: int | None = None) -> list[Delta]:
        """Ends a request, or one of its sequences, now. Unknown ids give no deltas."""
        raise NotImplementedError

    def expire(self) -> list[Delta]:
        """Ends every request whose deadline has passed. Call it once a turn of the loop, also while nothing runs."""
        raise NotImplementedError

    def schedule(self) -> Batch | None:
        """The next step, or None when nothing can be computed before the next commit or submit."""
        raise NotImplementedError

    def commit(self, batch: Batch, result: StepResult) -> list[Delta]:
        """Takes the oldest scheduled step's tokens. Batches are committed (or failed) in the order of `schedule`."""
        raise NotImplementedError

    def fail(self, batch: Batch, kind: ErrorKind, message: str) -> list[Delta]:
        """The oldest scheduled step failed as a whole: its sequences end with this error, and no others."""
        raise NotImplementedError

    def drain(self) -> None:
        """Refuses new requests from now on; those already taken run to their end."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """Gauges as of now and counters since start."""
        raise NotImplementedError

    def check(self) -> list[str]:
        """Sentences about broken invariants, for tests and for idle moments; empty when all is well."""
        raise NotImplementedError
