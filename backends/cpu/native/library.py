"""The compiled kernels as Python calls them: each takes a record of pointers and sizes.

Where torch has loaded the system's OpenMP under its usual name, as its Linux builds have, the loader gives the kernels
the same one, and both use the same threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mainspring.backends.cpu.native.build import CannotBuildError

ALONE = 1 << 16
"""Less work than this is done before a second thread has begun."""


class Kernel(IntEnum):
    """A kernel's place in tape.cpp."""

    ATTENTION = 0
    LINEAR_FLOAT = 1
    LINEAR_INT8 = 2
    LINEAR_INT4 = 3
    NORM = 4
    SILU_MUL = 5
    ROPE = 6
    BLOCKS = 7


class Step(Structure):
    """`struct Step` of kernels.hpp, field by field; so are the others."""

    _fields_ = (
        *((name, c_void_p) for name in ("slots", "starts", "lengths", "table")),
        *((name, c_int64) for name in ("tokens", "rows", "table_width")),
    )


class Attention(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("step", "query", "key", "value", "out", "keys", "values", "sinks")),
        *((name, c_int64) for name in ("query_stride", "key_stride", "value_stride", "num_blocks")),
        *((name, c_int32) for name in ("heads", "kv_heads", "head_dim", "block_size", "dtype", "window")),
        *((name, c_float) for name in ("scale", "softcap")),
    )


class Linear(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weights", "scales", "bias", "out")),
        *((name, c_int64) for name in ("tokens", "inputs", "outputs", "group")),
    )


class Blocks(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "index", "codes", "high", "halves", "steps", "bias", "out")),
        *((name, c_int64) for name in ("tokens", "inputs", "outputs", "form")),
    )


class Norm(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "residual", "weight", "normed", "total")),
        *((name, c_int64) for name in ("rows", "size")),
        ("epsilon", c_float),
    )


class SiluMul(Structure):
    _fields_ = (("x", c_void_p), ("out", c_void_p), ("rows", c_int64), ("size", c_int64))


class Rope(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "positions", "table", "out")),
        *((name, c_int64) for name in ("stride", "tokens", "heads", "head_dim")),
    )


class Call(Structure):
    _fields_ = (("kernel", c_int64), ("record", c_void_p))


class Recorder(Protocol):
    """What takes down the calls of a step, so that they can be played again."""

    def call(self, kernel: Kernel, record: Structure) -> None: ...

    def empty(self, shape: Sequence[int]) -> Tensor: ...


@dataclass(slots=True)
class Kernels:
    """The kernels, and how many threads may share a call."""

    play: Callable[..., Any]
    """Calls, how many of them, threads."""
    argmax: Callable[..., Any]
    """Logits, ids, rows, size of the vocabulary, threads: the likeliest token of each row."""
    draw: Callable[..., Any]
    """Logits, each row's temperature, key, position and lowest score, ids, rows, size of the vocabulary, threads: a
    drawn token."""
    floors: Callable[..., Any]
    """Logits, each row's temperature, top_k, top_p and min_p, scores, rows, size of the vocabulary, threads: the lowest
    that they leave."""
    logprobs: Callable[..., Any]
    """Logits, ids, each row's logarithm of its id's probability and of the sum of all powers, rows, size of the
    vocabulary, threads."""
    bitmask: Callable[..., Any]
    """Logits, each row's mask or -1, masks, masked logits, rows, size of the vocabulary, words of a mask, threads."""
    threads: int
    recorder: Recorder | None = None
    """Who is told of each call. One thread at a time runs steps, and so may set this."""

    def run(self, kernel: Kernel, record: Structure, work: int) -> None:
        """One call. `work` in multiplications: what is too little to share is not."""
        if self.recorder is not None:
            self.recorder.call(kernel, record)
        call = Call(kernel, ctypes.addressof(record))
        self.play(ctypes.byref(call), 1, self.threads if work > ALONE else 1)

    def empty(self, *shape: int) -> Tensor:
        """Memory for a float32 result."""
        return torch.empty(shape) if self.recorder is None else self.recorder.empty(shape)


def open_library(path: Path, threads: int) -> Kernels:
    """Opens the library. Raises `CannotBuildError` when the loader refuses it."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuildError(f"the compiled kernels cannot be loaded: {error}") from error
    library.play.argtypes, library.play.restype = (c_void_p, c_int64, c_int64), None
    library.argmax.argtypes, library.argmax.restype = (c_void_p, c_void_p, c_int64, c_int64, c_int64), None
    library.draw.argtypes, library.draw.restype = (*[c_void_p] * 6, *[c_int64] * 3), None
    library.floors.argtypes, library.floors.restype = (*[c_void_p] * 6, *[c_int64] * 3), None
    library.logprobs.argtypes, library.logprobs.restype = (*[c_void_p] * 4, *[c_int64] * 3), None
    library.bitmask.argtypes, library.bitmask.restype = (*[c_void_p] * 4, *[c_int64] * 4), None
    return Kernels(
        library.play, library.argmax, library.draw, library.floors, library.logprobs, library.bitmask, threads
    )
