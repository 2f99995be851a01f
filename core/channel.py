"""The two queues between the server process and the engine process: ZeroMQ over Unix sockets, msgpack, never pickle.

One producer and one consumer each. The server makes a private directory (mode 0700), binds both sockets in it and
starts the engine, which connects and, once both ends are joined, removes the directory again. Until then whoever
outlives the other removes it, so that nothing is left behind whoever dies first. A frame is one message of `ToEngine`
or `FromEngine`, checked against its type on arrival and never larger than `MAX_FRAME_BYTES`.

What the two processes must agree on besides messages is here too: the frame that starts the engine and its exit codes.
What messages mean is `core/request.py`; who waits for whom is `core/engine.py` and `server/engine/client.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from mainspring.core.config import EngineConfig
from mainspring.core.errors import ChannelClosed, ErrorKind, RequestError, StartupError
from mainspring.core.frames import pack_frame, read_frame
from mainspring.core.request import FromEngine, RequestId, ToEngine

MAX_FRAME_BYTES = 64 << 20
"""A prompt of four million tokens takes about 20 MB."""

HIGH_WATER_MARK = 4096
"""Messages that wait on each side of a queue before its sender is told."""

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path (unix(7)), the terminating zero apart."""


class EngineStart(msgspec.Struct, frozen=True, kw_only=True):
    """The one frame that the engine process reads from its standard input before anything else."""

    config: EngineConfig
    to_engine: str
    """Address of the queue that carries `ToEngine`."""
    from_engine: str
    server_pid: int
    """The engine ends when this is not its parent any more."""
    heartbeat_seconds: float = 0.25
    """How often an idle engine says that it lives."""
    grace_seconds: float = 5.0
    """What host work (scheduling, a busy machine) may add to a step's own bound before the engine counts as hung."""


def pack_start(start: EngineStart) -> bytes:
    """The start frame."""
    return pack_frame(msgspec.msgpack.encode(start))


def read_start(read: Callable[[int], bytes]) -> EngineStart:
    """The start frame from `read(size)`, which returns at most `size` bytes and nothing at the end of the file.

    Raises `ChannelClosed` when the writer went away first.
    """
    try:
        return msgspec.msgpack.decode(read_frame(read), type=EngineStart)
    except ChannelClosed as error:
        raise ChannelClosed("standard input ended before the engine's configuration was complete") from error


@dataclass(frozen=True, slots=True)
class Malformed:
    """A frame that is no `ToEngine`. Its request, where one can be told, gets an error; nothing else ends."""

    request_id: RequestId | None
    n: int
    reason: str


class EngineChannel:
    """The engine's end. Synchronous: the engine waits here only when it has nothing to run."""

    def __init__(self, to_engine: str, from_engine: str) -> None:
        self._context = zmq.Context()
        self._inbox = _socket(self._context, zmq.PULL)
        self._outbox = _socket(self._context, zmq.PUSH)
        self._unjoined = {
            socket: socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED) for socket in (self._inbox, self._outbox)
        }
        self._inbox.connect(to_engine)
        self._outbox.connect(from_engine)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    def join(self, timeout: float) -> bool:
        """Whether the server holds both other ends; waits up to `timeout` seconds for each.

        Joined sockets live on without their names, and whatever either side sends arrives.
        """
        for socket, events in list(self._unjoined.items()):
            if events.poll(int(timeout * 1000)):
                self._listen_no_more(socket)
        return not self._unjoined

    def receive(self, timeout: float) -> list[ToEngine | Malformed]:
        """All messages that have arrived; waits up to `timeout` seconds for the first."""
        messages: list[ToEngine | Malformed] = []
        if timeout > 0 and not self._inbox.poll(int(timeout * 1000)):
            return messages
        while True:
            try:
                frame = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return messages
            messages.append(self._decode(frame))

    def send(self, message: FromEngine) -> None:
        """Puts one message on the queue; waits while the server is `HIGH_WATER_MARK` messages behind."""
        self._outbox.send(self._encoder.encode(message))

    def close(self, linger_seconds: float = 10.0) -> None:
        """Closes after what was sent is delivered, or after `linger_seconds`: a server that stands still gets it too,
        and one that is gone takes this process with it.
        """
        for socket in list(self._unjoined):
            self._listen_no_more(socket)
        self._context.destroy(linger=int(linger_seconds * 1000))

    def _listen_no_more(self, socket: zmq.Socket[bytes]) -> None:
        socket.disable_monitor()
        self._unjoined.pop(socket).close(linger=0)

    def _decode(self, frame: bytes) -> ToEngine | Malformed:
        try:
            return self._decoder.decode(frame)
        except msgspec.MsgspecError as error:
            return _malformed(frame, str(error))


def _malformed(frame: bytes, reason: str) -> Malformed:
    """Finds whose request a bad frame was: a `Submit` is an array of its tag, its id, the prompt, parameters, n, ..."""
    try:
        fields = msgspec.msgpack.decode(frame)
    except msgspec.MsgspecError:
        return Malformed(None, 0, reason)
    if not isinstance(fields, list) or len(fields) < 2 or fields[0] != "submit" or not isinstance(fields[1], int):
        return Malformed(None, 0, reason)
    n = fields[4] if len(fields) > 4 and isinstance(fields[4], int) else 1
    return Malformed(RequestId(fields[1]), n, reason)


class ServerChannel:
    """The server's end. Receives with asyncio; sends never wait, so a request can be ended from any callback."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mainspring-"))
        self._context = zmq.Context()
        self._outbox = _socket(self._context, zmq.PUSH)
        self._inbox = zmq.asyncio.Socket(self._context, zmq.PULL)
        self._arrivals: zmq.Socket[bytes] = zmq.Socket.shadow(self._inbox)
        """The same socket for reads that never wait."""
        _limit(self._inbox)
        try:
            self.to_engine = self._bind(self._outbox, "to_engine")
            self.from_engine = self._bind(self._inbox, "from_engine")
        except BaseException:
            self.close()
            raise
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    def send(self, message: ToEngine) -> None:
        """Puts one message on the queue, at once or not at all.

        Raises `RequestError`: INVALID for a message over `MAX_FRAME_BYTES`, OVERLOADED when the engine takes no more.
        """
        frame = self._encoder.encode(message)
        if len(frame) > MAX_FRAME_BYTES:
            raise RequestError(
                ErrorKind.INVALID, f"the request takes {len(frame)} bytes; the limit is {MAX_FRAME_BYTES}"
            )
        try:
            self._outbox.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            raise RequestError(
                ErrorKind.OVERLOADED, "the engine takes no more requests; try again later", retry_after=1.0
            ) from None

    async def receive(self) -> FromEngine:
        """The next message. Raises `ChannelClosed` for a frame that is none: the two ends are different versions."""
        return self._decode(await self._inbox.recv())

    def arrived(self, limit: int) -> Iterator[FromEngine]:
        """Up to `limit` messages that are here already. Raises like `receive`."""
        for _ in range(limit):
            try:
                frame = self._arrivals.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield self._decode(frame)

    async def waiting(self, timeout: float = 0.0) -> bool:
        """Whether a message can be received within `timeout` seconds."""
        return bool(await self._inbox.poll(int(timeout * 1000)))

    def close(self) -> None:
        """Drops whatever was not sent and removes the directory. May be called again."""
        self._inbox.close(linger=0)
        self._context.destroy(linger=0)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _decode(self, frame: bytes) -> FromEngine:
        try:
            return self._decoder.decode(frame)
        except msgspec.MsgspecError as error:
            raise ChannelClosed(f"the engine sent a frame that cannot be read: {error}") from error

    def _bind(self, socket: zmq.Socket[bytes] | zmq.asyncio.Socket, name: str) -> str:
        path = str(self.directory / name)
        if len(path.encode()) > MAX_SOCKET_PATH:
            raise StartupError(f"socket path {path} exceeds {MAX_SOCKET_PATH} bytes; set TMPDIR to a shorter one")
        socket.bind(f"ipc://{path}")
        return f"ipc://{path}"


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    _limit(socket)
    return socket


def _limit(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> None:
    socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
