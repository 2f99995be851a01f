"""Server-sent events over ASGI, and the race against a client that leaves.

uvicorn raises nothing when the peer has gone, so both kinds of answers watch `receive()` themselves. Whatever ends an
answer early closes its source, which ends the request in the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mainspring.core.errors import ErrorKind, RequestError

KEEP_ALIVE_SECONDS = 15.0
"""Quiet for so long, a comment is sent, so that proxies do not take the stream for dead (TGI's interval)."""
SEND_SECONDS = 60.0
"""A client that takes nothing for so long is given up; at the latest when it has been twice as long."""

_KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
"""OpenAI's end of a stream."""

T = TypeVar("T")
Events = AsyncGenerator[bytes, None]


def event(value: Any) -> bytes:
    """One event. JSON never holds a raw line break, so one data line is enough."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when the client left first; the work is then cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        await _end(task, gone)


class EventStream(Response):
    """A streamed answer whose status is still open until its first event is there.

    `refuse` makes the plain response for an error before the first event, `failure` the one event for an error after.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events,
        *,
        refuse: Callable[[RequestError], Response],
        failure: Callable[[RequestError], bytes],
        headers: Mapping[str, str],
    ) -> None:
        self._events = events
        self._refuse = refuse
        self._failure = failure
        self._num_sent = 0
        self._sending = False
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = asyncio.ensure_future(self._answer(scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        stuck = asyncio.ensure_future(self._stuck())
        try:
            await asyncio.wait({answer, gone, stuck}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await answer
        finally:
            await _end(answer, gone, stuck)
            await self._events.aclose()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = asyncio.ensure_future(anext(self._events, None))
        try:
            # A long wait for the first event must not look like a dead server: then the status is given away.
            await asyncio.wait({first}, timeout=KEEP_ALIVE_SECONDS)
            if first.done() and isinstance(first.exception(), RequestError):
                refusal = self._refuse(first.exception())  # type: ignore[arg-type]  # seen in the line above
                await refusal(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._stream(first, send)
        finally:
            await _end(first)

    async def _stream(self, first: asyncio.Future[bytes | None], send: Send) -> None:
        # Holds unless something better is known: every stream ends with a result or with one error event.
        failure: RequestError | None = RequestError(ErrorKind.INTERNAL, "the stream broke off")
        keep_alive = asyncio.ensure_future(self._keep_alive(send))
        try:
            chunk = await first
            while chunk is not None:
                self._sending = True
                await _send_body(send, chunk, more=True)
                self._sending = False
                self._num_sent += 1
                chunk = await anext(self._events, None)
            failure = None
        except RequestError as error:
            failure = error
        finally:
            await _end(keep_alive)
            if not self._sending:  # else the client took not even the last event
                async with asyncio.timeout(SEND_SECONDS):
                    await _send_body(send, self._failure(failure) if failure is not None else b"", more=False)

    async def _keep_alive(self, send: Send) -> None:
        while True:
            before = self._num_sent
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if self._num_sent == before:
                await _send_body(send, _KEEP_ALIVE, more=True)

    async def _stuck(self) -> None:
        """Returns when one event could not be sent all the while between two looks: cheaper than a timer an event."""
        stuck_at: int | None = None
        while stuck_at != self._num_sent:
            stuck_at = self._num_sent if self._sending else None
            await asyncio.sleep(SEND_SECONDS)


async def _send_body(send: Send, body: bytes, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait until it has ended; nothing outlives its request."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
