"""The server's door to the engine: starts it, submits requests, hands out what they gain, and knows whether it lives.

`EngineClient` owns the engine process and both queues. Whatever happens to the engine, every open stream ends: with its
own result, or within a second of the engine's death with `ErrorKind.ENGINE_DEAD`. HTTP and text are not here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence

from mainspring.core.channel import EngineStart, ServerChannel
from mainspring.core.config import EngineConfig
from mainspring.core.errors import (
    EXIT_DRAIN_OVERRUN,
    EXIT_ENGINE,
    EXIT_STARTUP,
    ChannelClosed,
    ErrorKind,
    RequestError,
    StartupError,
)
from mainspring.core.metrics import Stats
from mainspring.core.request import (
    Cancel,
    Drain,
    FromEngine,
    Progress,
    Ready,
    RequestId,
    SamplingParams,
    StartupFailed,
    StepOutput,
    Submit,
    Vocabulary,
)
from mainspring.server.engine.process import EngineProcess
from mainspring.server.engine.request_stream import RequestStream
from mainspring.server.engine.watchdog import Watchdog

_log = logging.getLogger(__name__)

_REST_SECONDS = 5.0
"""What the last answers may take from an engine that has drained and ended."""

MERGED_STEPS = 16
"""Messages of the engine that are handled together while their readers wait, at most."""

ProgressListener = Callable[[Progress], None]
Observer = Callable[[StepOutput], None]


class EngineClient:
    """One engine. `await start()` once, `submit` from any task of the same event loop, `await aclose()` at the end."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_progress: ProgressListener | None = None,
        observers: Sequence[Observer] = (),
        grace_seconds: float = 5.0,
    ) -> None:
        self._config = config
        self._on_progress = on_progress
        self._observers = list(observers)
        self._grace_seconds = grace_seconds
        self._request_ids = itertools.count(1)
        self._streams: dict[RequestId, RequestStream] = {}
        self._unsent: deque[Cancel | Drain | Vocabulary] = deque()
        self._channel: ServerChannel | None = None
        self._process: EngineProcess | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._exit_watch: set[asyncio.Task[None]] = set()
        self._started: asyncio.Future[Ready] | None = None
        self._failed = asyncio.Event()
        self._ready: Ready | None = None
        self._progress: Progress | None = None
        self._stats = Stats()
        self._watchdog = Watchdog(grace_seconds)
        self._failure: str | None = None
        self._exit_code = 0
        self._stopping = False
        """The engine was asked to stop."""
        self._ended = False
        """It was made to."""

    # What the engine is

    @property
    def ready(self) -> Ready | None:
        """The engine's limits, once it serves; None while it loads. It stays readable after the engine died."""
        return self._ready

    @property
    def progress(self) -> Progress | None:
        """Where start-up is, as last told."""
        return self._progress

    @property
    def stats(self) -> Stats:
        """As of the last step or heartbeat."""
        return self._stats

    @property
    def healthy(self) -> bool:
        """Whether requests are answered: started, not failed, not draining."""
        return self._ready is not None and self._failure is None and not self._stopping

    @property
    def failure(self) -> str | None:
        """Why the engine is dead, in a sentence for the operator; None while it is not. Never unset."""
        return self._failure

    @property
    def exit_code(self) -> int:
        """What the server process should exit with: 0 for a stop that was asked for, else one of `core.channel`'s."""
        return self._exit_code

    @property
    def open_streams(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def engine_pid(self) -> int | None:
        """None before `start`."""
        return self._process.pid if self._process is not None else None

    async def failed(self) -> str:
        """Waits until the engine has died or hangs and returns `failure`. A stop that was asked for is no failure."""
        await self._failed.wait()
        return self._failure or ""

    # Life

    async def start(self) -> Ready:
        """Starts the engine process and waits until it serves. Raises `StartupError` with every reason it gave.

        Run it in the background where the server must listen first. When it is cancelled or raises, nothing is left.
        """
        self._started = asyncio.get_running_loop().create_future()
        try:
            self._channel = ServerChannel()
            self._process = EngineProcess(str(self._channel.directory))
            self._process.begin(self._start_frame(self._channel))
            exit_watch = asyncio.create_task(self._watch_exit(self._process), name="engine-exit")
            self._exit_watch = {exit_watch}
            self._tasks = [
                exit_watch,
                asyncio.create_task(self._receive(self._channel), name="engine-receive"),
                asyncio.create_task(self._watch_silence(self._process), name="engine-watchdog"),
            ]
            return await self._started
        except BaseException:
            await asyncio.shield(self._release())
            raise

    async def drain(self, seconds: float) -> bool:
        """Refuses new requests and lets the running ones finish; False when they did not within `seconds`.

        On False the rest has ended with SHUTTING_DOWN and the exit code says that the drain overran.
        """
        self._stopping = True
        if self._process is None or self._failure is not None or self._ended:
            return True
        self._send(Drain())
        # An engine that still loads reads no messages, and nothing runs in it.
        finished, _ = await asyncio.wait(self._exit_watch, timeout=seconds if self._ready is not None else 0.0)
        if not finished:
            if self._streams:
                self._exit_code = EXIT_DRAIN_OVERRUN
            self._ended = True
            await self._process.end()
            await asyncio.wait(self._exit_watch)
        return bool(finished)

    async def aclose(self) -> None:
        """Ends the engine and whatever still runs in it, at once. May be called again; `drain` first to be polite."""
        if not self._stopping:
            await self.drain(0.0)
        await self._release()

    # Requests

    def submit(
        self,
        tokens: list[int],
        params: SamplingParams,
        *,
        n: int = 1,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str = "",
        said: int = 0,
    ) -> RequestStream:
        """Hands a request to the engine; at once, in the event loop's thread. The stream must be closed by the caller.

        Raises `RequestError`: ENGINE_DEAD, SHUTTING_DOWN, OVERLOADED (loading, or the queue to the engine is full),
        INVALID (over `MAX_FRAME_BYTES`). What the engine itself refuses comes as the stream's deltas.
        """
        self._refuse_unless_serving()
        request_id = RequestId(next(self._request_ids))
        submit = Submit(request_id, tokens, params, n, priority, timeout, cache_salt, said)
        self._require_channel().send(submit)
        stream = RequestStream(request_id, n, self._abort)
        self._streams[request_id] = stream
        return stream

    def teach(self, vocabulary: Vocabulary) -> None:
        """Tells the engine what tokens stand for, once, before the first request with a grammar."""
        self._send(vocabulary)

    def _refuse_unless_serving(self) -> None:
        if self._failure is not None:
            raise RequestError(ErrorKind.ENGINE_DEAD, "the engine is not running")
        if self._stopping:
            raise RequestError(ErrorKind.SHUTTING_DOWN, "the server is shutting down")
        if self._ready is None:
            raise RequestError(ErrorKind.OVERLOADED, "the model is still loading; try again later", retry_after=5.0)

    def _abort(self, stream: RequestStream, index: int | None) -> None:
        """A stream's way to end early. Works whatever has become of the engine."""
        if index is None:
            self._streams.pop(stream.request_id, None)
        if self._failure is None:
            self._send(Cancel(stream.request_id, index))

    # Messages

    def _send(self, message: Cancel | Drain | Vocabulary) -> None:
        """Sends what must not be lost: a full queue only delays it."""
        self._unsent.append(message)
        self._send_rest()

    def _send_rest(self) -> None:
        channel = self._require_channel()
        try:
            while self._unsent:
                channel.send(self._unsent[0])
                self._unsent.popleft()
        except RequestError:
            _log.debug("the queue to the engine is full; %d messages wait", len(self._unsent))

    async def _receive(self, channel: ServerChannel) -> None:
        try:
            while True:
                self._handle(await channel.receive())
                # What else is here is merged by the streams, so a server that falls behind sends less often, not later.
                for message in channel.arrived(MERGED_STEPS):
                    self._handle(message)
                # A message that waits is received without leaving this task, so give the readers their turn.
                await asyncio.sleep(0)
        except ChannelClosed as error:
            await self._fail(str(error))
        except Exception:  # noqa: BLE001  the task's border: without it nobody would be answered again
            _log.exception("a message of the engine could not be handled")
            await self._fail("a message of the engine could not be handled")

    def _handle(self, message: FromEngine) -> None:
        match message:
            case StepOutput():
                self._on_step(message)
            case Progress():
                self._progress = message
                if self._on_progress is not None:
                    self._on_progress(message)
            case Ready():
                self._ready = message
                self._watchdog.serves(asyncio.get_running_loop().time())
                self._settle(message)
            case StartupFailed():
                self._settle(StartupError(message.reasons))

    def _on_step(self, output: StepOutput) -> None:
        self._watchdog.heard(asyncio.get_running_loop().time(), output)
        self._stats = output.stats
        streams = self._streams
        for delta in output.deltas:
            stream = streams.get(delta.request_id)
            if stream is not None:
                stream.push(delta)
                if stream.finished:
                    streams.pop(delta.request_id, None)
        if self._unsent:
            self._send_rest()
        for observer in tuple(self._observers):
            self._show(output, observer)

    def _show(self, output: StepOutput, observer: Observer) -> None:
        try:
            observer(output)
        except Exception:  # noqa: BLE001  a plugin's code, which must not end anybody's request
            _log.exception("observer %r failed and is called no more", observer)
            self._observers.remove(observer)

    def _settle(self, outcome: Ready | StartupError) -> None:
        """Ends the wait of `start`."""
        if self._started is None or self._started.done():
            return
        if not isinstance(outcome, StartupError):
            self._started.set_result(outcome)
            return
        self._started.set_exception(outcome)
        if not self._stopping:
            self._exit_code = EXIT_STARTUP
            self._failure = str(outcome)
            self._failed.set()

    # Death

    async def _watch_exit(self, process: EngineProcess) -> None:
        code = await process.wait()
        await self._receive_rest(answered=self._stopping and code == 0)
        if self._ended or (self._stopping and code == 0):
            self._settle(StartupError("the server was stopped while the engine was starting"))
            self._end_streams(ErrorKind.SHUTTING_DOWN, "the server is shutting down")
        else:
            await self._fail(process.describe_exit())

    async def _watch_silence(self, process: EngineProcess) -> None:
        if (reason := await self._watchdog.watch(process)) is not None:
            await self._fail(reason)

    async def _receive_rest(self, *, answered: bool) -> None:
        """Lets the receiver take what the engine sent before it ended.

        `answered`: that was an end for everybody, so it is waited for. A busy machine brings it late.
        """
        channel, loop = self._require_channel(), asyncio.get_running_loop()
        last = loop.time() + (_REST_SECONDS if answered else 0.0)
        while self._failure is None:
            if not await channel.waiting(0.05) and not (self._streams and loop.time() < last):
                return
            await asyncio.sleep(0)

    async def _fail(self, reason: str) -> None:
        """The engine is lost: every open stream is told, once, and so is whoever waits for `start` or `failed`."""
        self._settle(StartupError(f"{reason} while starting; what it wrote before is above"))
        if self._failure is None:
            self._failure = reason
            self._exit_code = EXIT_ENGINE
            _log.error("%s; %d requests end with an error", reason, len(self._streams))
        self._failed.set()
        self._end_streams(ErrorKind.ENGINE_DEAD, "the engine failed and the server is going down")
        if self._process is not None:
            self._process.kill()

    def _end_streams(self, kind: ErrorKind, message: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(kind, message)

    async def _release(self) -> None:
        """Ends the process and the tasks and closes the channel."""
        self._stopping = self._ended = True
        if self._process is not None:
            await self._process.end()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        if self._channel is not None:
            self._channel.close()

    def _require_channel(self) -> ServerChannel:
        if self._channel is None:
            raise RequestError(ErrorKind.OVERLOADED, "the engine has not been started", retry_after=5.0)
        return self._channel

    def _start_frame(self, channel: ServerChannel) -> EngineStart:
        return EngineStart(
            config=self._config,
            to_engine=channel.to_engine,
            from_engine=channel.from_engine,
            server_pid=os.getpid(),
            grace_seconds=self._grace_seconds,
        )
