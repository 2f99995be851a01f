"""Frames on a pipe: each with its length in front, so that the pipe can stay open behind it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from mainspring.core.errors import ChannelClosed

_LENGTH = struct.Struct(">I")


def pack_frame(body: bytes) -> bytes:
    """The body with its length in front."""
    return _LENGTH.pack(len(body)) + body


def read_frame(read: Callable[[int], bytes]) -> bytes:
    """The body of the next frame, from `read(size)`, which returns at most `size` bytes and nothing at the end.

    Raises `ChannelClosed` when the pipe ends first.
    """
    (size,) = _LENGTH.unpack(_read_exactly(read, _LENGTH.size))
    return _read_exactly(read, size)


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = read(size)
        if not part:
            raise ChannelClosed("the pipe ended inside a frame, or where one was due")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
