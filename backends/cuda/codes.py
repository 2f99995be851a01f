"""Codes of quantized weights read two at a time: PTX on pairs of bfloat16 (PTX ISA, lop3 and the .bf16x2 instructions).

What `backends/triton/codes.py` does to a number this does to both halves of a register; Triton's own arithmetic takes
an instruction for each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mainspring.backends.triton.codes import PLAIN, Reader

OLDEST = (9, 0)
"""Compute capability from which pairs of bfloat16 are subtracted and multiplied."""

# lop3's 0xEA is (a & b) | c, and 0xAE (~a & b) | c; 0x4300 is 128 in bfloat16, and 0x7B80 is 2^120, 0x7E80 2^126.
_INT4_0 = tl.constexpr("lop3.b32 $0, $1, 0x000F000F, 0x43004300, 0xEA;")
_INT4_1 = tl.constexpr("{ .reg .b32 t; shr.u32 t, $1, 4; lop3.b32 $0, t, 0x000F000F, 0x43004300, 0xEA; }")
_INT4_2 = tl.constexpr("{ .reg .b32 t; shr.u32 t, $1, 8; lop3.b32 $0, t, 0x000F000F, 0x43004300, 0xEA; }")
_INT4_3 = tl.constexpr("{ .reg .b32 t; shr.u32 t, $1, 12; lop3.b32 $0, t, 0x000F000F, 0x43004300, 0xEA; }")
_INT8_0 = tl.constexpr(
    "{ .reg .b32 a, b; lop3.b32 a, $1, 0x007F007F, 0x43004300, 0xEA; "
    "lop3.b32 b, $1, 0x00800080, 0x43004300, 0xAE; sub.rn.bf16x2 $0, a, b; }"
)
_INT8_1 = tl.constexpr(
    "{ .reg .b32 t, a, b; shr.u32 t, $1, 8; lop3.b32 a, t, 0x007F007F, 0x43004300, 0xEA; "
    "lop3.b32 b, t, 0x00800080, 0x43004300, 0xAE; sub.rn.bf16x2 $0, a, b; }"
)
_FLOAT8_0 = tl.constexpr(
    "{ .reg .b32 t, s, m; shl.b32 t, $1, 4; and.b32 t, t, 0x07F007F0; shl.b32 s, $1, 8; "
    "lop3.b32 t, s, 0x80008000, t, 0xEA; mov.b32 m, 0x7B807B80; mul.rn.bf16x2 $0, t, m; }"
)
_FLOAT8_1 = tl.constexpr(
    "{ .reg .b32 t, m; shr.u32 t, $1, 4; and.b32 t, t, 0x07F007F0; "
    "lop3.b32 t, $1, 0x80008000, t, 0xEA; mov.b32 m, 0x7B807B80; mul.rn.bf16x2 $0, t, m; }"
)
_E2M1_0 = tl.constexpr(
    "{ .reg .b32 t, s, m; shl.b32 t, $1, 6; and.b32 t, t, 0x01C001C0; shl.b32 s, $1, 12; "
    "lop3.b32 t, s, 0x80008000, t, 0xEA; mov.b32 m, 0x7E807E80; mul.rn.bf16x2 $0, t, m; }"
)
_E2M1_1 = tl.constexpr(
    "{ .reg .b32 t, s, m; shl.b32 t, $1, 2; and.b32 t, t, 0x01C001C0; shl.b32 s, $1, 8; "
    "lop3.b32 t, s, 0x80008000, t, 0xEA; mov.b32 m, 0x7E807E80; mul.rn.bf16x2 $0, t, m; }"
)
_E2M1_2 = tl.constexpr(
    "{ .reg .b32 t, s, m; shr.u32 t, $1, 2; and.b32 t, t, 0x01C001C0; shl.b32 s, $1, 4; "
    "lop3.b32 t, s, 0x80008000, t, 0xEA; mov.b32 m, 0x7E807E80; mul.rn.bf16x2 $0, t, m; }"
)
_E2M1_3 = tl.constexpr(
    "{ .reg .b32 t, m; shr.u32 t, $1, 6; and.b32 t, t, 0x01C001C0; "
    "lop3.b32 t, $1, 0x80008000, t, 0xEA; mov.b32 m, 0x7E807E80; mul.rn.bf16x2 $0, t, m; }"
)


@triton.jit
def _pairs(words, ASM: tl.constexpr):
    return tl.inline_asm_elementwise(ASM, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)


@triton.jit
def _read(words, table, PLANE: tl.constexpr, KIND: tl.constexpr, dtype: tl.constexpr):
    tl.static_assert(dtype == tl.bfloat16)
    if KIND == "table":
        number = tl.load(table + ((words >> (4 * PLANE)) & 0xF)).to(tl.bfloat16)
    elif KIND == "int4":
        if PLANE == 0:
            number = _pairs(words, _INT4_0)
        elif PLANE == 1:
            number = _pairs(words, _INT4_1)
        elif PLANE == 2:
            number = _pairs(words, _INT4_2)
        else:
            number = _pairs(words, _INT4_3)
    elif KIND == "e2m1":
        if PLANE == 0:
            number = _pairs(words, _E2M1_0)
        elif PLANE == 1:
            number = _pairs(words, _E2M1_1)
        elif PLANE == 2:
            number = _pairs(words, _E2M1_2)
        else:
            number = _pairs(words, _E2M1_3)
    elif KIND == "int8":
        number = _pairs(words, _INT8_0) if PLANE == 0 else _pairs(words, _INT8_1)
    else:
        number = _pairs(words, _FLOAT8_0) if PLANE == 0 else _pairs(words, _FLOAT8_1)
    return number


@triton.jit
def _subtract(a, b):
    a, b = tl.broadcast(a, b)
    return tl.inline_asm_elementwise(
        "sub.rn.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2
    )


@triton.jit
def _multiply(a, b):
    a, b = tl.broadcast(a, b)
    return tl.inline_asm_elementwise(
        "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2
    )


@triton.jit
def _multiply_add(a, b, c):
    a, b = tl.broadcast(a, b)
    a, c = tl.broadcast(a, c)
    return tl.inline_asm_elementwise(
        "fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.bfloat16, is_pure=True, pack=2
    )


def reader_of(capability: tuple[int, int]) -> Reader:
    """How bfloat16 weights are read on a GPU of this compute capability."""
    return PLAIN if capability < OLDEST else Reader(_read, _subtract, _multiply, _multiply_add)
