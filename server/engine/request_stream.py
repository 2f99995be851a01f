"""What one request receives: deltas, merged while nobody reads, and the one place that ends a request early.

A stream never makes the engine wait. What arrives while the reader is busy is merged into one delta a sequence, and a
reader that falls `MAX_UNREAD_TOKENS` behind is given up. The stream owns its request's abort: leaving it before every
sequence has finished cancels the rest in the engine, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mainspring.core.errors import ErrorKind
from mainspring.core.request import Delta, FinishReason, RequestId

MAX_UNREAD_TOKENS = 2048
"""What may wait for the reader, in tokens of about 50 bytes: 100 kB. Log-probabilities count for more (`_weight`)."""

Abort = Callable[["RequestStream", int | None], None]
"""Cancels one sequence of the stream's request, or with None the request; the client forgets the stream then."""


class RequestStream:
    """An asynchronous iterator of `Delta`. Each sequence's last delta has a `finish` reason, whatever happens.

    Use it as an asynchronous context manager, or call `aclose` in a `finally`.
    """

    def __init__(self, request_id: RequestId, n: int, abort: Abort) -> None:
        self.request_id = request_id
        self._unfinished = set(range(n))
        self._abort = abort
        self._unread: dict[int, Delta] = {}
        self._unread_tokens = 0
        self._reader: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """Whether every sequence has its finish reason (which may still wait to be read)."""
        return not self._unfinished

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """What one sequence gained since it was last read."""
        while not self._unread:
            if not self._unfinished:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        delta = self._unread.pop(next(iter(self._unread)))
        self._unread_tokens -= _weight(delta)
        return delta

    def cancel(self, index: int) -> None:
        """Stops one sequence, e.g. at a stop string; its last delta says CANCELLED unless it ended otherwise first."""
        if index in self._unfinished:
            self._abort(self, index)

    async def aclose(self) -> None:
        """Ends the request if it has not ended, and the iteration. May be called again."""
        self.close()

    def close(self) -> None:
        """`aclose` for callers that cannot wait; it never needs to."""
        if self._unfinished:
            self._unfinished.clear()
            self._abort(self, None)
        self._unread.clear()
        self._unread_tokens = 0
        self._wake()

    def push(self, delta: Delta) -> None:
        """For the client: one delta from the engine."""
        if delta.index not in self._unfinished:
            return
        unread = self._unread.get(delta.index)
        if unread is None:
            self._unread[delta.index] = delta
        else:
            _merge(unread, delta)
        if delta.finish is not None:
            self._unfinished.discard(delta.index)
        self._unread_tokens += _weight(delta)
        self._wake()
        if self._unread_tokens > MAX_UNREAD_TOKENS and self._unfinished:
            self._give_up()

    def fail(self, kind: ErrorKind, message: str) -> None:
        """For the client: ends every sequence that has not finished with an error."""
        for index in sorted(self._unfinished):
            self.push(Delta(self.request_id, index, [], FinishReason.ERROR, error=kind, message=message))

    def _give_up(self) -> None:
        """The reader is too slow: what it has not read stays readable, and nothing more is generated."""
        self._abort(self, None)
        for index in sorted(self._unfinished):
            self.push(Delta(self.request_id, index, [], FinishReason.CANCELLED))

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


def _weight(delta: Delta) -> int:
    weight = len(delta.tokens)
    if delta.logprobs is not None:
        # In tokens' 50 bytes: an entry is a struct and two lists, an alternative two numbers and, sent, a line of JSON.
        weight += sum(4 + 3 * len(entry.top_ids) for entry in delta.logprobs)
    return weight


def _merge(unread: Delta, delta: Delta) -> None:
    """Appends `delta` to what the same sequence gained before."""
    unread.tokens.extend(delta.tokens)
    if delta.logprobs is not None:
        unread.logprobs = [*(unread.logprobs or ()), *delta.logprobs]
    unread.finish = delta.finish
    unread.error = delta.error
    unread.message = delta.message
    unread.start = unread.start or delta.start
    unread.prompt_logprobs = unread.prompt_logprobs or delta.prompt_logprobs
