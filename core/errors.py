"""Every error Mainspring raises on purpose, in one tree.

Two families: `StartupError` says why the server cannot start and is printed before anything is loaded;
`RequestError` ends one request and nothing else. The server maps `RequestError.kind` to HTTP in one table
per protocol (`server/tgi/errors.py`, `server/openai/errors.py`). Messages carry the value and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import StrEnum

EXIT_ENGINE = 70
"""The engine failed while serving (`EX_SOFTWARE` of sysexits.h)."""
EXIT_STARTUP = 71
"""It could not start; every reason was said."""
EXIT_DRAIN_OVERRUN = 72
"""Requests were still running when the time to finish them was over."""


class MainspringError(Exception):
    """Base of the tree; never raised itself."""


class StartupError(MainspringError):
    """The server cannot start. Carries every reason at once, not the first one met."""

    def __init__(self, reasons: str | Sequence[str]) -> None:
        self.reasons: tuple[str, ...] = (reasons,) if isinstance(reasons, str) else tuple(reasons)
        super().__init__("\n".join(self.reasons))


class ModelError(StartupError):
    """The model argument, its config or its weights cannot be used."""


class BackendError(StartupError):
    """A backend is unknown, unavailable, or written for another contract."""


class ErrorKind(StrEnum):
    """Why a request ended without a result. The string crosses the process border."""

    INVALID = "invalid"
    """The request itself is wrong; the same request will fail again."""
    OVERLOADED = "overloaded"
    """The queue is full; try again later."""
    DEADLINE = "deadline"
    """The request's own deadline passed before it finished."""
    OUT_OF_MEMORY = "out_of_memory"
    """The device ran out of memory on this request."""
    NUMERICAL = "numerical"
    """The model produced NaN or infinity for this request; nothing of it was cached."""
    ENGINE_DEAD = "engine_dead"
    """The engine process died or hung; the server is going down."""
    SHUTTING_DOWN = "shutting_down"
    """The server is draining and accepts nothing new."""
    INTERNAL = "internal"
    """A defect in Mainspring; the log has the trace."""


class RequestError(MainspringError):
    """One request failed. `message` is safe to show to the client."""

    def __init__(self, kind: ErrorKind, message: str, retry_after: float | None = None) -> None:
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
        """Seconds after which trying again makes sense; None where it does not."""
        super().__init__(message)


class ChannelClosed(MainspringError):
    """The other end of the channel is gone."""


class DeviceOutOfMemory(MainspringError):
    """A step did not fit in device memory. The backend raises it; the engine fails that step's requests only."""


def unknown(noun: str, given: str, known: Iterable[str]) -> str:
    """A sentence for an unknown name that offers the nearest known one.

    >>> unknown("backend", "cdua", ["cpu", "cuda"])
    "unknown backend 'cdua'; did you mean 'cuda'? Known: cpu, cuda"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {noun} {given!r}{hint} Known: {', '.join(names) or 'none'}"
