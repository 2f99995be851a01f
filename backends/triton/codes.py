"""Codes of quantized weights to numbers: 16-bit words hold four codes of 4 bits or two of 8, read a plane at a time.

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

Kind = Literal["int4", "int8", "float8_e4m3fn", "table"]
"""`table`: 4 bits that name one of sixteen values."""

PLANES: dict[Kind, int] = {"int4": 4, "int8": 2, "float8_e4m3fn": 2, "table": 4}
"""Codes of a word."""


def offset(kind: Kind, dtype: torch.dtype) -> int:
    """What `read` adds to the code, a number from 0 on, in this dtype. Kinds of floating point have none."""
    if kind in ("float8_e4m3fn", "table") or dtype == torch.float32:
        return 0
    if dtype == torch.float16:
        return 1024
    return 128 if kind == "int4" else -128


@triton.jit
def _read(words, table, PLANE: tl.constexpr, KIND: tl.constexpr, dtype: tl.constexpr):
    """Numbers of one plane of int16 words, in words' shape."""
    if KIND == "int4" or KIND == "table":
        code = (words >> (4 * PLANE)) & 0xF
        if KIND == "table":
            number = tl.load(table + code).to(dtype)
        elif dtype == tl.bfloat16:
            number = (code | 0x4300).to(tl.bfloat16, bitcast=True)
        elif dtype == tl.float16:
            number = (code | 0x6400).to(tl.float16, bitcast=True)
        else:
            number = code.to(dtype)
    else:
        code = (words >> (8 * PLANE)) & 0xFF
        if KIND == "int8":
            if dtype == tl.bfloat16:
                # Seven bits fit beside 128; the eighth turns the 128 that is taken away into 256.
                low = ((code & 0x7F) | 0x4300).to(tl.bfloat16, bitcast=True)
                number = low - ((code & 0x80) | 0x4300).to(tl.bfloat16, bitcast=True)
            elif dtype == tl.float16:
                number = (code | 0x6400).to(tl.float16, bitcast=True)
            else:
                number = code.to(dtype)
        # The exponent's field is put where the wider type has it; what is left is the difference of biases.
        elif dtype == tl.bfloat16:
            bits = ((code & 0x7F) << 4) | ((code & 0x80) << 8)
            number = bits.to(tl.int16).to(tl.bfloat16, bitcast=True) * tl.full((1,), 2.0**120, tl.bfloat16)
        elif dtype == tl.float16:
            bits = ((code & 0x7F) << 7) | ((code & 0x80) << 8)
            number = bits.to(tl.int16).to(tl.float16, bitcast=True) * tl.full((1,), 2.0**8, tl.float16)
        else:
            wide = code.to(tl.int32)
            number = (((wide & 0x7F) << 20) | ((wide & 0x80) << 24)).to(tl.float32, bitcast=True) * 2.0**120
    return number


@triton.jit
def _subtract(a, b):
    return a - b


@triton.jit
def _multiply(a, b):
    return a * b


@dataclass(frozen=True, slots=True)
class Reader:
    """Device functions over 16-bit numbers."""

    read: Any = _read
    subtract: Any = _subtract
    multiply: Any = _multiply


PLAIN = Reader()
"""Shifts and arithmetic, as Triton compiles them anywhere; all that there is for float32."""
