"""The engine process: the loop that carries messages to the scheduler, plans to the executor and deltas to the server.

    receive -> schedule step N+1 -> enqueue it -> await step N -> commit it -> emit

The host always plans one step ahead of the device, so the device never waits for it. The loop decides nothing: policy
is `core/scheduling/scheduler.py`, computing is the `Executor`'s. Below it is the process's entry, `python -m
mainspring.core.engine`, which puts together what `core/composition.py` builds.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
from dataclasses import dataclass

from mainspring.core import lifeline
from mainspring.core.backend import Executor, Pending
from mainspring.core.batch import Batch
from mainspring.core.border import check_numbers
from mainspring.core.channel import EngineChannel, EngineStart, Malformed, read_start
from mainspring.core.composition import build_executor, build_scheduler, describe
from mainspring.core.errors import (
    EXIT_DRAIN_OVERRUN,
    EXIT_ENGINE,
    EXIT_STARTUP,
    ChannelClosed,
    DeviceOutOfMemory,
    ErrorKind,
    RequestError,
    StartupError,
)
from mainspring.core.grammar.store import Grammars
from mainspring.core.grammar.waiting import GrammarQueue
from mainspring.core.metrics import Stats
from mainspring.core.plan import make_plan
from mainspring.core.processors.forms import ProcessorForms
from mainspring.core.request import (
    Cancel,
    Delta,
    Drain,
    FinishReason,
    Progress,
    Ready,
    RequestId,
    StartupFailed,
    StepOutput,
    Submit,
    ToEngine,
    Vocabulary,
)
from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.setting import settle

_log = logging.getLogger(__name__)

_READING_SECONDS = 0.002
"""How often an engine with nothing else to do looks whether a grammar has been read."""
_LOOK_SECONDS = 0.25
"""How often an engine that waits to be joined looks whether its server lives."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A step that the device has been given."""

    batch: Batch
    pending: Pending


class Engine:
    """The loop. `run` returns the process's exit code."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        channel: EngineChannel,
        *,
        vocab_size: int,
        grammars: Grammars | None = None,
        processors: ProcessorForms | None = None,
        heartbeat_seconds: float = 0.25,
        grace_seconds: float = 5.0,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._channel = channel
        self._vocab_size = vocab_size
        self._grammars = grammars or Grammars(vocab_size)
        self._processors = processors or ProcessorForms()
        self._reading = GrammarQueue(self._grammars)
        self._heartbeat_seconds = heartbeat_seconds
        self._grace_seconds = grace_seconds
        self._in_flight: InFlight | None = None
        self._live: dict[RequestId, set[int]] = {}
        """Sequences that have not been answered to the end; what a crash must answer."""
        self._stats = Stats()
        self._step = 0
        self._idle = True
        self._draining = False
        self._stopped = False

    def run(self) -> int:
        """Serves until drained or stopped. Whatever a turn raises means that the device or the books are lost."""
        try:
            while not self._done():
                self.turn()
        except Exception:  # noqa: BLE001  the loop's own border: nothing above it can answer the requests
            _log.exception("the engine failed in step %d", self._step)
            self._answer_all(ErrorKind.ENGINE_DEAD, "the engine failed and the server is going down")
            return EXIT_ENGINE
        if not self._live:
            return 0
        self._answer_all(ErrorKind.SHUTTING_DOWN, "the server is shutting down")
        return EXIT_DRAIN_OVERRUN

    def turn(self) -> None:
        """One round of the loop."""
        deltas = self._receive()
        for submit, problem, cancels in self._reading.ready():
            deltas += self._schedule(submit, problem)
            for cancel in cancels:
                deltas += self._scheduler.cancel(cancel.request_id, cancel.index)
        deltas += self._scheduler.expire()
        landing, self._in_flight = self._in_flight, self._launch()
        if landing is not None:
            deltas += self._land(landing)
        self._idle = landing is None and self._in_flight is None
        self._emit(deltas)

    def terminate(self) -> None:
        """For a signal handler: the first call drains, the second stops without waiting for running requests."""
        self._stopped = self._draining
        self._draining = True

    def _done(self) -> bool:
        working = self._in_flight is not None or self._scheduler.has_work or len(self._reading) > 0
        return self._stopped or (self._draining and not working)

    def _receive(self) -> list[Delta]:
        deltas: list[Delta] = []
        idle_seconds = _READING_SECONDS if self._reading else self._heartbeat_seconds
        for message in self._channel.receive(idle_seconds if self._idle else 0.0):
            deltas += self._take(message)
        if self._draining:
            self._scheduler.drain()
        return deltas

    def _take(self, message: ToEngine | Malformed) -> list[Delta]:
        match message:
            case Submit():
                return self._submit(message)
            case Cancel():
                if self._reading.cancel(message):
                    return []
                return self._scheduler.cancel(message.request_id, message.index)
            case Drain():
                self._draining = True
                self._scheduler.drain()
            case Vocabulary():
                self._grammars.learn(message)
            case Malformed():
                _log.error("a message cannot be read: %s", message.reason)
                if message.request_id is not None:
                    return _refusals(message.request_id, message.n, ErrorKind.INTERNAL, "the request cannot be read")
        return []

    def _submit(self, submit: Submit) -> list[Delta]:
        try:
            check_numbers(submit, self._vocab_size)
            self._processors.check(submit.params.processors)
            waits = self._reading.add(submit)
        except RequestError as error:
            return _refusals(submit.request_id, submit.n, error.kind, error.message)
        self._live[submit.request_id] = set(range(submit.n))
        return [] if waits else self._schedule(submit)

    def _schedule(self, submit: Submit, problem: RequestError | None = None) -> list[Delta]:
        try:
            if problem is not None:
                raise problem
            self._scheduler.submit(submit)
        except RequestError as error:
            return _refusals(submit.request_id, submit.n, error.kind, error.message)
        return []

    def _launch(self) -> InFlight | None:
        batch = self._scheduler.schedule()
        return None if batch is None else InFlight(batch, self._executor.execute(batch))

    def _land(self, step: InFlight) -> list[Delta]:
        self._step = step.batch.step
        try:
            result = step.pending.result()
        except DeviceOutOfMemory as error:
            _log.error("step %d of %d tokens did not fit: %s", step.batch.step, step.batch.num_tokens, error)
            message = "the device ran out of memory on this request"
            return self._scheduler.fail(step.batch, ErrorKind.OUT_OF_MEMORY, message)
        return self._scheduler.commit(step.batch, result)

    def _emit(self, deltas: list[Delta]) -> None:
        large = []
        for delta in deltas:
            if delta.finish is not None:
                self._answered(delta)
            if delta.prompt_logprobs:
                large.append(delta)
        step = self._in_flight
        bound = self._heartbeat_seconds if step is None else self._executor.step_seconds(step.batch)
        self._stats = self._scheduler.stats()
        deadline = bound + self._grace_seconds
        if large:
            # Each is bounded (`border.MAX_PROMPT_LOGPROBS`), but together they may be larger than a frame. They go
            # ahead, being the first of their requests.
            deltas = [delta for delta in deltas if not delta.prompt_logprobs]
            for delta in large:
                self._channel.send(StepOutput(self._step, [delta], self._stats, deadline))
        self._channel.send(StepOutput(self._step, deltas, self._stats, deadline))

    def _answered(self, delta: Delta) -> None:
        indexes = self._live.get(delta.request_id)
        if indexes is not None:
            indexes.discard(delta.index)
            if not indexes:
                del self._live[delta.request_id]

    def _answer_all(self, kind: ErrorKind, message: str) -> None:
        """The last message: every live sequence ends with an error."""
        deltas = [
            _refusal(request_id, index, kind, message) for request_id in self._live for index in self._live[request_id]
        ]
        self._live.clear()
        self._channel.send(StepOutput(self._step, deltas, self._stats, self._grace_seconds))


def _refusals(request_id: RequestId, n: int, kind: ErrorKind, message: str) -> list[Delta]:
    return [_refusal(request_id, index, kind, message) for index in range(n)]


def _refusal(request_id: RequestId, index: int, kind: ErrorKind, message: str) -> Delta:
    return Delta(request_id, index, [], FinishReason.ERROR, error=kind, message=message)


# The entry


def main(directory: str) -> int:
    """The engine process from its start frame to its exit code.

    `directory`, of the channel's sockets, is known before the frame: a server may be killed before it has written that.
    """
    try:
        start = read_start(lambda size: os.read(sys.stdin.fileno(), size))
    except ChannelClosed:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    lifeline.tie_to_pipe(sys.stdin.fileno(), directory)
    lifeline.end_orphan(start.server_pid, directory)
    lifeline.listen_to_signals()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(name)s: %(message)s")
    channel = join(start, directory)
    lifeline.tie_to_parent(start.server_pid)
    try:
        return serve(start, channel)
    finally:
        channel.close()


def join(start: EngineStart, directory: str) -> EngineChannel:
    """The channel, once it is joined to the server's and its directory gone, whose names nobody needs any more."""
    channel = EngineChannel(start.to_engine, start.from_engine)
    while not channel.join(_LOOK_SECONDS):
        lifeline.end_orphan(start.server_pid, directory)
    shutil.rmtree(directory, ignore_errors=True)
    return channel


def serve(start: EngineStart, channel: EngineChannel) -> int:
    """Loads, says `Ready` and runs the loop; or says why it cannot start."""
    channel.send(Progress("starting", 0, 1))
    try:
        engine, executor, ready = compose(start, channel)
    except StartupError as error:
        channel.send(StartupFailed(error.reasons))
        return EXIT_STARTUP
    except Exception as error:  # noqa: BLE001  the process's own border: the operator must hear the reason
        _log.exception("start-up failed")
        channel.send(StartupFailed((f"start-up failed: {type(error).__name__}: {error}; the log has the trace",)))
        return EXIT_STARTUP
    signal.signal(signal.SIGTERM, lambda number, frame: engine.terminate())
    # What start-up made lives for ever: the collector need not look at it again.
    gc.freeze()
    channel.send(ready)
    try:
        return engine.run()
    finally:
        executor.close()


def compose(start: EngineStart, channel: EngineChannel) -> tuple[Engine, Executor, Ready]:
    """Everything the engine process consists of, put together. Raises `StartupError` with every reason at once."""
    setting = settle(start.config)
    plan = make_plan(setting.config, setting.model, setting.choice.backend, setting.smallest, setting.speculator)

    def progress(phase: str, done: int, total: int) -> None:
        channel.send(Progress(phase, done, total))

    grammars, processors = Grammars(setting.model.vocab_size), ProcessorForms()
    executor = build_executor(setting, plan, progress, start.grace_seconds, grammars, processors)
    ready = describe(setting, plan, executor, grammars, processors)
    scheduler = build_scheduler(setting, executor, ready.max_length)
    engine = Engine(
        scheduler,
        executor,
        channel,
        vocab_size=ready.vocab_size,
        grammars=grammars,
        processors=processors,
        heartbeat_seconds=start.heartbeat_seconds,
        grace_seconds=start.grace_seconds,
    )
    return engine, executor, ready


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
