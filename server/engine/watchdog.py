"""When an engine has been silent for too long: every message of it says by when the next is due.

It looks from outside, so it does not matter what the engine hangs in. What becomes of the requests is `client.py`.
"""

from __future__ import annotations

import asyncio
import logging

from mainspring.core.request import StepOutput
from mainspring.server.engine.flight_record import FlightRecord
from mainspring.server.engine.process import EngineProcess

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
"""How often it looks."""


class Watchdog:
    """Of one engine. Times are the event loop's."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._due: float | None = None
        self._record = FlightRecord()

    def serves(self, now: float) -> None:
        """The engine has started. Before that nothing is due, however long loading takes."""
        self._due = now + self._grace_seconds

    def heard(self, now: float, output: StepOutput) -> None:
        """The engine said something, and by when it will again."""
        self._due = now + output.deadline
        self._record.note(now, output)

    async def watch(self, process: EngineProcess) -> str | None:
        """Kills an engine that hangs, or was stopped while it loaded, and says which; None if it had ended."""
        await self._wait_until_overdue(process)
        if process.returncode is not None:
            return None
        _log.error("the engine hangs: nothing for longer than it announced; its last steps and its stacks follow")
        for line in self._record.lines(asyncio.get_running_loop().time()):
            _log.error("%s", line)
        await process.dump_stacks()
        process.kill()
        return "the engine was stopped" if self._due is None else "the engine hung: a step took longer than its bound"

    async def _wait_until_overdue(self, process: EngineProcess) -> None:
        overdue, loop = 0, asyncio.get_running_loop()
        while overdue < 2:
            await asyncio.sleep(_TICK_SECONDS)
            due = process.stopped_at + self._grace_seconds if self._due is None else self._due
            # Twice in a row: a server that itself stood still must first read what came meanwhile.
            overdue = overdue + 1 if loop.time() > due else 0
