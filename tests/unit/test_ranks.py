"""Ranks as rank 0 sees them, with small programs in their place: what they say, how they end, what is noticed."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from mainspring.core.backend import Executor
from mainspring.core.batch import Admission, Batch, Bucket, PromptRange, StepResult
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError, DeviceOutOfMemory, StartupError
from mainspring.core.frames import pack_frame
from mainspring.core.parallel.following import Inbox, follow
from mainspring.core.parallel.leading import SharedPending
from mainspring.core.parallel.messages import STOP, RankStart, pack_batch, unpack_batch
from mainspring.core.parallel.processes import Ranks
from mainspring.core.request import SamplingParams

PREAMBLE = (
    "import os, sys, msgspec\n"
    "from mainspring.core.frames import pack_frame, read_frame\n"
    "from mainspring.core.parallel.messages import RankReport, RankStart\n"
    "read = lambda: read_frame(lambda size: os.read(0, size))\n"
    "start = msgspec.msgpack.decode(read(), type=RankStart)\n"
    "def report(*reasons): os.write(start.report, pack_frame(msgspec.msgpack.encode(RankReport(reasons))))\n"
)
SERVES = "report()\nwhile read(): pass\n"
SECONDS = 20.0


@contextmanager
def ranks(
    program: str, on_loss: Callable[[Ranks], None] = lambda lost: None, *, count: int = 1, kill: bool = True
) -> Iterator[Ranks]:
    command = (sys.executable, "-c", PREAMBLE + program)

    def start(rank: int) -> Callable[[int], RankStart]:
        return lambda report: RankStart(
            config=EngineConfig(model="m"), rank=rank, port=1, leader_pid=os.getpid(), report=report
        )

    made = Ranks([start(rank + 1) for rank in range(count)], grace_seconds=0.2, on_loss=on_loss, command=command)
    try:
        yield made
    finally:
        if kill:
            made.kill()
        made.close()


def test_ranks_that_serve_are_awaited_and_let_go() -> None:
    with ranks(SERVES, count=2, kill=False) as others:
        others.await_ready()
        others.send(b"a step")
    assert not others.is_lost(0)
    assert others.is_parting(0)


def test_what_a_rank_says_of_its_failed_start_is_told() -> None:
    with ranks("report('rank 1: no memory')\nsys.exit(71)") as others:
        with pytest.raises(StartupError, match="rank 1: no memory"):
            others.await_ready()
        assert others.is_lost(SECONDS)
        assert others.reasons() == ["rank 1 exited with code 71", "rank 1: no memory"]


def test_a_rank_that_ends_without_a_word_is_told_too() -> None:
    with ranks("os.kill(os.getpid(), 9)") as others:
        with pytest.raises(StartupError, match="rank 1 ended while starting"):
            others.await_ready()
        assert others.is_lost(SECONDS)
        assert others.reasons()[0] == "rank 1 was ended by SIGKILL"


@pytest.mark.parametrize(("number", "told"), [(signal.SIGKILL, "ended by SIGKILL"), (signal.SIGSTOP, "was stopped")])
def test_a_rank_that_is_struck_while_it_serves_is_seen_once(number: signal.Signals, told: str) -> None:
    seen: queue.SimpleQueue[Ranks] = queue.SimpleQueue()
    with ranks(f"report()\nread()\nos.kill(os.getpid(), {number:d})\nread()", seen.put) as others:
        others.await_ready()
        assert seen.empty()
        others.send(b"strike")
        assert seen.get(timeout=SECONDS) is others
        assert told in others.reasons()[0]
    assert seen.empty()


def test_a_batch_arrives_as_it_was() -> None:
    params = SamplingParams(temperature=0.5, logit_bias={3: 1.0}, stop_token_ids=(4,))
    batch = Batch(
        step=7, rows=[1, 2], starts=[0, 5], counts=[3, 1], samples=[True, False], num_decodes=1, num_tokens=4,
        admissions=[Admission(1, [5, 6, 7], 3, params, 1 << 63, [9])], new_blocks=[(2, 0, 4)], copies=[(1, 2)],
        prompt_logprobs=[PromptRange(0, 1, 2, 3)], bucket=Bucket(4, 2, 1),
    )  # fmt: skip
    assert unpack_batch(pack_batch(batch)) == batch


class Recorder:
    """An executor that notes what it is given, and what it was asked for."""

    def __init__(self, failing: int = -1) -> None:
        self.events: list[str] = []
        self._failing = failing

    def execute(self, batch: Batch) -> Step:
        self.events.append(f"execute {batch.step}")
        return Step(self, batch.step, fails=batch.step == self._failing)


class Step:
    def __init__(self, recorder: Recorder, number: int, *, fails: bool) -> None:
        self._recorder, self._number, self._fails = recorder, number, fails

    def done(self) -> bool:
        return True

    def result(self) -> StepResult:
        self._recorder.events.append(f"land {self._number}")
        if self._fails:
            raise DeviceOutOfMemory("too large")
        return StepResult([])


def followed(executor: Executor, *frames: bytes) -> None:
    read, write = os.pipe()
    descriptor = os.dup(read)
    os.close(read)
    try:
        os.write(write, b"".join(map(pack_frame, (b"start", *frames))))
        inbox = Inbox(descriptor)
        assert inbox.first == b"start"
        follow(executor, inbox)
    finally:
        os.close(descriptor)
        # The writing end stays open: its end would be this process's.


def test_a_rank_keeps_one_step_ahead_and_stops_when_told() -> None:
    recorder = Recorder()
    followed(recorder, *(pack_batch(Batch(step=step)) for step in range(3)), STOP)
    assert recorder.events == ["execute 0", "execute 1", "land 0", "execute 2", "land 1", "land 2"]


def test_a_step_that_fails_ends_the_rank_though_no_other_follows() -> None:
    with pytest.raises(DeviceOutOfMemory):
        followed(Recorder(failing=1), pack_batch(Batch(step=0)), pack_batch(Batch(step=1)))


def test_memory_that_runs_out_in_a_shared_step_is_the_end_of_all() -> None:
    with ranks(SERVES) as others:
        pending = SharedPending(Step(Recorder(), 0, fails=True), others)
        with pytest.raises(BackendError, match="rank 0: too large; lower --max-batch-prefill-tokens"):
            pending.result()


def test_the_watch_is_no_busy_thread() -> None:
    with ranks(SERVES):
        assert [thread.name for thread in threading.enumerate()].count("ranks-watch") == 1
    assert "ranks-watch" not in [thread.name for thread in threading.enumerate()]


def test_a_start_frame_is_whole() -> None:
    start = RankStart(config=EngineConfig(model="m", num_shard=2), rank=1, port=5, leader_pid=6, report=7)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(start), type=RankStart) == start
