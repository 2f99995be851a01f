"""The other ranks as rank 0 sees them: started, told every step, and watched, so that none dies or stops unnoticed."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from mainspring.core.errors import ChannelClosed, StartupError
from mainspring.core.frames import pack_frame, read_frame
from mainspring.core.parallel.messages import STOP, RankReport, RankStart

RANK_COMMAND = (sys.executable, "-P", "-m", "mainspring.core.parallel.following")
"""`-P` keeps the current directory off the module path."""

_STATES = os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT
_LOOK_SECONDS = 0.05
_PARTING_SECONDS = 5.0

_log = logging.getLogger(__name__)


class RankProcess:
    """One child. It stays in this process's group, so that the server ends it with its engine."""

    def __init__(self, rank: int, start: Callable[[int], RankStart], command: Sequence[str] = RANK_COMMAND) -> None:
        """`start` makes its start frame, given the descriptor that its report goes to."""
        self.rank = rank
        self._reports, report = os.pipe()
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(report,))  # noqa: S603
        os.close(report)
        self._report: RankReport | None = None
        self._reading = threading.Lock()
        self._stopped_at: float | None = None
        with contextlib.suppress(BrokenPipeError):  # it is dead already: `trouble` tells
            self.send(msgspec.msgpack.encode(start(report)))

    def send(self, body: bytes) -> None:
        """One frame. Raises `BrokenPipeError` when the rank is gone."""
        pipe = self._child.stdin
        if pipe is not None:
            pipe.write(pack_frame(body))
            pipe.flush()

    def report(self) -> RankReport:
        """Waits for what it says of its start. May be called again, from any thread."""
        with self._reading:
            if self._report is None:
                try:
                    frame = read_frame(lambda size: os.read(self._reports, size))
                    self._report = msgspec.msgpack.decode(frame, type=RankReport)
                except ChannelClosed:
                    reason = f"rank {self.rank} ended while starting; what it wrote before is above"
                    self._report = RankReport((reason,))
            return self._report

    def trouble(self, patience: float) -> str:
        """Why it can serve no more, in a sentence: it ended, or was stopped more than `patience` seconds ago."""
        state = os.waitid(os.P_PID, self._child.pid, _STATES)
        if state is None or state.si_code == os.CLD_CONTINUED:
            self._stopped_at = None
            return ""
        if state.si_code == os.CLD_STOPPED:
            self._stopped_at = self._stopped_at or time.monotonic()
            late = time.monotonic() > self._stopped_at + patience
            return f"rank {self.rank} was stopped more than {patience:g} s ago" if late else ""
        if state.si_code == os.CLD_EXITED:
            return f"rank {self.rank} exited with code {state.si_status}"
        return f"rank {self.rank} was ended by {signal.Signals(state.si_status).name}"

    @property
    def stands_still(self) -> bool:
        """Whether a signal stopped it, when last looked at."""
        return self._stopped_at is not None

    def kill(self) -> None:
        """SIGKILL. The child is not reaped before `wait`, so the number is still its own."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Reaps it, after SIGKILL when it takes longer."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            _log.warning("rank %d took longer than %.1f s to end", self.rank, seconds)
            self.kill()
            self._child.wait()
        os.close(self._reports)
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()


class Ranks:
    """All others. Made by the main thread: the kernel ends children with the thread that started them."""

    def __init__(
        self,
        starts: Sequence[Callable[[int], RankStart]],
        *,
        grace_seconds: float,
        on_loss: Callable[[Ranks], None],
        command: Sequence[str] = RANK_COMMAND,
    ) -> None:
        """One rank an entry of `starts`, from rank 1. `on_loss` is called on a thread, once."""
        self._grace_seconds = grace_seconds
        self._on_loss = on_loss
        self._parting = threading.Event()
        self._loss = threading.Event()
        self._lost: RankProcess | None = None
        self._trouble = ""
        self._ranks = [RankProcess(rank, start, command) for rank, start in enumerate(starts, start=1)]
        self._watch = threading.Thread(target=self._look, name="ranks-watch", daemon=True)
        self._watch.start()

    def send(self, body: bytes) -> None:
        """The same frame to all."""
        for rank in self._ranks:
            rank.send(body)

    def await_ready(self) -> None:
        """Returns when all can serve. Raises `StartupError` with every reason why some cannot."""
        if reasons := [reason for rank in self._ranks for reason in rank.report().reasons]:
            raise StartupError(reasons)

    def is_lost(self, timeout: float) -> bool:
        """Whether one is, or becomes so within `timeout` seconds."""
        return self._loss.wait(timeout)

    def is_parting(self, timeout: float) -> bool:
        """Whether `close` was called, or is within `timeout` seconds."""
        return self._parting.wait(timeout)

    def reasons(self) -> list[str]:
        """Why one is lost that has not served yet."""
        if self._lost is None:
            return []
        stopped = self._trouble if self._lost.stands_still else ""
        return [stopped] if stopped else [self._trouble, *self._lost.report().reasons]

    def let_go(self) -> None:
        """Tells them to end, and looks at them no more."""
        self._parting.set()
        self._watch.join()
        for rank in self._ranks:
            with contextlib.suppress(BrokenPipeError):
                rank.send(STOP)

    def close(self) -> None:
        """Waits for the end of all, and ends who does not end."""
        if not self._parting.is_set():
            self.let_go()
        until = time.monotonic() + _PARTING_SECONDS
        for rank in self._ranks:
            rank.wait(max(until - time.monotonic(), 0.0))

    def kill(self) -> None:
        """SIGKILL to all, for want of anything better."""
        for rank in self._ranks:
            rank.kill()

    def _look(self) -> None:
        while not self._parting.wait(_LOOK_SECONDS):
            for rank in self._ranks:
                if trouble := rank.trouble(self._grace_seconds):
                    self._lost, self._trouble = rank, trouble
                    self._loss.set()
                    _log.error("%s; ranks cannot go on without each other", trouble)
                    self._on_loss(self)
                    return
