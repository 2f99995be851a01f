"""A server in each phase of its life, with open requests, for tests that strike one of its processes."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.reliability.conftest import SIM
from tests.support.live_server import LiveServer, listening_server
from tests.support.raw_http import Reply, post, read_reply

PHASES = ("loading", "idle", "prefill", "decode", "draining")
STREAMS = 6
ANSWER_SECONDS = 1.0
GONE_SECONDS = 3.0
HUNG_SECONDS = 1.0 + 0.1 + 5.0 + 1.0
"""A simulated step's bound, the engine's grace, and the promise's second; the steps here take a hundredth."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What servers are struck."""

    flags: Callable[[str], list[str]]
    """By the phase."""
    max_tokens: int = 800
    """Of a request, so that it lasts."""
    ranks: int = 1
    rounds: Sequence[Sequence[str]] = (PHASES,)
    """Phases that are tried at once; those that cannot be made to last go alone."""


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


def requests_for(phase: str, max_tokens: int) -> list[bytes]:
    """Long ones on several routes, streams and not; none where none is open in the phase."""
    if phase in ("loading", "idle"):
        return []
    inputs = "x" * 1500 if phase == "prefill" else "hello"
    max_tokens = max_tokens // 2 if phase == "prefill" else max_tokens
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
async def cells(model: Path, tmp_path: Path, kind: Kind, phases: Sequence[str]) -> AsyncIterator[list[Cell]]:
    """A server in each of the phases, with its requests open."""
    with ExitStack() as stack:
        started = [(phase, *_start(stack, model, tmp_path / phase, kind.flags(phase))) for phase in phases]
        made = [Cell(phase, server, sockets) for phase, server, sockets in started]
        # All are up before any is busy: they share a few cores.
        await asyncio.gather(*(_load(cell, kind) for cell in made))
        await asyncio.gather(*(_bring(cell, kind) for cell in made))
        yield made
        for cell in made:
            for request in cell.requests:
                request.cancel()


def _start(stack: ExitStack, model: Path, sockets: Path, flags: list[str]) -> tuple[LiveServer, Path]:
    sockets.mkdir()
    environment = {
        "TMPDIR": str(sockets),
        "TORCHINDUCTOR_CACHE_DIR": str(sockets.with_suffix(".torch")),
    }  # torch's own may stay
    server = listening_server(str(model), sockets.with_suffix(".log"), *flags, environment=environment)
    return stack.enter_context(server), sockets


async def _load(cell: Cell, kind: Kind) -> None:
    server = cell.server
    if cell.phase != "loading":
        await asyncio.to_thread(server.wait_until, lambda: server.phase == "ready", 60)
    elif kind.ranks == 1:
        await asyncio.to_thread(server.wait_until, lambda: server.phase.startswith("weights"), 60)
    await asyncio.to_thread(server.wait_until, lambda: len(_family(server)) == 1 + kind.ranks, 60)


async def _bring(cell: Cell, kind: Kind) -> None:
    server = cell.server
    requests = requests_for(cell.phase, kind.max_tokens)
    cell.requests = [asyncio.create_task(ask(server.port, request)) for request in requests]
    if cell.requests:
        running = "mainspring_num_requests_running"
        await asyncio.to_thread(server.wait_until, lambda: server.metric(running) == STREAMS, 30)
    if cell.phase == "draining":
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_until, lambda: server.phase == "draining", 10)
    cell.processes = _family(server)
    for process in cell.processes:
        assert not [entry.path for entry in process.memory_maps() if entry.path.startswith("/dev/shm/")]


def _family(server: LiveServer) -> list[psutil.Process]:
    """The server, its engine, the ranks that are not the engine."""
    root, found = psutil.Process(server.process.pid), []
    for process in root.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # an engine also asks its host questions
            if any(word.startswith("mainspring.core.") for word in process.cmdline()):
                found.append(process)
    return [root, *found]


def strike(cell: Cell, victim: str, number: signal.Signals) -> None:
    cell.struck = time.monotonic()
    cell.processes[("server", "engine", "rank").index(victim)].send_signal(number)


SIMULATED = Kind(flags_for)


def run(
    model: Path, tmp_path: Path, test: Callable[[Cell], Coroutine[Any, Any, float]], kind: Kind = SIMULATED
) -> list[float]:
    """The test in all phases."""

    async def at_once(phases: Sequence[str]) -> list[float]:
        async with cells(model, tmp_path, kind, phases) as made:
            return list(await asyncio.gather(*(test(cell) for cell in made)))

    return [found for phases in kind.rounds for found in asyncio.run(at_once(phases))]
