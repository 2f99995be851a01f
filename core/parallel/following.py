"""A rank other than 0: `python -m mainspring.core.parallel.following`. It loads its part and executes what it is told.

It plans nothing and answers nobody. It ends when rank 0 says so, and when rank 0 is gone: nothing here imports torch,
which takes seconds, before that is seen to.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading

import msgspec

from mainspring.core import lifeline
from mainspring.core.backend import Executor, Pending
from mainspring.core.errors import EXIT_ENGINE, EXIT_STARTUP, ChannelClosed, DeviceOutOfMemory, StartupError
from mainspring.core.frames import pack_frame, read_frame
from mainspring.core.parallel.messages import STOP, RankReport, RankStart, unpack_batch
from mainspring.core.parallel.stages import place_of
from mainspring.core.plan import make_plan
from mainspring.core.setting import settle

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.05
"""After so long without a step, the last one's outcome is looked at; before, the next one is given to the device."""

_LEADER_GONE = 1


class Inbox:
    """Frames from rank 0. A thread reads them, so that rank 0 never waits to write; their end is this process's."""

    def __init__(self, descriptor: int) -> None:
        # What this process starts must not hold the pipe or read from it.
        self._pipe = os.dup(descriptor)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, descriptor)
        os.close(null)
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._first = read_frame(self._read)
        threading.Thread(target=self._receive, name="inbox", daemon=True).start()

    @property
    def first(self) -> bytes:
        """The frame that came before all that `next` gives."""
        return self._first

    def next(self, timeout: float | None = None) -> bytes | None:
        """The next frame; None when `timeout` seconds pass first."""
        try:
            return self._frames.get(timeout=timeout)
        except queue.Empty:
            return None

    def _read(self, size: int) -> bytes:
        return os.read(self._pipe, size)

    def _receive(self) -> None:
        try:
            while True:
                self._frames.put(read_frame(self._read))
        except ChannelClosed:
            os._exit(_LEADER_GONE)  # the main thread may be inside the device


def main() -> int:
    """The process from its start frame to its exit code."""
    inbox = Inbox(sys.stdin.fileno())
    start = msgspec.msgpack.decode(inbox.first, type=RankStart)
    lifeline.tie_to_parent(start.leader_pid)
    lifeline.listen_to_signals()
    # A service manager that stops all processes of a group means the server, which tells rank 0, which tells this one.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    name = f"rank {start.rank}"
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s")
    try:
        executor = build_executor(start)
    except StartupError as error:
        _report(start, RankReport(tuple(f"{name}: {reason}" for reason in error.reasons)))
        return EXIT_STARTUP
    except Exception as error:  # noqa: BLE001  the process's own border: the operator must hear the reason
        _log.exception("start-up failed")
        reason = f"{name}: start-up failed: {type(error).__name__}: {error}; the log has the trace"
        _report(start, RankReport((reason,)))
        return EXIT_STARTUP
    _report(start, RankReport())
    try:
        follow(executor, inbox)
    except DeviceOutOfMemory as error:
        _log.error("%s; ranks cannot go on without each other", error)
        return EXIT_ENGINE
    except Exception:  # noqa: BLE001  the process's own border: rank 0 sees it end
        _log.exception("a step failed; ranks cannot go on without each other")
        return EXIT_ENGINE
    from mainspring.core.parallel import meeting

    executor.close()
    meeting.part()
    return 0


def follow(executor: Executor, inbox: Inbox) -> None:
    """Executes every batch in order, one ahead of the device as rank 0 does, until `STOP`.

    Raises what a step raises: this rank has no request to answer, and rank 0 sees it end.
    """
    landing: Pending | None = None
    while (frame := inbox.next(_IDLE_SECONDS if landing is not None else None)) != STOP:
        flying = None if frame is None else executor.execute(unpack_batch(frame))
        if landing is not None:
            landing.result()
        landing = flying
    if landing is not None:
        landing.result()


def build_executor(start: RankStart) -> Executor:
    """This rank's part of the model on its device."""
    from mainspring.core.execution import loading
    from mainspring.core.parallel import meeting

    setting = settle(start.config)
    config, backend, info = setting.config, setting.choice.backend, setting.devices[start.rank]
    place = place_of(start.rank, config.num_shard or 1, config.num_stages, whole_experts=config.expert_parallel)
    plan = make_plan(config, setting.model, backend, setting.smallest, setting.speculator)
    device = backend.open(info.index, place.rank, place.world, config)
    capabilities = backend.capabilities(info)
    meeting.meet(place, str(capabilities.collectives), start.port)
    return loading.build_executor(
        config,
        setting.model,
        plan,
        device,
        info=info,
        capabilities=capabilities,
        progress=lambda phase, done, total: None,
        model_plugins=setting.plugins.models(),
        processor_plugins=setting.plugins.logits_processors(),
        place=place,
    )


def _report(start: RankStart, report: RankReport) -> None:
    with os.fdopen(start.report, "wb") as pipe:
        pipe.write(pack_frame(msgspec.msgpack.encode(report)))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # No library may keep a rank that failed waiting for the others in its destructors.
    os._exit(code)
