"""The queues between server and engine: typed frames both ways, limits, and nothing left behind."""

from __future__ import annotations

import asyncio
import io
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from mainspring.core import channel as channel_module
from mainspring.core.channel import EngineChannel, EngineStart, Malformed, ServerChannel, pack_start, read_start
from mainspring.core.config import EngineConfig
from mainspring.core.errors import ChannelClosed, ErrorKind, RequestError
from mainspring.core.metrics import Stats
from mainspring.core.request import (
    Cancel,
    Delta,
    Drain,
    FinishReason,
    Progress,
    Ready,
    RequestId,
    SamplingParams,
    Start,
    StartupFailed,
    StepOutput,
    Submit,
    TokenLogprobs,
)

SUBMIT = Submit(
    RequestId(7),
    [1, 2, 3],
    SamplingParams(max_tokens=5, logit_bias={4: -100.0}, seed=11, stop_token_ids=(9,)),
    n=2,
    timeout=1.5,
    cache_salt="tenant",
)
READY = Ready(2048, 1000, 16, 128, 8, "sim", "simulated ideal", "float32", ("a note",))
STEP = StepOutput(
    3,
    [
        Delta(RequestId(7), 0, [5], logprobs=[TokenLogprobs(-0.5, [5, 6], [-0.5, -1.0])], start=Start(16, 11, 0.25)),
        Delta(RequestId(7), 1, [], FinishReason.ERROR, error=ErrorKind.NUMERICAL, message="not finite"),
    ],
    Stats(running=2, steps=3),
    1.5,
)


def joined(test: Callable[[ServerChannel, EngineChannel], Awaitable[None]]) -> None:
    """Runs `test` with both ends of one channel, joined, so that its private directory may be gone."""

    async def run() -> None:
        server = ServerChannel()
        assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
        engine = EngineChannel(server.to_engine, server.from_engine)
        try:
            assert engine.join(5.0)
            assert server._outbox.poll(5000, zmq.POLLOUT)
            shutil.rmtree(server.directory)
            await test(server, engine)
        finally:
            engine.close(0)
            server.close()

    asyncio.run(run())


@pytest.fixture
def lonely_server() -> Iterator[ServerChannel]:
    """A server's end that no engine has joined; sending needs no event loop."""

    async def make() -> ServerChannel:
        return ServerChannel()

    server = asyncio.run(make())
    yield server
    server.close()


def test_messages_arrive_as_they_were_sent() -> None:
    async def test(server: ServerChannel, engine: EngineChannel) -> None:
        for message in (SUBMIT, Cancel(RequestId(7), 1), Drain()):
            server.send(message)
        received: list[object] = []
        while len(received) < 3:
            received += engine.receive(1.0)
        assert received == [SUBMIT, Cancel(RequestId(7), 1), Drain()]
        for answer in (Progress("weights", 1, 2), READY, STEP, StartupFailed(("no device", "no model"))):
            engine.send(answer)
            assert await server.receive() == answer

    joined(test)


def test_what_has_arrived_is_taken_without_waiting_and_receive_still_wakes_up() -> None:
    async def test(server: ServerChannel, engine: EngineChannel) -> None:
        for round_number in range(3):
            sent = [Progress("weights", number, round_number) for number in range(5)]
            for message in sent:
                engine.send(message)
            received = [await server.receive()]
            while len(received) < len(sent):
                assert await server.waiting(5.0)
                taken = list(server.arrived(2))
                assert 1 <= len(taken) <= 2
                received += taken
            assert received == sent
            assert list(server.arrived(2)) == []
        late = asyncio.ensure_future(server.receive())
        await asyncio.sleep(0)
        engine.send(READY)
        assert await late == READY

    joined(test)


def test_engine_waits_no_longer_than_it_says() -> None:
    async def test(server: ServerChannel, engine: EngineChannel) -> None:
        assert engine.receive(0.0) == []
        assert engine.receive(0.01) == []

    joined(test)


def test_closing_removes_the_directory(lonely_server: ServerChannel) -> None:
    assert lonely_server.directory.exists()
    lonely_server.close()
    assert not lonely_server.directory.exists()


def test_nobody_joins_a_server_that_is_not_there(tmp_path: Path) -> None:
    engine = EngineChannel(f"ipc://{tmp_path}/to_engine", f"ipc://{tmp_path}/from_engine")
    assert not engine.join(0.01)
    engine.close(0)


def test_a_queue_that_nobody_takes_from_refuses_at_once(lonely_server: ServerChannel) -> None:
    with pytest.raises(RequestError) as refused:
        lonely_server.send(Drain())
    assert refused.value.kind == ErrorKind.OVERLOADED
    assert refused.value.retry_after


def test_a_frame_over_the_limit_is_the_requests_own_fault(
    lonely_server: ServerChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MAX_FRAME_BYTES", 1000)
    with pytest.raises(RequestError, match=r"takes \d+ bytes; the limit is 1000") as refused:
        lonely_server.send(msgspec.structs.replace(SUBMIT, tokens=[70_000] * 10_000))
    assert refused.value.kind == ErrorKind.INVALID


def test_a_frame_that_is_no_message_names_its_request_and_stops_nothing() -> None:
    """R14: a request that cannot be read fails alone."""

    async def test(server: ServerChannel, engine: EngineChannel) -> None:
        bad = msgspec.structs.replace(SUBMIT, tokens=[1.5])  # type: ignore[list-item]
        server.send(bad)
        (malformed,) = engine.receive(1.0)
        assert isinstance(malformed, Malformed)
        assert (malformed.request_id, malformed.n) == (7, 2)
        assert "int" in malformed.reason
        server.send(SUBMIT)
        assert engine.receive(1.0) == [SUBMIT]

    joined(test)


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x91\xa3foo", b"\x80", b"\x93\xa6submit\xa1x\x90", b"\xa5drain"])
def test_garbage_frames_are_malformed_and_nobodys(frame: bytes) -> None:
    async def test(server: ServerChannel, engine: EngineChannel) -> None:
        engine._outbox.send(frame)
        with pytest.raises(ChannelClosed, match="cannot be read"):
            await server.receive()
        assert isinstance(engine._decode(frame), Malformed)

    joined(test)


def start_frame() -> EngineStart:
    config = EngineConfig(model="m")
    return EngineStart(config=config, to_engine="ipc://d/a", from_engine="ipc://d/b", server_pid=1)


def test_the_start_frame_is_read_from_a_pipe_that_stays_open() -> None:
    start = start_frame()
    pipe = io.BytesIO(pack_start(start) + b"what follows")
    assert read_start(lambda size: pipe.read(min(size, 3))) == start
    assert pipe.read() == b"what follows"


def test_a_start_frame_cut_short_says_so() -> None:
    start = start_frame()
    pipe = io.BytesIO(pack_start(start)[:-1])
    with pytest.raises(ChannelClosed, match="before the engine's configuration was complete"):
        read_start(pipe.read)
