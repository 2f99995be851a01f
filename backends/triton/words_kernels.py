"""Device code of products with weights read as they lie. How words, scales and zeros lie, and how it is launched, is
`words.py`.

Legend: M rows of x, N output features, K input features, F features of a plane (32), E words of a program's block, T
tokens.
"""

import triton
import triton.language as tl

from mainspring.backends.triton.codes import join_bits
from mainspring.backends.triton.splits import add_parts

_WORDS = tl.constexpr(2048)
"""In one block: `words.WORDS`."""


@triton.jit
def _operand(x, STRIPS: tl.constexpr):
    """[STRIPS * 2048], steps of strips, to [STRIPS * 64, 32]. With no strips x is rows of 32 features already."""
    if STRIPS:
        lying = tl.reshape(x, (2, STRIPS, 4, 8, 4, 2, 2, 2))
        x = tl.reshape(tl.permute(lying, (1, 2, 6, 3, 0, 5, 4, 7)), (STRIPS * 64, 32))
    return x


@triton.jit
def _high(high, places, HIGH: tl.constexpr):
    """Of each word, HIGH bits of each of its four codes: a byte, or half of one."""
    return tl.load(high + places) if HIGH == 2 else tl.load(high + places // 2) >> (places % 2 * 4).to(tl.uint8)


@triton.jit
def _step(word, super_N, GROUP: tl.constexpr, HALF: tl.constexpr, DTYPE: tl.constexpr):
    """A byte of a word times one of the two numbers of its super-block, as [N, 1]."""
    level = (super_N >> (16 * HALF)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return ((word >> (8 * GROUP)).to(tl.int8).to(tl.float32) * level).to(DTYPE)[:, None]


@triton.jit
def _short(word, GROUP: tl.constexpr, SHORT: tl.constexpr, DTYPE: tl.constexpr):
    """One of the 16-bit numbers of a word, as [N, 1]."""
    return (word >> (16 * GROUP)).to(tl.int16).to(SHORT, bitcast=True).to(DTYPE)[:, None]


@triton.jit
def _number(
    word, super_N, GROUP: tl.constexpr, SHORT: tl.constexpr, SUPER: tl.constexpr, HALF: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """A group's number in one level or, with SUPER, in two, as [N, 1]."""
    return _step(word, super_N, GROUP, HALF, DTYPE) if SUPER else _short(word, GROUP, SHORT, DTYPE)


@triton.jit
def _of_plane(
    word, super_N, PLANE: tl.constexpr, PLANES: tl.constexpr, PER_BLOCK: tl.constexpr, SHORT: tl.constexpr,
    SUPER: tl.constexpr, HALF: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A plane's number of each row, [N, 1]; of groups of half a plane the two, for each feature, [N, 32].

    HALF of a super-block's word: 0 of scales, 1 of zeros.
    """
    if PER_BLOCK > PLANES:
        FIRST: tl.constexpr = 2 * PLANE % 4
        late_F = tl.arange(0, 32)[None, :] >= 16
        late = _number(word, super_N, FIRST + 1, SHORT, SUPER, HALF, DTYPE)
        number = tl.where(late_F, late, _number(word, super_N, FIRST, SHORT, SUPER, HALF, DTYPE))
    else:
        number = _number(word, super_N, PLANE * PER_BLOCK // PLANES, SHORT, SUPER, HALF, DTYPE)
    return number


@triton.jit
def _numbers(
    words, high, table, scale_N, zero_N, super_N, PLANE: tl.constexpr, STRIPS: tl.constexpr, KIND: tl.constexpr,
    DTYPE: tl.constexpr, PER_BLOCK: tl.constexpr, SHORT: tl.constexpr, SUPER: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, ZEROS: tl.constexpr, READ: tl.constexpr, SUBTRACT: tl.constexpr, MULTIPLY: tl.constexpr,
    MULTIPLY_ADD: tl.constexpr,
):  # fmt: skip
    """A plane of weights: [STRIPS * 64, 32] in x's dtype. PER_BLOCK 0: without their scale."""
    PLANES: tl.constexpr = 2 if (KIND == "int8" or KIND == "float8_e4m3fn") else 4
    if KIND == "int5":
        value_NF = _operand(join_bits(words, high, PLANE, 1, DTYPE), STRIPS)
    elif KIND == "int6":
        value_NF = _operand(join_bits(words, high, PLANE, 2, DTYPE), STRIPS)
    else:
        value_NF = _operand(READ(words, table, PLANE, KIND, DTYPE), STRIPS)
    if ZEROS == "whole":
        zero = (_of_plane(zero_N, 0, PLANE, PLANES, PER_BLOCK, SHORT, False, 1, tl.float32) + (BIAS + OFFSET)).to(DTYPE)
        value_NF = SUBTRACT(value_NF, zero)
    elif BIAS + OFFSET != 0:
        value_NF = SUBTRACT(value_NF, tl.full((1, 1), BIAS + OFFSET, DTYPE))
    if ZEROS == "any" and PER_BLOCK:
        shift = _of_plane(zero_N, super_N, PLANE, PLANES, PER_BLOCK, SHORT, SUPER, 1, DTYPE)
        scale = _of_plane(scale_N, super_N, PLANE, PLANES, PER_BLOCK, SHORT, SUPER, 0, DTYPE)
        value_NF = MULTIPLY_ADD(value_NF, scale, shift)
    elif ZEROS == "any":
        value_NF = SUBTRACT(value_NF, _short(zero_N, 0, SHORT, DTYPE))
    elif PER_BLOCK:
        scale = _of_plane(scale_N, super_N, PLANE, PLANES, PER_BLOCK, SHORT, SUPER, 0, DTYPE)
        value_NF = MULTIPLY(value_NF, scale)
    return value_NF


@triton.jit
def _block(
    words, high, table, scale_N, zero_N, scale_U, zero_U, super_N, STRIPS: tl.constexpr, KIND: tl.constexpr,
    DTYPE: tl.constexpr, PER_BLOCK: tl.constexpr, SHORT: tl.constexpr, SUPER: tl.constexpr, BIAS: tl.constexpr,
    OFFSET: tl.constexpr, ZEROS: tl.constexpr, READ: tl.constexpr, SUBTRACT: tl.constexpr, MULTIPLY: tl.constexpr,
    MULTIPLY_ADD: tl.constexpr,
):  # fmt: skip
    """All planes side by side: [STRIPS * 64, 32 P]. Their registers are only named anew.

    The scales and zeros of the later planes stand in words of their own, or in the same.
    """
    BN: tl.constexpr = STRIPS * 64
    first = _numbers(
        words, high, table, scale_N, zero_N, super_N, 0, STRIPS, KIND, DTYPE, PER_BLOCK, SHORT, SUPER, BIAS, OFFSET,
        ZEROS, READ, SUBTRACT, MULTIPLY, MULTIPLY_ADD,
    )  # fmt: skip
    second = _numbers(
        words, high, table, scale_N, zero_N, super_N, 1, STRIPS, KIND, DTYPE, PER_BLOCK, SHORT, SUPER, BIAS, OFFSET,
        ZEROS, READ, SUBTRACT, MULTIPLY, MULTIPLY_ADD,
    )  # fmt: skip
    both = tl.join(first, second)
    if KIND == "int8" or KIND == "float8_e4m3fn":
        w_NK = tl.reshape(tl.permute(both, (0, 2, 1)), (BN, 64))
    else:
        third = _numbers(
            words, high, table, scale_U, zero_U, super_N, 2, STRIPS, KIND, DTYPE, PER_BLOCK, SHORT, SUPER, BIAS, OFFSET,
            ZEROS, READ, SUBTRACT, MULTIPLY, MULTIPLY_ADD,
        )  # fmt: skip
        fourth = _numbers(
            words, high, table, scale_U, zero_U, super_N, 3, STRIPS, KIND, DTYPE, PER_BLOCK, SHORT, SUPER, BIAS, OFFSET,
            ZEROS, READ, SUBTRACT, MULTIPLY, MULTIPLY_ADD,
        )  # fmt: skip
        all_four = tl.join(both, tl.join(third, fourth))
        w_NK = tl.reshape(tl.permute(all_four, (0, 3, 2, 1)), (BN, 128))
    return w_NK


@triton.jit(do_not_specialize=["num_rows", "blocks_each"])
def words_kernel(
    x, words, high, scales, zeros, supers, table, bias, out, partial, arrived, num_rows, N, K, x_stride, blocks_each,
    M: tl.constexpr, STRIPS: tl.constexpr, PLANES: tl.constexpr, KIND: tl.constexpr, HIGH: tl.constexpr,
    SPLIT: tl.constexpr, PER_BLOCK: tl.constexpr, BLOCKS_PER: tl.constexpr, SHORT: tl.constexpr,
    SUPER: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr, ZEROS: tl.constexpr, EVEN: tl.constexpr,
    BIASED: tl.constexpr, AHEAD: tl.constexpr, READ: tl.constexpr, SUBTRACT: tl.constexpr, MULTIPLY: tl.constexpr,
    MULTIPLY_ADD: tl.constexpr, BEGIN: tl.constexpr, FETCH: tl.constexpr,
):  # fmt: skip
    """Program (rows of x, strips of 64 output features, part of K)."""
    many, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    BN: tl.constexpr = STRIPS * 64
    DTYPE: tl.constexpr = x.dtype.element_ty
    BLOCK: tl.constexpr = 32 * PLANES
    n, m, k = tile * BN + tl.arange(0, BN), many * M + tl.arange(0, M), tl.arange(0, BLOCK)
    blocks = tl.cdiv(K, BLOCK)
    first = split * blocks_each
    past = tl.minimum(first + blocks_each, blocks)
    strips = tl.cdiv(N, 64)
    # Strips past the last are read as the last, and not stored.
    # Steps come first, so that eight warps hold two strips as matrix units want them.
    e = tl.arange(0, STRIPS * _WORDS)
    strip = tl.minimum(tile * STRIPS + e // 1024 % STRIPS, strips - 1)
    mine = strip.to(tl.int64) * blocks * _WORDS + (e // (STRIPS * 1024) * 1024 + e % 1024)
    if AHEAD:
        # A block is 4 KiB, and 128 threads have an address each.
        place = tl.arange(0, 128)
        start = words + tl.minimum(tile * STRIPS + place * STRIPS // 128, strips - 1).to(tl.int64) * blocks * _WORDS
        size = tl.minimum(past - first, AHEAD) * (32 * STRIPS)
        FETCH(start + first * _WORDS + place % (128 // STRIPS) * (size // 2), size)
    n_scale = tl.minimum(n, strips * 64 - 1)
    width = strips * 64
    UPPER: tl.constexpr = PER_BLOCK > 4
    BEGIN()
    acc_NM = tl.zeros((BN, M), tl.float32)
    for block in range(first, past):
        words_E = tl.load(words + (mine + block * _WORDS))
        high_E = _high(high, mine + block * _WORDS, HIGH) if HIGH else 0
        group = block // BLOCKS_PER * (width * (1 + UPPER)) + n_scale
        scale_N = tl.load(scales + group) if PER_BLOCK else 0
        zero_N = tl.load(zeros + group) if ZEROS != "none" else 0
        scale_U = tl.load(scales + group + width) if UPPER else scale_N
        zero_U = tl.load(zeros + group + width) if UPPER and ZEROS != "none" else zero_N
        super_N = tl.load(supers + block // SUPER * width + n_scale) if SUPER else 0
        w_NK = _block(
            words_E, high_E, table, scale_N, zero_N, scale_U, zero_U, super_N, STRIPS, KIND, DTYPE, PER_BLOCK, SHORT,
            SUPER, BIAS, OFFSET, ZEROS, READ, SUBTRACT, MULTIPLY, MULTIPLY_ADD,
        )  # fmt: skip
        here = block * BLOCK + k
        inside = m[:, None] < num_rows if EVEN else (m[:, None] < num_rows) & (here[None, :] < K)
        x_MK = tl.load(x + m[:, None].to(tl.int64) * x_stride + here[None, :], mask=inside, other=0.0)
        acc_NM = tl.dot(w_NK, tl.trans(x_MK), acc_NM, input_precision="ieee")
    last = True
    if SPLIT:
        place = many * tl.num_programs(1) + tile
        acc_NM, last = add_parts(acc_NM, partial, arrived, place, split, tl.num_programs(2), num_rows - many * M)
    if last:
        if PER_BLOCK == 0:
            acc_NM *= tl.load(scales + n_scale)[:, None]
        if BIASED:
            acc_NM += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        where_NM = m[None, :].to(tl.int64) * N + n[:, None]
        tl.store(out + where_NM, acc_NM.to(out.dtype.element_ty), mask=(n[:, None] < N) & (m[None, :] < num_rows))


@triton.jit
def dequantize_kernel(
    words, high, scales, zeros, supers, table, out, N, K, STRIPS: tl.constexpr, PLANES: tl.constexpr,
    KIND: tl.constexpr, HIGH: tl.constexpr, PER_BLOCK: tl.constexpr, BLOCKS_PER: tl.constexpr, SHORT: tl.constexpr,
    SUPER: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr, ZEROS: tl.constexpr, READ: tl.constexpr,
    SUBTRACT: tl.constexpr, MULTIPLY: tl.constexpr, MULTIPLY_ADD: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """Program (block, strip): its weights in out's dtype, [N, K]."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    block, strip = tl.program_id(0), tl.program_id(1)
    n, f, e = strip * 64 + tl.arange(0, 64), tl.arange(0, 32), tl.arange(0, _WORDS)
    width = tl.num_programs(1) * 64
    UPPER: tl.constexpr = PER_BLOCK > 4
    group = block // BLOCKS_PER * (width * (1 + UPPER)) + n
    BEGIN()
    mine = (strip.to(tl.int64) * tl.num_programs(0) + block) * _WORDS + e
    words_E = tl.load(words + mine)
    high_E = _high(high, mine, HIGH) if HIGH else 0
    super_N = tl.load(supers + block // SUPER * width + n) if SUPER else 0
    for plane in tl.static_range(PLANES):
        here = group + width * (plane // 2) if UPPER else group
        scale_N = tl.load(scales + here) if PER_BLOCK else tl.load(scales + n)
        zero_N = tl.load(zeros + here) if ZEROS != "none" else 0
        w_NF = _numbers(
            words_E, high_E, table, scale_N, zero_N, super_N, plane, STRIPS, KIND, DTYPE, PER_BLOCK, SHORT, SUPER, BIAS,
            OFFSET, ZEROS, READ, SUBTRACT, MULTIPLY, MULTIPLY_ADD,
        )  # fmt: skip
        if PER_BLOCK == 0:
            w_NF = (w_NF.to(tl.float32) * scale_N[:, None]).to(DTYPE)
        k = (block * PLANES + plane) * 32 + f
        where_NF = n[:, None].to(tl.int64) * K + k[None, :]
        tl.store(out + where_NF, w_NF, mask=(n[:, None] < N) & (k[None, :] < K))


@triton.jit(do_not_specialize=["num_tokens"])
def rows_kernel(
    index, words, high, scales, zeros, supers, table, out, num_tokens, N, K, T: tl.constexpr, PLANES: tl.constexpr,
    KIND: tl.constexpr, HIGH: tl.constexpr, PER_BLOCK: tl.constexpr, BLOCKS_PER: tl.constexpr, SHORT: tl.constexpr,
    SUPER: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr, ZEROS: tl.constexpr, READ: tl.constexpr,
    SUBTRACT: tl.constexpr, MULTIPLY: tl.constexpr, MULTIPLY_ADD: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """Program (T tokens, block): the tokens' rows, in float32 until they are stored."""
    block, blocks = tl.program_id(1), tl.num_programs(1)
    t, f = tl.program_id(0) * T + tl.arange(0, T), tl.arange(0, 32)[None, :]
    BEGIN()
    n = tl.load(index + t, mask=t < num_tokens, other=0).to(tl.int64)
    row = (n % 64)[:, None]
    step_warp_lane = (f // 16 * 4 + row // 16) * 8 + row % 8
    place = ((step_warp_lane * 4 + f // 2 % 4) * 2 + f // 8 % 2) * 4 + row // 8 % 2 * 2 + f % 2
    mine = (n[:, None] // 64 * blocks + block) * _WORDS + place
    words_TF = tl.load(words + mine)
    high_TF = _high(high, mine, HIGH) if HIGH else 0
    width = tl.cdiv(N, 64) * 64
    UPPER: tl.constexpr = PER_BLOCK > 4
    group = block // BLOCKS_PER * (width * (1 + UPPER)) + n
    super_T = tl.load(supers + block // SUPER * width + n) if SUPER else 0
    for plane in tl.static_range(PLANES):
        here = group + width * (plane // 2) if UPPER else group
        scale_T = tl.load(scales + here) if PER_BLOCK else tl.load(scales + n)
        zero_T = tl.load(zeros + here) if ZEROS != "none" else 0
        value_TF = _numbers(
            words_TF, high_TF, table, scale_T, zero_T, super_T, plane, 0, KIND, tl.float32, PER_BLOCK, SHORT, SUPER,
            BIAS, OFFSET, ZEROS, READ, SUBTRACT, MULTIPLY, MULTIPLY_ADD,
        )  # fmt: skip
        if PER_BLOCK == 0:
            value_TF = value_TF * scale_T[:, None]
        k = (block * PLANES + plane) * 32 + f
        inside = (t[:, None] < num_tokens) & (k < K)
        tl.store(out + t[:, None].to(tl.int64) * K + k, value_TF.to(out.dtype.element_ty), mask=inside)
