"""{server, engine} x {SIGKILL, SIGSEGV, SIGSTOP} x {starting, loading, idle, prefill, decode, draining}, with real
processes. `test_kill_ranks.py` strikes one of several ranks.

Whoever is struck, whenever: every open request is answered or its connection ends, the exit code is true, and after
three seconds no process, socket or shared memory is left. The phases of a pair run side by side.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.reliability.cells import ANSWER_SECONDS, GONE_SECONDS, HUNG_SECONDS, Cell, flags_for, run, strike
from tests.support.live_server import LiveServer, listening_server, spawn
from tests.support.promises import Measured


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


def engine_runs(server: int) -> bool:
    return any("mainspring.core.engine" in child.cmdline() for child in psutil.Process(server).children())


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
            server.wait_until(lambda: engine_runs(process.pid), 60)  # noqa: B023  it ends before the next round
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
        server.wait_until(lambda: bool(server.engines), 60)
        cell = Cell("starting", server, sockets, processes=[psutil.Process(server.process.pid), server.engine])
        strike(cell, "engine", number)
        assert server.process.wait(30) == 71
        assert time.monotonic() - cell.struck < HUNG_SECONDS + GONE_SECONDS
        asyncio.run(cell.gone())
