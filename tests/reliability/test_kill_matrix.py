"""{server, engine} x {SIGKILL, SIGSEGV, SIGSTOP} x {starting, loading, idle, prefill, decode, draining}, with real
processes. An engine is one process: it has no ranks of its own yet that could be struck.

Whoever is struck, whenever: every open request is answered or its connection ends, the exit code is true, and after
three seconds no process, socket or shared memory is left. The phases of a pair run side by side.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.reliability.conftest import SIM
from tests.support.live_server import LiveServer, listening_server, spawn
from tests.support.promises import Measured
from tests.support.raw_http import Reply, post, read_reply

PHASES = ("loading", "idle", "prefill", "decode", "draining")
STREAMS = 6
ANSWER_SECONDS = 1.0
GONE_SECONDS = 3.0
HUNG_SECONDS = 1.0 + 0.1 + 5.0 + 1.0
"""A simulated step's bound, the engine's grace, and the promise's second; the steps here take a hundredth."""


@dataclass
class Cell:
    """One server in one phase, and its open requests."""

    phase: str
    server: LiveServer
    sockets: Path
    requests: list[asyncio.Task[Reply]] = field(default_factory=list)
    processes: list[psutil.Process] = field(default_factory=list)
    struck: float = 0.0

    @property
    def remains(self) -> list[str]:
        """What is left of it: processes by name, files in its directory for sockets."""
        alive = [process for process in self.processes if _lives(process)]
        return [str(process) for process in alive] + [str(path) for path in self.sockets.iterdir()]

    async def ended(self, seconds: float = 30.0) -> int:
        """The server's exit code."""
        return await asyncio.to_thread(self.server.process.wait, seconds)

    async def gone(self) -> None:
        """Returns once nothing remains."""
        deadline = time.monotonic() + GONE_SECONDS
        while self.remains:
            assert time.monotonic() < deadline, f"{self.phase}: {self.remains}"
            await asyncio.sleep(0.02)

    async def answers(self, *, within: float) -> list[Reply]:
        """All open requests' answers, which must have come by then."""
        if self.requests:
            await asyncio.wait(self.requests, timeout=max(self.struck + within - time.monotonic(), 0))
        assert all(request.done() for request in self.requests), f"{self.phase}: not all answered in {within} s"
        return [request.result() for request in self.requests]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def flags_for(phase: str) -> list[str]:
    """Steps of 10 ms. A prompt is prefilled 16 tokens a step, so that the phase lasts."""
    options = ["overhead=0.01"] + (["loading=60"] if phase == "loading" else [])
    chunks = ("--max-batch-prefill-tokens", "16") if phase == "prefill" else ()
    return [*SIM, *chunks, *(word for option in options for word in ("--backend-option", option))]


def requests_for(phase: str) -> list[bytes]:
    """Long ones on several routes, streams and not; none where none is open in the phase."""
    if phase in ("loading", "idle"):
        return []
    inputs = "x" * 1500 if phase == "prefill" else "hello"
    max_tokens = 400 if phase == "prefill" else 800
    generate = {"inputs": inputs, "parameters": {"max_new_tokens": max_tokens}}
    chat = {"messages": [{"role": "user", "content": inputs}], "max_tokens": max_tokens, "stream": True}
    kinds = [post("/generate_stream", generate), post("/v1/chat/completions", chat), post("/generate", generate)]
    return [kinds[number % len(kinds)] for number in range(STREAMS)]


async def ask(port: int, request: bytes) -> Reply:
    """An answer that may be cut off, which counts as one too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await read_reply(reader, time.monotonic())
    except ConnectionError:
        return Reply(0, {}, b"", 0.0)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def cells(model: Path, tmp_path: Path) -> AsyncIterator[list[Cell]]:
    """A server in each phase, with its requests open."""
    with ExitStack() as stack:
        pending = [(phase, *_start(stack, model, tmp_path, phase)) for phase in PHASES]
        made = [Cell(phase, server, sockets) for phase, server, sockets in pending]
        await asyncio.gather(*(_bring(cell) for cell in made))
        yield made
        for cell in made:
            for request in cell.requests:
                request.cancel()


def _start(stack: ExitStack, model: Path, tmp_path: Path, phase: str) -> tuple[LiveServer, Path]:
    sockets = tmp_path / phase
    sockets.mkdir()
    server = listening_server(
        str(model), tmp_path / f"{phase}.log", *flags_for(phase), environment={"TMPDIR": str(sockets)}
    )
    return stack.enter_context(server), sockets


async def _bring(cell: Cell) -> None:
    server = cell.server
    wanted = "weights" if cell.phase == "loading" else "ready"
    await asyncio.to_thread(server.wait_until, lambda: server.phase.startswith(wanted), 60)
    cell.requests = [asyncio.create_task(ask(server.port, request)) for request in requests_for(cell.phase)]
    if cell.requests:
        running = "mainspring_num_requests_running"
        await asyncio.to_thread(server.wait_until, lambda: server.metric(running) == STREAMS, 30)
    if cell.phase == "draining":
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_until, lambda: server.phase == "draining", 10)
    cell.processes = [psutil.Process(server.process.pid), server.engine]
    for process in cell.processes:
        assert not [entry.path for entry in process.memory_maps() if entry.path.startswith("/dev/shm/")]


def strike(cell: Cell, victim: str, number: signal.Signals) -> None:
    cell.struck = time.monotonic()
    cell.processes[victim == "engine"].send_signal(number)


@pytest.mark.promise("F1", "F2", "P1", "P3", "P4")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_f1_f2_p1_p3_p4_a_killed_engine(
    number: signal.Signals, model: Path, tmp_path: Path, measured: Measured
) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, "engine", number)
        replies = await cell.answers(within=ANSWER_SECONDS)
        slowest = time.monotonic() - cell.struck
        assert all(reply.error for reply in replies), cell.phase
        # A stop that comes late does not turn the death into success.
        if cell.phase != "draining" and cell.server.process.poll() is None:
            cell.server.process.send_signal(signal.SIGTERM)
        assert await cell.ended() == (71 if cell.phase == "loading" else 70), cell.phase
        await cell.gone()
        return slowest

    slowest = max(run(model, tmp_path, test))
    measured(f"{number.name}: every request of every phase answered after {slowest:.2f} s at most")


@pytest.mark.promise("F3", "F5", "F22", "P2", "P3", "P4")
def test_f3_f5_p2_p3_p4_a_stopped_engine(model: Path, tmp_path: Path, measured: Measured) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, "engine", signal.SIGSTOP)
        replies = await cell.answers(within=HUNG_SECONDS)
        assert all(reply.error for reply in replies), cell.phase
        assert await cell.ended() == (71 if cell.phase == "loading" else 70), cell.phase
        seen = time.monotonic() - cell.struck
        await cell.gone()
        told = "stopped while starting" if cell.phase == "loading" else "ago: step"
        assert told in cell.server.log.read_text(), cell.phase
        return seen

    slowest = max(run(model, tmp_path, test))
    measured(f"SIGSTOP: seen, answered and over after {slowest:.1f} s of {HUNG_SECONDS:.1f} s for the answers")


@pytest.mark.promise("F4", "P3")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_f4_p3_a_killed_server(number: signal.Signals, model: Path, tmp_path: Path, measured: Measured) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, "server", number)
        assert await cell.ended() == -number, cell.phase
        await cell.gone()
        await cell.answers(within=ANSWER_SECONDS + GONE_SECONDS)  # the kernel closed the connections
        return time.monotonic() - cell.struck

    measured(f"server {number.name}: nothing left after {max(run(model, tmp_path, test)):.2f} s")


@pytest.mark.promise("P2", "P3")
def test_p2_p3_a_server_that_was_stopped_for_a_while_goes_on(model: Path, tmp_path: Path) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, "server", signal.SIGSTOP)
        await asyncio.sleep(1.5)
        cell.processes[0].send_signal(signal.SIGCONT)
        if cell.phase == "loading":
            assert (await asyncio.to_thread(lambda: cell.server.phase)).startswith("weights")
        if cell.phase != "draining":
            cell.server.process.send_signal(signal.SIGTERM)
        replies = await cell.answers(within=45)
        assert not any(reply.error for reply in replies), cell.phase
        assert await cell.ended() == 0, cell.phase
        await cell.gone()
        return 0.0

    run(model, tmp_path, test)


@pytest.mark.promise("F4", "P3")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_f4_p3_a_server_killed_before_its_engine_speaks(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    for delay in (0.0, 0.03, 0.1, 0.2, 0.4):
        sockets = tmp_path / str(delay)
        sockets.mkdir()
        log = tmp_path / "log"
        process = spawn(str(model), log, *flags_for("loading"), environment={"TMPDIR": str(sockets)})
        server = LiveServer("", process, log)
        try:
            server.wait_until(lambda: any(sockets.iterdir()), 60)  # noqa: B023  it ends before the next round
            time.sleep(delay)
            cell = Cell(f"after {delay} s", server, sockets, processes=[psutil.Process(process.pid), server.engine])
            strike(cell, "server", number)
        finally:
            process.kill()
            process.wait()
        asyncio.run(cell.gone())


@pytest.mark.promise("F1", "F3", "P1", "P2", "P3", "P4")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP], ids=lambda number: number.name)
def test_f1_f3_p3_p4_an_engine_struck_before_it_speaks(number: signal.Signals, model: Path, tmp_path: Path) -> None:
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    environment = {"TMPDIR": str(sockets)}
    with listening_server(str(model), tmp_path / "log", *flags_for("loading"), environment=environment) as server:
        server.wait_until(lambda: bool(psutil.Process(server.process.pid).children()), 60)
        cell = Cell("starting", server, sockets, processes=[psutil.Process(server.process.pid), server.engine])
        strike(cell, "engine", number)
        assert server.process.wait(30) == 71
        assert time.monotonic() - cell.struck < HUNG_SECONDS + GONE_SECONDS
        asyncio.run(cell.gone())


def run(model: Path, tmp_path: Path, test: Callable[[Cell], Coroutine[Any, Any, float]]) -> list[float]:
    """The test in all phases at once."""

    async def all_phases() -> list[float]:
        async with cells(model, tmp_path) as made:
            return list(await asyncio.gather(*(test(cell) for cell in made)))

    return asyncio.run(all_phases())
