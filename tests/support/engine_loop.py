"""The engine's loop without processes: schedule, execute, commit up to some steps later."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from mainspring.core.batch import Batch
from mainspring.core.errors import DeviceOutOfMemory, ErrorKind
from mainspring.core.execution.pending import StepPending
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.request import Delta, Submit, TokenLogprobs
from mainspring.core.scheduling.scheduler import Scheduler

Outputs = dict[tuple[int, int], list[int]]


class EngineLoop:
    """A scheduler and the core's executor, joined as the engine joins them."""

    def __init__(self, executor: GraphExecutor, scheduler: Scheduler, ahead: int) -> None:
        self.executor = executor
        self.scheduler = scheduler
        self.ahead = ahead
        self.deltas: list[Delta] = []
        self.flying: deque[tuple[Batch, StepPending]] = deque()

    def serve(self, submits: Sequence[Submit]) -> Outputs:
        """Tokens of each (request, index)."""
        for submit in submits:
            self.scheduler.submit(submit)
        while self.scheduler.has_work:
            batch = self.scheduler.schedule()
            if batch is not None:
                self.flying.append((batch, self.executor.execute(batch)))
            if self.flying and (len(self.flying) > self.ahead or batch is None):
                self._commit(*self.flying.popleft())
            assert self.scheduler.check() == []
        self.executor.close()
        return self.outputs()

    def _commit(self, batch: Batch, pending: StepPending) -> None:
        try:
            self.deltas += self.scheduler.commit(batch, pending.result())
        except DeviceOutOfMemory as error:
            self.deltas += self.scheduler.fail(batch, ErrorKind.OUT_OF_MEMORY, str(error))

    def outputs(self) -> Outputs:
        outputs: Outputs = defaultdict(list)
        for delta in self.deltas:
            outputs[delta.request_id, delta.index] += delta.tokens
        return dict(outputs)

    def errors(self) -> dict[int, ErrorKind]:
        return {delta.request_id: delta.error for delta in self.deltas if delta.error is not None}

    def prompt_logprobs(self) -> dict[int, list[TokenLogprobs]]:
        """Of each request that was told of its prompt; it may be told once."""
        told = [(delta.request_id, delta.prompt_logprobs) for delta in self.deltas if delta.prompt_logprobs is not None]
        assert len(dict(told)) == len(told)
        return dict(told)
