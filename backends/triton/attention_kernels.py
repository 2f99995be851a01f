"""Device code of paged attention. How it is launched is `attention.py`.

One program holds the queries of all heads that share a kv head as rows of one tile, so a key is read once for all of
them. Scores are kept in units of log2, so that exponentials are powers of two. The softmax is online (Milakov &
Gimelshein 2018); splits of one sequence are merged by their log-sums (Dao et al. 2023, "Flash-Decoding").

Legend: M rows of a tile (queries x heads of a group), N positions of the cache visited at once, D head dim, G query
heads a kv head, S tokens a block.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _capped(scores, softcap):
    """softcap * tanh(scores / softcap), tanh through exp2: 2 / (1 + inf) is 0, so large scores saturate."""
    return softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 / softcap * LOG2_E)) + 1.0))


@triton.jit
def _visit(
    q_MD, acc_MD, peak_M, mass_M, keys, values, table, begin, end, position_M, scale, softcap, window, slot_stride,
    S: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, N: tl.constexpr, EDGE: tl.constexpr, CAUSAL: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Positions begin to end of one sequence; begin is a multiple of N. Without EDGE their number is, too."""
    d = tl.arange(0, D_PAD)
    # Scores times this are exponents of two.
    unit = LOG2_E if SOFTCAP else scale * LOG2_E
    for start in range(begin, end, N):
        n = start + tl.arange(0, N)
        inside_N = n < end
        loaded_ND = d[None, :] < D
        if EDGE:
            # Beyond the end lies what the block held before, maybe NaN: it is not read at all.
            loaded_ND = loaded_ND & inside_N[:, None]
        if S % N == 0:
            # All in one block, which is looked up once.
            place = (tl.load(table + start // S).to(tl.int64) * S + start % S) * slot_stride
            where_ND = place + (tl.arange(0, N)[:, None] * slot_stride + d[None, :])
        else:
            block_N = tl.load(table + n // S, mask=inside_N, other=0) if EDGE else tl.load(table + n // S)
            place_N = (block_N.to(tl.int64) * S + n % S) * slot_stride
            where_ND = place_N[:, None] + d[None, :]
        if EDGE or D != D_PAD:
            k_ND = tl.load(keys + where_ND, mask=loaded_ND, other=0.0).to(q_MD.dtype)
        else:
            k_ND = tl.load(keys + where_ND).to(q_MD.dtype)
        scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
        if SOFTCAP:
            scores_MN = _capped(scores_MN * scale, softcap)
        if EDGE:
            seen_MN = inside_N[None, :]
            if CAUSAL:
                seen_MN = seen_MN & (n[None, :] <= position_M[:, None])
            if CAUSAL and WINDOW:
                seen_MN = seen_MN & (n[None, :] > position_M[:, None] - window)
            scores_MN = tl.where(seen_MN, scores_MN, float("-inf"))
        highest_M = tl.maximum(peak_M, tl.max(scores_MN, 1) * unit)
        # A row that has seen nothing yet would subtract infinity from itself.
        shift_M = tl.where(highest_M == float("-inf"), 0.0, highest_M)
        weights_MN = tl.exp2(scores_MN * unit - shift_M[:, None])
        faded_M = tl.exp2(peak_M - shift_M)
        mass_M = mass_M * faded_M + tl.sum(weights_MN, 1)
        if EDGE or D != D_PAD:
            v_ND = tl.load(values + where_ND, mask=loaded_ND, other=0.0).to(q_MD.dtype)
        else:
            v_ND = tl.load(values + where_ND).to(q_MD.dtype)
        acc_MD = tl.dot(weights_MN.to(q_MD.dtype), v_ND, acc_MD * faded_M[:, None], input_precision=PRECISION)
        peak_M = highest_M
    return acc_MD, peak_M, mass_M


@triton.jit
def _is_decode(query_start, row):
    """Whether this row and all before it have one token each, so that token r is row r's."""
    return (tl.load(query_start + row) == row) & (tl.load(query_start + row + 1) == row + 1)


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["table", "query_start", "kv_length", "slot"],
)
def decode_kernel(
    out, partial, log_mass, q, k, v, slot, keys, values, table, query_start, kv_length, sinks, scale, softcap, window,
    q_token_stride, q_head_stride, k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    table_stride, slot_stride, head_stride,
    H: tl.constexpr, G: tl.constexpr, G_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, S: tl.constexpr,
    N: tl.constexpr, SPLITS: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
    FRESH: tl.constexpr, MIXED: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr, BEGIN: tl.constexpr,
):  # fmt: skip
    """One token of each row; program (kv head, split, row). A row of kv_length 0 yields zeros.

    With MIXED so does every row from the first on that has more tokens; `ragged_kernel` comes behind and answers those.
    With FRESH the row's own key and value are not in the cache yet: the first split takes them from k and v, and writes
    them there.
    """
    head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if not EARLY:
        BEGIN()
    position = tl.load(kv_length + row) - 1
    if MIXED:
        position = tl.where(_is_decode(query_start, row), position, -1)
    length = position if FRESH else position + 1
    begin = tl.maximum(position + 1 - window, 0) // N * N if WINDOW else 0
    span = tl.cdiv(tl.cdiv(length - begin, SPLITS), N) * N
    begin = begin + split * span
    end = tl.minimum(begin + span, length)
    keys, values = keys + head.to(tl.int64) * head_stride, values + head.to(tl.int64) * head_stride
    table = table + row.to(tl.int64) * table_stride
    if EARLY:
        BEGIN()

    g, d = tl.arange(0, G_PAD), tl.arange(0, D_PAD)
    heads_G = head * G + g
    loaded_GD = (g[:, None] < G) & (d[None, :] < D)
    q_row = q + row.to(tl.int64) * q_token_stride
    q_GD = tl.load(q_row + heads_G[:, None] * q_head_stride + d[None, :], mask=loaded_GD, other=0.0)
    peak_G = tl.full((G_PAD,), float("-inf"), tl.float32)
    mass_G = tl.zeros((G_PAD,), tl.float32)
    if SINKS:
        if split == 0:
            peak_G = tl.load(sinks + heads_G, mask=g < G, other=0.0).to(tl.float32) * LOG2_E
            mass_G = tl.full((G_PAD,), 1.0, tl.float32)
    acc_GD = tl.zeros((G_PAD, D_PAD), tl.float32)
    if FRESH:
        if (split == 0) & (position >= 0):
            k_D = tl.load(k + row.to(tl.int64) * k_token_stride + head * k_head_stride + d, mask=d < D, other=0.0)
            v_D = tl.load(v + row.to(tl.int64) * v_token_stride + head * v_head_stride + d, mask=d < D, other=0.0)
            k_D, v_D = k_D.to(keys.dtype.element_ty), v_D.to(values.dtype.element_ty)
            place = tl.load(slot + row)
            if place >= 0:
                tl.store(keys + place * slot_stride + d, k_D, mask=d < D)
                tl.store(values + place * slot_stride + d, v_D, mask=d < D)
            score_G = tl.sum(q_GD.to(tl.float32) * k_D.to(tl.float32)[None, :], 1) * scale
            if SOFTCAP:
                score_G = _capped(score_G, softcap)
            score_G = score_G * LOG2_E
            sunk_G = peak_G
            peak_G = tl.maximum(sunk_G, score_G)
            weight_G = tl.exp2(score_G - peak_G)
            mass_G = mass_G * tl.exp2(sunk_G - peak_G) + weight_G
            acc_GD = weight_G[:, None] * v_D.to(tl.float32)[None, :]
    acc_GD, peak_G, mass_G = _visit(
        q_GD, acc_GD, peak_G, mass_G, keys, values, table, begin, end,
        tl.zeros((G_PAD,), tl.int32) + position, scale, softcap, window, slot_stride,
        S, D, D_PAD, N, True, WINDOW, SOFTCAP, WINDOW, PRECISION,
    )  # fmt: skip
    out_GD = acc_GD / tl.where(mass_G > 0, mass_G, 1.0)[:, None]
    places_G = row.to(tl.int64) * H + heads_G
    if SPLITS == 1:
        tl.store(out + places_G[:, None] * D + d[None, :], out_GD.to(out.dtype.element_ty), mask=loaded_GD)
    else:
        places_G = places_G * SPLITS + split
        tl.store(partial + places_G[:, None] * D + d[None, :], out_GD, mask=loaded_GD)
        tl.store(log_mass + places_G, peak_G + tl.log2(mass_G), mask=g < G)


@triton.jit
def merge_kernel(
    out, partial, log_mass, D: tl.constexpr, D_PAD: tl.constexpr, SPLITS: tl.constexpr, BEGIN: tl.constexpr
):
    """The splits of one (row, head), each weighted by the mass that it saw."""
    BEGIN()
    place = tl.program_id(0).to(tl.int64)
    s, d = tl.arange(0, SPLITS), tl.arange(0, D_PAD)
    log_S = tl.load(log_mass + place * SPLITS + s)
    highest = tl.max(log_S, 0)
    weights_S = tl.exp2(log_S - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weights_S, 0)
    parts_SD = tl.load(
        partial + (place * SPLITS + s)[:, None] * D + d[None, :], mask=(d[None, :] < D) & (s[:, None] >= 0), other=0.0
    )
    out_D = tl.sum(parts_SD * weights_S[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + place * D + d, out_D.to(out.dtype.element_ty), mask=d < D)


@triton.jit(
    do_not_specialize=["num_rows", "num_tiles", "table_stride"],
    do_not_specialize_on_alignment=["table", "kv_length", "query_start"],
)
def ragged_kernel(
    out, q, keys, values, table, query_start, kv_length, sinks, scale, softcap, window,
    num_rows, num_tiles, q_token_stride, q_head_stride, table_stride, slot_stride, head_stride,
    H: tl.constexpr, G: tl.constexpr, G_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, S: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
    MIXED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows of any number of tokens; program (kv head, tile of M / G_PAD queries of a row). With MIXED, leading rows of
    one token are left to `decode_kernel`.

    Which tile is whose is found on the device: row r's tiles begin at its first token over Q, plus r, which leaves each
    row room for its last tile. Tiles that nobody needs return at once. Late tiles see most and go first.
    """
    Q: tl.constexpr = M // G_PAD
    head, tile = tl.program_id(0), num_tiles - 1 - tl.program_id(1)
    row, past = tl.zeros((), tl.int32), num_rows
    while past - row > 1:
        middle = (row + past) // 2
        begins = tl.load(query_start + middle) // Q + middle
        if begins <= tile:
            row = middle
        else:
            past = middle
    first = tl.load(query_start + row)
    count = tl.load(query_start + row + 1) - first
    begin = (tile - (first // Q + row)) * Q
    if begin >= count:
        return
    if MIXED:
        if _is_decode(query_start, row):
            return
    length = tl.load(kv_length + row)

    m, d = tl.arange(0, M), tl.arange(0, D_PAD)
    query_M, group_M = begin + m // G_PAD, m % G_PAD
    valid_M = (query_M < count) & (group_M < G)
    loaded_MD = valid_M[:, None] & (d[None, :] < D)
    token_M = (first + query_M).to(tl.int64)
    heads_M = head * G + group_M
    where_MD = token_M[:, None] * q_token_stride + heads_M[:, None] * q_head_stride + d[None, :]
    q_MD = tl.load(q + where_MD, mask=loaded_MD, other=0.0)
    position_M = length - count + query_M
    peak_M = tl.full((M,), float("-inf"), tl.float32)
    mass_M = tl.zeros((M,), tl.float32)
    if SINKS:
        peak_M = tl.load(sinks + heads_M, mask=group_M < G, other=0.0).to(tl.float32) * LOG2_E
        mass_M = tl.full((M,), 1.0, tl.float32)
    acc_MD = tl.zeros((M, D_PAD), tl.float32)
    keys, values = keys + head.to(tl.int64) * head_stride, values + head.to(tl.int64) * head_stride
    table = table + row.to(tl.int64) * table_stride
    low = length - count + begin
    end = tl.minimum(low + Q, length)
    # All queries of the tile see the positions up to the first one's own; only the rest needs a mask.
    edge = 0
    if WINDOW:
        edge = tl.maximum(low - window + 1, 0) // N * N
    else:
        edge = (low + 1) // N * N
        acc_MD, peak_M, mass_M = _visit(
            q_MD, acc_MD, peak_M, mass_M, keys, values, table, 0, edge, position_M, scale, softcap, window, slot_stride,
            S, D, D_PAD, N, False, False, SOFTCAP, WINDOW, PRECISION,
        )  # fmt: skip
    acc_MD, peak_M, mass_M = _visit(
        q_MD, acc_MD, peak_M, mass_M, keys, values, table, edge, end, position_M, scale, softcap, window, slot_stride,
        S, D, D_PAD, N, True, True, SOFTCAP, WINDOW, PRECISION,
    )  # fmt: skip
    out_MD = acc_MD / tl.where(mass_M > 0, mass_M, 1.0)[:, None]
    places_MD = (token_M * H + heads_M)[:, None] * D + d[None, :]
    tl.store(out + places_MD, out_MD.to(out.dtype.element_ty), mask=loaded_MD)
