"""What one key may ask for at once and in a minute, so that one client's burst leaves room for all others.

Clients are told apart by their keys alone. What all of them together may ask for is bounded in `service.py` and in the
engine's queue; tokens, money and tiers of customers are a gateway's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.server.http.auth import authorization_of, key_digest

_MINUTE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Of each key; None is without bound."""

    at_once: int | None = None
    """Requests in progress."""
    a_minute: int | None = None
    """Requests that begin in any minute, on the average; as many may begin together."""

    def __bool__(self) -> bool:
        return self.at_once is not None or self.a_minute is not None


@dataclass(slots=True)
class _Use:
    """What a key has taken."""

    running: int
    left: float
    """Requests that may begin now."""
    counted: float
    """When `left` was true."""


class Quotas:
    """Answers 429 to a key that has used its quota up. Stands behind `Authentication`; only POST asks for work."""

    def __init__(
        self,
        app: ASGIApp,
        quota: Quota,
        refuse: Callable[[Scope, RequestError], Response],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._quota = quota
        self._refuse = refuse
        self._clock = clock
        self._uses: dict[bytes, _Use] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and scope["method"] == "POST"
        key = key_digest(authorization_of(scope)) if asks else None
        if key is None:
            await self._app(scope, receive, send)
            return
        try:
            use = self._take(key)
        except RequestError as error:
            await self._refuse(scope, error)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            use.running -= 1

    def _take(self, key: bytes) -> _Use:
        """Counts one more request of a key. Raises RequestError (OVERLOADED) where that is too many."""
        quota, now = self._quota, self._clock()
        use = self._uses.setdefault(key, _Use(0, quota.a_minute or 0, now))
        if quota.at_once is not None and use.running >= quota.at_once:
            raise _used_up(f"{quota.at_once} requests of this key are already in progress", 1.0)
        if quota.a_minute is not None:
            use.left = min(use.left + (now - use.counted) * quota.a_minute / _MINUTE, quota.a_minute)
            use.counted = now
            if use.left < 1:
                seconds = (1 - use.left) * _MINUTE / quota.a_minute
                raise _used_up(f"{quota.a_minute} requests of this key have begun in this minute", seconds)
            use.left -= 1
        use.running += 1
        return use


def _used_up(message: str, retry_after: float) -> RequestError:
    return RequestError(ErrorKind.OVERLOADED, message, retry_after=max(retry_after, 1.0))
