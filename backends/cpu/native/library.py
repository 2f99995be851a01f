"""The compiled kernels as Python calls them: plain C functions that take pointers and sizes.

Their threads are their own (crew.hpp): the first call that may use several starts them, and they last as long as the
process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mainspring.backends.cpu.native.build import CannotBuildError


class Attention(Structure):
    """`struct Attention` of attention.cpp, field by field."""

    _fields_ = (
        *((name, c_void_p) for name in ("query", "key", "value", "out", "keys", "values", "sinks")),
        *((name, c_void_p) for name in ("slots", "starts", "lengths", "table")),
        *((name, c_int64) for name in ("query_stride", "key_stride", "value_stride")),
        *((name, c_int64) for name in ("tokens", "rows", "table_width", "num_blocks")),
        *((name, c_int32) for name in ("heads", "kv_heads", "head_dim", "block_size", "dtype", "window", "threads")),
        *((name, c_float) for name in ("scale", "softcap")),
    )


class Linear(Structure):
    """`struct Linear` of linear.cpp, field by field."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "weights", "scales", "bias", "out")),
        *((name, c_int64) for name in ("tokens", "inputs", "outputs", "group", "threads")),
    )


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions, and how many threads each call may use."""

    threads: int
    attention: Callable[..., Any]
    linear_float: Callable[..., Any]
    linear_int8: Callable[..., Any]
    linear_int4: Callable[..., Any]
    add_rms_norm: Callable[..., Any]
    silu_mul: Callable[..., Any]
    rope: Callable[..., Any]
    argmax: Callable[..., Any]


def open_library(path: Path, threads: int) -> Kernels:
    """Opens the library. Raises `CannotBuildError` when the loader refuses it."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuildError(f"the compiled kernels cannot be loaded: {error}") from error

    def function(name: str, *arguments: Any) -> Callable[..., Any]:
        found = getattr(library, name)
        found.argtypes, found.restype = arguments, None
        return found  # type: ignore[no-any-return]

    pointer, size = c_void_p, c_int64
    return Kernels(
        threads=threads,
        attention=function("attention", POINTER(Attention)),
        linear_float=function("linear_float", POINTER(Linear)),
        linear_int8=function("linear_int8", POINTER(Linear)),
        linear_int4=function("linear_int4", POINTER(Linear)),
        add_rms_norm=function("add_rms_norm", pointer, pointer, pointer, c_float, pointer, pointer, size, size, c_int),
        silu_mul=function("silu_mul", pointer, pointer, size, size, c_int),
        rope=function("rope", pointer, size, pointer, pointer, pointer, size, size, size, size, c_int),
        argmax=function("argmax", pointer, pointer, size, size, c_int),
    )
