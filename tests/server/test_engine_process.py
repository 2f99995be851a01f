"""A real engine process on the sim backend: every request ends once, whatever happens to it, and nothing is left over.

Names of failure modes (F) and promises (P) are those of docs/promises.md.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from mainspring.core.channel import EngineStart
from mainspring.core.config import EngineConfig
from mainspring.core.errors import EXIT_DRAIN_OVERRUN, EXIT_ENGINE, EXIT_STARTUP, ErrorKind, RequestError, StartupError
from mainspring.core.request import FinishReason, Progress, SamplingParams, StepOutput
from mainspring.server.engine import request_stream
from mainspring.server.engine.client import EngineClient
from mainspring.server.engine.process import EngineProcess
from tests.support.model_directory import TINY, write_tiny_model
from tests.support.serving import ask, at_rest, first_delta, in_time, read, serving

ENDLESS = SamplingParams(max_tokens=2000, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


# Requests


@pytest.mark.promise("P9")
def test_requests_end_once_and_say_the_same_in_any_company(model: Path) -> None:
    async def test() -> None:
        async with serving(model, eos="0.02", vocabulary="100-900") as client:
            prompts = [list(range(5, 20 + number)) for number in range(40)]
            alone = [await ask(client, prompt, 50) for prompt in prompts]
            together = await asyncio.gather(*(ask(client, prompt, 50) for prompt in prompts))
            assert together == alone
            assert {finish for answer in alone for finish in answer.finishes} == {FinishReason.EOS, FinishReason.LENGTH}
            assert all(len(answer.finishes) == answer.starts == 1 for answer in alone)
            assert all(len(answer.tokens) == 50 for answer in alone if answer.finishes == [FinishReason.LENGTH])
            await at_rest(client)
            assert client.stats.prefix_hits > 0
            assert client.stats.blocks_used == 0

    in_time(test)


def test_each_of_n_sequences_ends_once(model: Path) -> None:
    async def test() -> None:
        async with serving(model, overhead="0.001") as client:
            warm = SamplingParams(max_tokens=12, temperature=1.0, seed=5)
            answers = await read(client.submit([3, 4, 5], warm, n=3), 3)
            assert [answer.finishes for answer in answers] == [[FinishReason.LENGTH]] * 3
            assert len({tuple(answer.tokens) for answer in answers}) == 3
            assert client.open_streams == 0

    in_time(test)


def test_one_sequence_of_a_request_can_be_stopped(model: Path) -> None:
    async def test() -> None:
        async with serving(model, overhead="0.002") as client, client.submit([3, 4], ENDLESS, n=2) as stream:
            await first_delta(stream)
            stream.cancel(0)
            finishes = {}
            async for delta in stream:
                if delta.finish is not None:
                    finishes[delta.index] = delta.finish
                    stream.cancel(1)
            assert finishes == {0: FinishReason.CANCELLED, 1: FinishReason.CANCELLED}

    in_time(test)


@pytest.mark.promise("P10")
def test_r14_a_bad_request_fails_alone(model: Path) -> None:
    async def test() -> None:
        async with serving(model) as client:
            good = client.submit([1, 3, 4], SamplingParams(max_tokens=20))
            unreadable = await ask(client, [1.5])  # type: ignore[list-item]
            too_long = await ask(client, [5] * (TINY.max_position + 1))
            assert (unreadable.finishes, unreadable.error) == ([FinishReason.ERROR], ErrorKind.INTERNAL)
            assert (too_long.finishes, too_long.error) == ([FinishReason.ERROR], ErrorKind.INVALID)
            assert str(TINY.max_position) in too_long.message
            (answer,) = await read(good)
            assert answer.finishes == [FinishReason.LENGTH]
            assert client.healthy

    in_time(test)


@pytest.mark.promise("F7", "F8", "P7")
def test_f7_p6_p7_dropped_requests_free_their_blocks(model: Path) -> None:
    async def test() -> None:
        randomness = random.Random(7)

        async def drop(client: EngineClient) -> None:
            prompt = [randomness.randrange(3, 999) for _ in range(randomness.randrange(1, 200))]
            async with client.submit(prompt, ENDLESS, n=randomness.randrange(1, 3)) as stream:
                for _ in range(randomness.randrange(0, 5)):
                    await anext(stream)

        async with serving(model, overhead="0.0005", num_blocks=1024) as client:
            await asyncio.gather(*(drop(client) for _ in range(200)))
            assert client.open_streams == 0
            await at_rest(client)
            assert client.stats.blocks_used == 0
            assert (await ask(client, [4, 5, 6])).finishes == [FinishReason.LENGTH]

    in_time(test)


def test_leaving_a_stream_twice_or_after_its_end_is_harmless(model: Path) -> None:
    async def test() -> None:
        async with serving(model) as client:
            stream = client.submit([1, 2], ENDLESS)
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            finished = client.submit([1, 2], SamplingParams(max_tokens=1))
            await read(finished)
            await finished.aclose()

    in_time(test)


@pytest.mark.promise("F17", "P14")
def test_f17_a_reader_that_does_not_read_is_given_up_and_nobody_waits(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_stream, "MAX_UNREAD_TOKENS", 200)

    async def test() -> None:
        async with serving(model) as client:
            slow = client.submit([7, 8], ENDLESS)
            answers = await asyncio.gather(*(ask(client, [9, number], 400) for number in range(4)))
            assert all(len(answer.tokens) == 400 for answer in answers)
            await at_rest(client)
            (answer,) = await read(slow)
            assert answer.finishes == [FinishReason.CANCELLED]
            assert 200 < len(answer.tokens) < 400

    in_time(test)


def test_f11_out_of_memory_fails_that_steps_requests_only(model: Path) -> None:
    async def test() -> None:
        async with serving(model, fault="oom@3", overhead="0.01") as client:
            first = await ask(client, [3, 4, 5], 20)
            assert (first.finishes, first.error) == ([FinishReason.ERROR], ErrorKind.OUT_OF_MEMORY)
            again = await ask(client, [3, 4, 5], 20)
            assert again.finishes == [FinishReason.LENGTH]
            assert client.healthy

    in_time(test)


def test_f12_nan_fails_its_own_request_only(model: Path) -> None:
    async def test() -> None:
        async with serving(model, fault="nan@999") as client:
            before = await ask(client, [3, 4, 5], 30)
            victim, neighbour = await asyncio.gather(ask(client, [3, 4, 999], 30), ask(client, [3, 4, 5], 30))
            assert (victim.finishes, victim.error) == ([FinishReason.ERROR], ErrorKind.NUMERICAL)
            assert neighbour == before

    in_time(test)


def test_a_machine_with_buckets_gives_the_same_text(model: Path) -> None:
    async def test() -> None:
        texts = []
        for device_index in (0, 5):
            async with serving(model, device_index=device_index, speed="0") as client:
                texts.append(await asyncio.gather(*(ask(client, [number, 5] * 40, 30) for number in range(20))))
        assert texts[0] == texts[1]

    in_time(test)


@pytest.mark.promise("P9")
def test_preempted_requests_give_the_same_text(model: Path) -> None:
    async def test() -> None:
        texts, preemptions = [], []
        for num_blocks in (512, 24):
            async with serving(model, num_blocks=num_blocks) as client:
                texts.append(await asyncio.gather(*(ask(client, [number, 5] * 20, 100) for number in range(12))))
                preemptions.append(client.stats.preemptions)
        assert texts[0] == texts[1]
        assert preemptions[0] == 0 < preemptions[1]

    in_time(test)


# Death


@pytest.mark.promise("F1", "F2", "P1", "P4")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_f1_p1_a_killed_engine_ends_every_stream_within_a_second(model: Path, number: signal.Signals) -> None:
    async def test() -> None:
        async with serving(model, overhead="0.01") as client:
            streams = [client.submit([number, 3], ENDLESS) for number in range(50)]
            await first_delta(streams[0])
            assert client.engine_pid is not None
            os.kill(client.engine_pid, number)
            killed = time.monotonic()
            answers = [answer for answers in await asyncio.gather(*map(read, streams)) for answer in answers]
            assert time.monotonic() - killed < 1.0
            assert all(answer.finishes == [FinishReason.ERROR] for answer in answers)
            assert {answer.error for answer in answers} == {ErrorKind.ENGINE_DEAD}
            assert number.name in await client.failed()
            assert not client.healthy
            with pytest.raises(RequestError) as refused:
                client.submit([1], ENDLESS)
            assert refused.value.kind == ErrorKind.ENGINE_DEAD
            # F2: a stop that comes late does not turn the death into success.
            await client.drain(1.0)
        assert client.exit_code == EXIT_ENGINE

    in_time(test)


@pytest.mark.promise("F1", "P4")
@pytest.mark.parametrize(
    ("fault", "how"), [("crash@5", f"code {EXIT_ENGINE}"), ("segfault@5", "SIGSEGV")], ids=["crash", "segfault"]
)
def test_f1_p4_an_engine_that_fails_in_a_step_says_so(model: Path, fault: str, how: str) -> None:
    async def test() -> None:
        async with serving(model, fault=fault, overhead="0.01") as client:
            answers = await asyncio.gather(*(ask(client, [number, 3], 100) for number in range(5)))
            assert [answer.finishes for answer in answers] == [[FinishReason.ERROR]] * 5
            assert {answer.error for answer in answers} == {ErrorKind.ENGINE_DEAD}
            assert how in await client.failed()
        assert client.exit_code == EXIT_ENGINE

    in_time(test)


@pytest.mark.promise("F3", "P2")
def test_f3_p2_a_hung_step_is_seen_in_time(model: Path) -> None:
    async def test() -> None:
        async with serving(model, grace_seconds=0.5, fault="hang@5") as client:
            started = time.monotonic()
            answer = await ask(client, [3, 4], 100)
            # The step's own bound is a second, and the promise is one more.
            assert 1.0 < time.monotonic() - started < 1.0 + 0.5 + 1.0
            assert answer.error == ErrorKind.ENGINE_DEAD
            assert "hung" in await client.failed()
        assert client.exit_code == EXIT_ENGINE

    in_time(test)


@pytest.mark.promise("F3", "P2")
def test_f3_p2_a_stopped_engine_is_seen_though_it_was_idle(model: Path) -> None:
    async def test() -> None:
        async with serving(model, grace_seconds=0.5) as client:
            assert client.engine_pid is not None
            os.kill(client.engine_pid, signal.SIGSTOP)
            stopped = time.monotonic()
            await client.failed()
            assert time.monotonic() - stopped < 0.25 + 0.5 + 1.0
            engine = client.engine_pid
        assert not psutil.pid_exists(engine)

    in_time(test)


@pytest.mark.promise("F3", "P2")
def test_f3_p2_a_legal_slow_step_is_no_hang(model: Path) -> None:
    async def test() -> None:
        async with serving(model, grace_seconds=0.2, fault="slow@5:3") as client:
            started = time.monotonic()
            answer = await ask(client, [3, 4], 20)
            assert time.monotonic() - started > 3
            assert answer.finishes == [FinishReason.LENGTH]
            assert client.failure is None

    in_time(test)


@pytest.mark.promise("F3", "P2")
def test_f3_a_server_that_stood_still_blames_nobody(model: Path) -> None:
    async def test() -> None:
        async with serving(model, grace_seconds=0.2) as client:
            time.sleep(1.5)  # the event loop stands still on purpose
            assert (await ask(client, [3, 4], 20)).finishes == [FinishReason.LENGTH]
            assert client.failure is None

    in_time(test)


# The end of the server

SERVER = textwrap.dedent("""
    import asyncio, subprocess, sys
    from pathlib import Path
    from mainspring.core.request import SamplingParams
    from tests.support.serving import first_delta, serving

    async def main():
        async with serving(Path(sys.argv[1]), overhead="0.01", fault=sys.argv[2]) as client:
            await first_delta(client.submit([1, 2], SamplingParams(max_tokens=2000)))
            pipe = client._process._child.stdin.fileno()
            holder = subprocess.Popen(["sleep", "30"], pass_fds=[pipe] if sys.argv[3] == "hold" else [])
            print(client.engine_pid, holder.pid, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
""")


@pytest.mark.promise("F4", "P3")
@pytest.mark.parametrize(
    ("fault", "pipe"),
    [("", "drop"), ("hang@3", "drop"), ("", "hold")],
    ids=["running", "inside the device", "somebody holds the pipe open"],
)
def test_f4_p3_a_killed_server_leaves_no_engine_behind(model: Path, fault: str, pipe: str) -> None:
    command = [sys.executable, "-c", SERVER, str(model), fault, pipe]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        engine, holder = (psutil.Process(int(number)) for number in server.stdout.readline().split())
        server.kill()
    engine.wait(timeout=3)
    holder.kill()


@pytest.mark.promise("F4")
def test_f4_p3_the_end_of_the_pipe_alone_ends_the_engine(model: Path, tmp_path: Path) -> None:
    async def test() -> None:
        config = EngineConfig(model=str(model), backend="sim")
        sockets = tmp_path / "sockets"
        sockets.mkdir()
        process = EngineProcess(str(sockets))
        process.begin(
            EngineStart(
                config=config,
                to_engine=f"ipc://{sockets}/to_engine",
                from_engine=f"ipc://{sockets}/from_engine",
                server_pid=os.getpid(),
            )
        )
        process.close_pipe()
        assert await process.wait(5.0) == 1
        assert not sockets.exists()

    in_time(test)


@pytest.mark.promise("F4")
def test_f4_an_engine_whose_parent_is_another_ends(model: Path) -> None:
    async def test() -> None:
        config = EngineConfig(model=str(model))
        process = EngineProcess("")
        process.begin(EngineStart(config=config, to_engine="", from_engine="", server_pid=1))
        assert await process.wait(5.0) == 1
        process.close_pipe()

    in_time(test)


@pytest.mark.promise("P3")
def test_p3_sockets_and_processes_are_gone_after_a_stop(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def test() -> None:
        async with serving(model) as client:
            assert list(tmp_path.iterdir()) == [], "both ends are joined"
            engine = psutil.Process(client.engine_pid)
        assert not engine.is_running()
        assert list(tmp_path.iterdir()) == []

    in_time(test)


def test_a_terminals_interrupt_is_not_the_engines(model: Path) -> None:
    async def test() -> None:
        async with serving(model) as client:
            assert client.engine_pid is not None
            assert os.getsid(client.engine_pid) == client.engine_pid
            os.kill(client.engine_pid, signal.SIGINT)
            assert (await ask(client, [3, 4])).finishes == [FinishReason.LENGTH]

    in_time(test)


# Draining


@pytest.mark.promise("F6", "P5")
def test_f6_p5_draining_finishes_what_runs_and_exits_with_0(model: Path) -> None:
    async def test() -> None:
        async with serving(model, overhead="0.005") as client:
            streams = [client.submit([number, 3], SamplingParams(max_tokens=60)) for number in range(20)]
            await first_delta(streams[0])
            drained = asyncio.create_task(client.drain(10.0))
            answers = await asyncio.gather(*map(read, streams))
            assert {answer.finishes[0] for (answer,) in answers} == {FinishReason.LENGTH}
            with pytest.raises(RequestError) as refused:
                client.submit([1], ENDLESS)
            assert refused.value.kind == ErrorKind.SHUTTING_DOWN
            assert await drained
        assert (client.exit_code, client.failure) == (0, None)

    in_time(test)


@pytest.mark.promise("F6", "P5", "P4")
def test_f6_p5_what_does_not_finish_in_time_ends_with_an_error(model: Path) -> None:
    async def test() -> None:
        async with serving(model, overhead="0.02") as client:
            stream = client.submit([3, 4], ENDLESS)
            await first_delta(stream)
            started = time.monotonic()
            assert not await client.drain(0.2)
            assert time.monotonic() - started < 3
            (answer,) = await read(stream)
            assert (answer.finishes, answer.error) == ([FinishReason.ERROR], ErrorKind.SHUTTING_DOWN)
        assert client.exit_code == EXIT_DRAIN_OVERRUN

    in_time(test)


@pytest.mark.promise("F6")
def test_f6_sigterm_to_the_engine_itself_drains_it(model: Path) -> None:
    async def test() -> None:
        async with serving(model, overhead="0.005") as client:
            stream = client.submit([3, 4], SamplingParams(max_tokens=50))
            await first_delta(stream)
            assert client.engine_pid is not None
            os.kill(client.engine_pid, signal.SIGTERM)
            (answer,) = await read(stream)
            assert answer.finishes == [FinishReason.LENGTH]

    in_time(test)


# Start-up


@pytest.mark.promise("P4")
def test_p4_start_up_failure_lists_every_reason(tmp_path: Path) -> None:
    async def test() -> None:
        client = EngineClient(EngineConfig(model=str(tmp_path / "nothing"), backend="sin"))
        with pytest.raises(StartupError) as failed:
            await client.start()
        assert len(failed.value.reasons) >= 2
        assert "nothing" in failed.value.reasons[0]
        assert any("did you mean 'sim'" in reason for reason in failed.value.reasons)
        assert client.exit_code == EXIT_STARTUP
        assert not client.healthy
        await client.aclose()
        assert client.exit_code == EXIT_STARTUP

    in_time(test)


def test_an_engine_that_dies_while_loading_is_a_start_up_failure(model: Path) -> None:
    async def test() -> None:
        client = EngineClient(
            EngineConfig(model=str(model), backend="sim"),
            on_progress=lambda progress: os.kill(client.engine_pid or 0, signal.SIGKILL),
        )
        with pytest.raises(StartupError, match="SIGKILL while starting"):
            await client.start()
        assert client.exit_code == EXIT_STARTUP

    in_time(test)


@pytest.mark.promise("F3", "P2", "P4")
def test_f3_p2_an_engine_that_is_stopped_while_it_loads_is_seen(model: Path) -> None:
    async def test() -> None:
        stopped: list[float] = []

        def stop(progress: Progress) -> None:
            if not stopped:
                os.kill(client.engine_pid or 0, signal.SIGSTOP)
                stopped.append(time.monotonic())

        config = EngineConfig(model=str(model), backend="sim", backend_options={"loading": "30"})
        client = EngineClient(config, on_progress=stop, grace_seconds=0.5)
        with pytest.raises(StartupError, match="stopped while starting"):
            await client.start()
        assert time.monotonic() - stopped[0] < 0.5 + 1.0 + 0.5
        assert client.exit_code == EXIT_STARTUP

    in_time(test)


@pytest.mark.promise("F3", "P2")
def test_f3_p2_an_engine_that_goes_on_in_time_was_never_lost(model: Path) -> None:
    async def test() -> None:
        async def stop_and_go_on() -> None:
            os.kill(client.engine_pid or 0, signal.SIGSTOP)
            await asyncio.sleep(0.6)
            os.kill(client.engine_pid or 0, signal.SIGCONT)

        loading = asyncio.Event()
        config = EngineConfig(model=str(model), backend="sim", backend_options={"loading": "1"})
        client = EngineClient(config, on_progress=lambda progress: loading.set(), grace_seconds=2.0)
        start = asyncio.create_task(client.start())
        try:
            await loading.wait()
            await stop_and_go_on()
            await start
            await stop_and_go_on()
            assert (await ask(client, [3, 4])).finishes == [FinishReason.LENGTH]
        finally:
            await client.aclose()
        assert client.exit_code == 0

    in_time(test)


def test_a_start_that_is_called_off_leaves_nothing(model: Path) -> None:
    async def test() -> None:
        loading = asyncio.Event()
        client = EngineClient(EngineConfig(model=str(model), backend="sim"), on_progress=lambda progress: loading.set())
        with pytest.raises(RequestError, match="still loading"):
            client.submit([1], ENDLESS)
        start = asyncio.create_task(client.start())
        await loading.wait()
        engine = client.engine_pid
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert engine is not None
        assert not psutil.pid_exists(engine)
        assert client.exit_code == 0

    in_time(test)


def test_a_stop_while_loading_is_no_failure(model: Path) -> None:
    async def test() -> None:
        loading = asyncio.Event()
        client = EngineClient(EngineConfig(model=str(model), backend="sim"), on_progress=lambda progress: loading.set())
        start = asyncio.create_task(client.start())
        await loading.wait()
        await client.aclose()
        with pytest.raises(StartupError, match="stopped while the engine was starting"):
            await start
        assert (client.exit_code, client.failure, client.healthy) == (0, None, False)

    in_time(test)


def test_the_engine_says_where_start_up_is_and_what_it_serves(model: Path) -> None:
    async def test() -> None:
        phases: list[str] = []
        async with serving(model, on_progress=lambda progress: phases.append(progress.phase)) as client:
            assert phases[0] == "starting"
            assert client.ready is not None
            assert client.ready.vocab_size == TINY.vocab_size
            assert client.ready.max_length == TINY.max_position
            assert client.ready.num_blocks == 512
            assert (client.ready.backend, client.ready.device) == ("sim", "simulated ideal")
            assert client.healthy

    in_time(test)


def test_the_engine_process_of_the_simulator_has_no_torch(model: Path) -> None:
    async def test() -> None:
        async with serving(model) as client:
            await ask(client, [1, 2, 3])
            libraries = Path(f"/proc/{client.engine_pid}/maps").read_text()
            assert "zmq" in libraries
            assert "torch" not in libraries

    in_time(test)


def test_a_failing_observer_is_dropped_and_harms_nobody(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def observer(output: StepOutput) -> None:
        calls.append(output.step)
        raise ValueError("a defect of a plugin")

    async def test() -> None:
        client = EngineClient(EngineConfig(model=str(model), backend="sim"), observers=[observer])
        try:
            await client.start()
            assert (await ask(client, [3, 4], 20)).finishes == [FinishReason.LENGTH]
        finally:
            await client.aclose()
        assert len(calls) == 1
        assert "a defect of a plugin" in caplog.text

    in_time(test)


# Speed


def test_many_streams_get_thousands_of_tokens_a_second(model: Path) -> None:
    async def test() -> None:
        async with serving(model, max_sequences=64, num_blocks=4096) as client:
            started = time.monotonic()
            answers = await asyncio.gather(*(ask(client, [number, 3], 300) for number in range(64)))
            rate = sum(len(answer.tokens) for answer in answers) / (time.monotonic() - started)
            assert rate > 5000

    in_time(test)
