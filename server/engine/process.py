"""The engine process as the server sees it: started, watched, and ended so that nothing outlives the server.

The child gets its configuration as one frame on its standard input, which then stays open: its end tells the child that
the server is gone. The kernel tells when it exits, and when a signal stops it. It leads a session of its own, so a
terminal's Ctrl-C reaches the server alone, which drains. What the child says is `client.py`; what it does is
`core/engine.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from mainspring.core.channel import EngineStart, pack_start

ENGINE_COMMAND = (sys.executable, "-P", "-m", "mainspring.core.engine")
"""`-P` keeps the current directory off the module path."""

STACK_DUMP_SIGNAL = signal.SIGUSR1
"""The engine's faulthandler writes the stacks of all its threads to standard error."""

_STATES = os.WEXITED | os.WSTOPPED | os.WCONTINUED
_STANDSTILL = (os.CLD_STOPPED, os.CLD_CONTINUED)
_DUMP_SECONDS = 0.3
_TERMINATE_ATTEMPTS = 8
_TERMINATE_SECONDS = 0.25


class EngineProcess:
    """One child process. Create it in the event loop's own thread: the kernel ends the child when that thread ends."""

    def __init__(self, directory: str, command: Sequence[str] = ENGINE_COMMAND) -> None:
        """`directory` is of the channel's sockets: the child removes it, even if it hears no more."""
        self._child = subprocess.Popen([*command, directory], stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._reaping = threading.Lock()
        self.stopped_at = math.inf
        """When a signal stopped it (SIGSTOP), in monotonic seconds; infinity while it runs."""
        # A thread sees the exit at once, whatever the event loop and its child watcher are.
        threading.Thread(target=self._await_exit, name="engine-exit", daemon=True).start()

    def begin(self, start: EngineStart) -> None:
        """Tells it what to serve. It waits for that, or for the end of its server."""
        self._write(pack_start(start))

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, its exit code, or minus the number of the signal that ended it."""
        return self._child.returncode if self._exited.is_set() else None

    async def wait(self, timeout: float | None = None) -> int | None:
        """The return code, or None when `timeout` seconds pass first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._exited.wait()
        return self.returncode

    async def dump_stacks(self) -> None:
        """Asks for the stacks of all threads on standard error, those of other ranks too, and gives them a moment."""
        with self._reaping:
            if self._child.returncode is None:
                os.killpg(self.pid, STACK_DUMP_SIGNAL)
        await self.wait(_DUMP_SECONDS)

    async def end(self) -> None:
        """Ends it for good: SIGTERM, which stops an engine that drains already, then SIGKILL."""
        for _ in range(_TERMINATE_ATTEMPTS):
            self._signal(signal.SIGTERM)
            if await self.wait(_TERMINATE_SECONDS) is not None:
                break
        else:
            self.kill()
            await self.wait()
        self.close_pipe()

    def kill(self) -> None:
        """SIGKILL."""
        self._signal(signal.SIGKILL)

    def close_pipe(self) -> None:
        """Tells the engine that its server is gone."""
        pipe = self._child.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def describe_exit(self) -> str:
        """How it ended, in words."""
        code = self.returncode
        if code is None:
            return "the engine process is running"
        if code < 0:
            return f"the engine process was ended by {signal.Signals(-code).name}"
        return f"the engine process exited with code {code}"

    def _signal(self, number: int) -> None:
        with self._reaping:
            if self._child.returncode is None:
                os.kill(self.pid, number)

    def _write(self, frame: bytes) -> None:
        pipe = self._child.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # it is dead already: `wait` tells
                pipe.write(frame)
                pipe.flush()

    def _await_exit(self) -> None:
        while (state := os.waitid(os.P_PID, self.pid, _STATES | os.WNOWAIT)) and state.si_code in _STANDSTILL:
            self.stopped_at = time.monotonic() if state.si_code == os.CLD_STOPPED else math.inf
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        with self._reaping:
            # What it started goes too. Dead but not reaped, it still owns its number: this can hit no stranger.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._child.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed first
            self._loop.call_soon_threadsafe(self._exited.set)
