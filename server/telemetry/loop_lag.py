"""How late the event loop is: the wait that every request, probe and token shares, whoever caused it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TICK_SECONDS = 0.02
"""Often enough to see a stall of a frame's length, seldom enough to cost nothing."""


async def watch(observe: Callable[[float], None]) -> None:
    """Asks to be woken each `TICK_SECONDS`, for ever, and reports by how much it was late."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        observe(max(loop.time() - due, 0.0))
