"""Codes of quantized weights to numbers: 16-bit words hold four codes of 4 bits or two of 8, read a plane at a time.
Of codes of 5 and 6 bits they hold the lower four, and bytes beside them the others.

Numbers come by bits, not by conversions, of which a GPU does few at once: a code or'ed into the mantissa of 128
(bfloat16) or 1024 (float16) is that number plus the code, exactly. So `read` gives code + offset, and `offset` says
which; what is subtracted from it, the offset and the zero point, is one number a row.

A machine with better instructions gives its own functions, as a `Reader`; they must give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
import triton.language as tl

Kind = Literal["int4", "int5", "int6", "int8", "float8_e4m3fn", "e2m1", "table"]
"""`e2m1`: floating point of 4 bits; `table`: 4 bits that name one of sixteen values."""

PLANES: dict[Kind, int] = {"int4": 4, "int5": 4, "int6": 4, "int8": 2, "float8_e4m3fn": 2, "e2m1": 4, "table": 4}
"""Codes of a word."""
HIGH_BITS: dict[Kind, int] = {"int5": 1, "int6": 2}
"""Of a code, that are not in its word."""


def offset(kind: Kind, dtype: torch.dtype) -> int:
    """What `read` adds to the code, a number from 0 on, in this dtype. Kinds of floating point have none."""
    if kind in ("float8_e4m3fn", "e2m1", "table") or dtype == torch.float32:
        return 0
    if dtype == torch.float16:
        return 1024
    return -128 if kind == "int8" else 128


@triton.jit
def _read(words, table, PLANE: tl.constexpr, KIND: tl.constexpr, dtype: tl.constexpr):
    """Numbers of one plane of int16 words, in words' shape."""
    if KIND == "int4":
        number = _with_offset((words >> (4 * PLANE)) & 0xF, dtype)
    elif KIND == "table":
        number = tl.load(table + ((words >> (4 * PLANE)) & 0xF)).to(dtype)
    elif KIND == "e2m1":
        number = _floating((words >> (4 * PLANE)) & 0xF, 0x7, 1, 12, 1, dtype)
    elif KIND == "float8_e4m3fn":
        number = _floating((words >> (8 * PLANE)) & 0xFF, 0x7F, 3, 8, 7, dtype)
    else:
        code = (words >> (8 * PLANE)) & 0xFF
        if dtype == tl.bfloat16:
            # Seven bits fit beside 128. Without the eighth 256 are taken away from that, with it 128.
            number = _with_offset(code & 0x7F, dtype) - _with_offset(~code & 0x80, dtype)
        else:
            number = _with_offset(code, dtype)
    return number


@triton.jit
def join_bits(words, high, PLANE: tl.constexpr, HIGH: tl.constexpr, dtype: tl.constexpr):
    """As a `Reader` reads, codes of 4 + HIGH bits."""
    upper = (high.to(tl.int16) >> (HIGH * PLANE)) & ((1 << HIGH) - 1)
    return _with_offset(((words >> (4 * PLANE)) & 0xF) | (upper << 4), dtype)


@triton.jit
def _with_offset(code, dtype: tl.constexpr):
    if dtype == tl.bfloat16:
        number = (code | 0x4300).to(tl.bfloat16, bitcast=True)
    elif dtype == tl.float16:
        number = (code | 0x6400).to(tl.float16, bitcast=True)
    else:
        number = code.to(dtype)
    return number


@triton.jit
def _floating(
    code, MAGNITUDE: tl.constexpr, MANTISSA: tl.constexpr, SIGN: tl.constexpr, BIAS: tl.constexpr, dtype: tl.constexpr
):
    """The fields of a smaller type are put where the wider one has them; what is left is the difference of biases.

    MANTISSA bits, an exponent of BIAS, and a sign that is SIGN bits below the highest of 16.
    """
    wide = code.to(tl.int32)
    if dtype == tl.bfloat16:
        bits = ((wide & MAGNITUDE) << (7 - MANTISSA)) | ((wide & (MAGNITUDE + 1)) << SIGN)
        number = bits.to(tl.int16).to(tl.bfloat16, bitcast=True) * tl.full((1,), 2.0 ** (127 - BIAS), tl.bfloat16)
    elif dtype == tl.float16:
        bits = ((wide & MAGNITUDE) << (10 - MANTISSA)) | ((wide & (MAGNITUDE + 1)) << SIGN)
        number = bits.to(tl.int16).to(tl.float16, bitcast=True) * tl.full((1,), 2.0 ** (15 - BIAS), tl.float16)
    else:
        bits = ((wide & MAGNITUDE) << (23 - MANTISSA)) | ((wide & (MAGNITUDE + 1)) << (SIGN + 16))
        number = bits.to(tl.float32, bitcast=True) * (2.0 ** (127 - BIAS))
    return number


@triton.jit
def _subtract(a, b):
    return a - b


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit
def _multiply_add(a, b, c):
    return a * b + c


@dataclass(frozen=True, slots=True)
class Reader:
    """Device functions over 16-bit numbers."""

    read: Any = _read
    subtract: Any = _subtract
    multiply: Any = _multiply
    multiply_add: Any = _multiply_add


PLAIN = Reader()
"""Shifts and arithmetic, as Triton compiles them anywhere; all that there is for float32."""
