"""The engine's loop, turn by turn: a step ahead of the device, a message a turn, and every request answered."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import zmq

from mainspring.backends.sim.device import SimBackend
from mainspring.core.backend import ExecutorRequest, KVSpec
from mainspring.core.border import MAX_SEED, check_numbers
from mainspring.core.channel import EngineChannel, Malformed, ServerChannel
from mainspring.core.config import EngineConfig
from mainspring.core.engine import Engine
from mainspring.core.errors import EXIT_DRAIN_OVERRUN, EXIT_ENGINE, ErrorKind, RequestError
from mainspring.core.request import (
    Cancel,
    Delta,
    Drain,
    FinishReason,
    RequestId,
    SamplingParams,
    StepOutput,
    Submit,
    ToEngine,
)
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler
from tests.support.model_directory import TINY, write_tiny_model

STEP_SECONDS = 10.0
HEARTBEAT, GRACE = 0.001, 2.0


class PatientChannel(EngineChannel):
    """Hears in each turn all that was sent before it; how long delivery takes is no matter of these tests."""

    due = 0
    """Messages sent and not yet heard."""

    def receive(self, timeout: float) -> list[ToEngine | Malformed]:
        messages = super().receive(0.0 if self.due else timeout)
        while len(messages) < self.due:
            messages += super().receive(1.0)
        self.due = 0
        return messages


@dataclass
class Bench:
    """An engine whose device takes `STEP_SECONDS` of a clock that only the device moves, and its server's end."""

    engine: Engine
    channel: PatientChannel
    server: ServerChannel
    now: float = 0.0
    outputs: list[StepOutput] = field(default_factory=list)

    def submit(self, request_id: int, max_tokens: int, *, n: int = 1, prompt: list[int] | None = None) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        self.send(Submit(RequestId(request_id), prompt or [5, 6, request_id], params, n=n))

    def send(self, message: ToEngine) -> None:
        self.channel.due += 1
        self.server.send(message)

    async def turn(self) -> StepOutput:
        """One turn of the loop and the message that it sends."""
        self.engine.turn()
        return await self.read()

    async def read(self) -> StepOutput:
        output = await self.server.receive()
        assert isinstance(output, StepOutput)
        self.outputs.append(output)
        return output

    async def read_all(self) -> list[Delta]:
        """The deltas of everything that was sent and not read."""
        while await self.server.waiting(0.05):
            await self.read()
        return [delta for output in self.outputs for delta in output.deltas]


def on_a_bench(test: Callable[[Bench], Awaitable[None]], **options: str) -> None:
    """Runs `test` with an engine over a real channel, scheduler and simulated device."""

    async def run() -> None:
        server = ServerChannel()
        channel = PatientChannel(server.to_engine, server.from_engine)
        try:
            assert channel.join(5.0)
            assert server._outbox.poll(5000, zmq.POLLOUT)
            await test(make_bench(server, channel, options))
        finally:
            channel.close(0)
            server.close()

    asyncio.run(run())


def make_bench(server: ServerChannel, channel: PatientChannel, options: dict[str, str]) -> Bench:
    def sleep(seconds: float) -> None:
        bench.now += seconds

    backend = SimBackend(lambda: bench.now, sleep)
    config = EngineConfig(model="tiny", backend_options={"overhead": str(STEP_SECONDS), **options})
    kv = KVSpec(TINY.num_layers, TINY.num_kv_heads, TINY.head_dim, "float32", 16)
    executor = backend.executor(ExecutorRequest(TINY, config, 2048, kv, 64, backend.devices()[0]))
    scheduler = Scheduler(
        pool=BlockPool(64, 16),
        max_sequences=4,
        max_length=512,
        max_batch_tokens=64,
        eos_token_ids=TINY.eos_token_ids,
        clock=lambda: bench.now,
    )
    engine = Engine(
        scheduler,
        executor,
        channel,
        vocab_size=TINY.vocab_size,
        heartbeat_seconds=HEARTBEAT,
        grace_seconds=GRACE,
    )
    bench = Bench(engine, channel, server)
    return bench


def finishes(deltas: list[Delta]) -> dict[tuple[int, int], FinishReason]:
    """How each sequence ended; fails where one ended twice."""
    ended: dict[tuple[int, int], FinishReason] = {}
    for delta in deltas:
        if delta.finish is not None:
            assert (delta.request_id, delta.index) not in ended
            ended[delta.request_id, delta.index] = delta.finish
    return ended


def test_the_next_step_is_enqueued_before_the_last_is_awaited() -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 5)
        first = await bench.turn()
        assert (bench.now, first.deltas) == (0.0, []), "the first step was launched and not awaited"
        second = await bench.turn()
        assert bench.now == STEP_SECONDS
        assert len(second.deltas) == 1
        assert second.stats.steps == 2, "the second step was launched before the first came back"
        for _ in range(4):
            await bench.turn()
        assert finishes(await bench.read_all()) == {(1, 0): FinishReason.LENGTH}
        assert bench.now == 5 * STEP_SECONDS, "the device never waited between steps"

    on_a_bench(test)


def test_every_message_says_when_the_next_one_comes() -> None:
    async def test(bench: Bench) -> None:
        idle = await bench.turn()
        assert idle.deadline == HEARTBEAT + GRACE
        bench.submit(1, 5)
        busy = await bench.turn()
        assert STEP_SECONDS + GRACE < busy.deadline < 10 * STEP_SECONDS

    on_a_bench(test)


def test_an_idle_engine_goes_on_saying_so() -> None:
    async def test(bench: Bench) -> None:
        for _ in range(3):
            assert (await bench.turn()).deltas == []

    on_a_bench(test)


def test_a_finished_sequence_is_not_heard_of_again_though_a_step_ahead_computed_it() -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 50)
        while not finishes((await bench.turn()).deltas):
            pass
        for _ in range(3):
            assert (await bench.turn()).deltas == []

    on_a_bench(test, eos="0.2")


def test_cancelling_ends_a_request_in_this_turn() -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 50, n=2)
        for _ in range(3):
            await bench.turn()
        bench.send(Cancel(RequestId(1)))
        output = await bench.turn()
        assert finishes(output.deltas) == {(1, 0): FinishReason.CANCELLED, (1, 1): FinishReason.CANCELLED}
        assert (output.stats.running, output.stats.blocks_used) == (0, 0)

    on_a_bench(test)


def test_draining_refuses_finishes_and_returns_0() -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 4)
        await bench.turn()
        bench.send(Drain())
        bench.submit(2, 4, n=2)
        assert bench.engine.run() == 0
        deltas = await bench.read_all()
        error, length = FinishReason.ERROR, FinishReason.LENGTH
        assert finishes(deltas) == {(1, 0): length, (2, 0): error, (2, 1): error}
        assert {delta.error for delta in deltas if delta.request_id == 2} == {ErrorKind.SHUTTING_DOWN}

    on_a_bench(test)


def test_the_second_signal_stops_without_waiting() -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 400)
        await bench.turn()
        bench.engine.terminate()
        await bench.turn()
        bench.engine.terminate()
        assert bench.engine.run() == EXIT_DRAIN_OVERRUN
        deltas = await bench.read_all()
        assert finishes(deltas) == {(1, 0): FinishReason.ERROR}
        assert deltas[-1].error == ErrorKind.SHUTTING_DOWN

    on_a_bench(test)


def test_a_crash_answers_every_live_sequence_and_returns_70(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 2)
        bench.submit(2, 50, n=2)
        assert bench.engine.run() == EXIT_ENGINE
        deltas = await bench.read_all()
        error = FinishReason.ERROR
        assert finishes(deltas) == {(1, 0): FinishReason.LENGTH, (2, 0): error, (2, 1): error}
        assert {delta.error for delta in deltas if delta.finish == error} == {ErrorKind.ENGINE_DEAD}
        assert "step 4 crashes" in caplog.text

    on_a_bench(test, fault="crash@4")


def test_out_of_memory_ends_the_steps_requests_and_the_loop_goes_on() -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 50)
        for _ in range(4):
            await bench.turn()
        bench.submit(2, 3)
        bench.send(Drain())
        assert bench.engine.run() == 0
        deltas = await bench.read_all()
        assert finishes(deltas) == {(1, 0): FinishReason.ERROR, (2, 0): FinishReason.LENGTH}
        assert [delta.error for delta in deltas if delta.request_id == 1][-1] == ErrorKind.OUT_OF_MEMORY

    on_a_bench(test, fault="oom@4")


def test_r14_refused_requests_are_answered_and_stop_nothing() -> None:
    async def test(bench: Bench) -> None:
        bench.submit(1, 3)
        bench.submit(2, 3, n=2, prompt=[5] * 600)
        bench.submit(3, 3, prompt=[TINY.vocab_size])
        bench.send(Drain())
        assert bench.engine.run() == 0
        deltas = await bench.read_all()
        assert finishes(deltas)[1, 0] == FinishReason.LENGTH
        assert {(delta.request_id, delta.index, delta.error) for delta in deltas if delta.error is not None} == {
            (2, 0, ErrorKind.INVALID),
            (2, 1, ErrorKind.INVALID),
            (3, 0, ErrorKind.INVALID),
        }

    on_a_bench(test)


GOOD = Submit(RequestId(1), [0, 9], SamplingParams(logit_bias={9: 1.0}, stop_token_ids=(0,), logprobs=10, seed=0), n=2)


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": [3, -1]}, "prompt token -1"),
        ({"tokens": [3, 10]}, "prompt token 10 is not in the vocabulary of 10 tokens"),
        ({"params": SamplingParams(logit_bias={10: 1.0})}, "bias token 10"),
        ({"params": SamplingParams(stop_token_ids=(10,))}, "stop token 10"),
        ({"params": SamplingParams(logprobs=11)}, "ask for 0 to 10"),
        ({"params": SamplingParams(logprobs=-1)}, "ask for 0 to 10"),
        ({"said": 2}, "2 tokens said before, of 2"),
        ({"said": -1}, "-1 tokens said before"),
        ({"params": SamplingParams(seed=-1)}, "seed -1"),
        ({"params": SamplingParams(seed=MAX_SEED)}, "seed"),
    ],
)
def test_p10_numbers_that_would_end_the_engine_end_the_request(change: dict[str, object], sentence: str) -> None:
    check_numbers(GOOD, 10)
    with pytest.raises(RequestError, match=sentence) as refused:
        check_numbers(msgspec.structs.replace(GOOD, **change), 10)
    assert refused.value.kind == ErrorKind.INVALID


def test_composing_an_engine_on_the_simulator_imports_no_torch(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    code = (
        "import sys\n"
        "from mainspring.core.composition import build_executor, build_scheduler\n"
        "from mainspring.core.plan import make_plan\n"
        "from mainspring.core.setting import settle\n"
        "from mainspring.core.config import EngineConfig\n"
        f"setting = settle(EngineConfig(model={str(model)!r}, backend='sim'))\n"
        "plan = make_plan(setting.config, setting.model, setting.choice.backend, setting.choice.device)\n"
        "build_scheduler(setting, build_executor(setting, plan, print), 2048)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_told_of_a_prompt_has_a_message_of_its_own_ahead_of_the_others():
    async def test(bench: Bench) -> None:
        bench.submit(1, 8)
        await bench.turn()
        for request_id in (2, 3):
            params = SamplingParams(max_tokens=0, prompt_logprobs=1)
            bench.send(Submit(RequestId(request_id), [5, 6, 7, request_id], params))
        told: list[int] = []
        while len(told) < 2:
            bench.engine.turn()
            await bench.read_all()
            outputs = [output for output in bench.outputs if output.deltas]
            told = [at for at, output in enumerate(outputs) if any(delta.prompt_logprobs for delta in output.deltas)]
        assert [outputs[at].deltas[0].request_id for at in told] == [2, 3]
        assert all(len(outputs[at].deltas) == 1 for at in told)
        # Of whatever else the step gave, nothing came before.
        steps = [output.step for output in outputs]
        assert all(step != outputs[at].step for at in told for step in (steps[i] for i in range(at) if i not in told))

    on_a_bench(test)


@pytest.mark.parametrize(("tokens", "asked", "fits"), [(1000, 200, True), (1 << 15, 7, True), (1 << 15, 8, False)])
def test_the_numbers_told_of_a_prompt_are_bounded(tokens: int, asked: int, fits: bool):
    submit = Submit(RequestId(1), [1] * tokens, SamplingParams(prompt_logprobs=asked))
    if fits:
        check_numbers(submit, 1000)
        return
    with pytest.raises(RequestError, match="8 log-probabilities at each of 32768 prompt tokens; ask for at most 7"):
        check_numbers(submit, 1000)
