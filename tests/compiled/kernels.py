"""What is compiled: each op that a step launches, at shapes of real models, in each dtype.

The tensors are small and on the host: a compiler sees their dtypes, alignment and strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mainspring.backends.torch_gpu.attention import attention, kv_write, plan_step, rotate_and_store
from mainspring.backends.torch_gpu.experts import moe
from mainspring.backends.torch_gpu.quantization import Quantized
from mainspring.backends.triton import elementwise
from mainspring.backends.triton.linear import SplitTile, VectorTile, split, vector
from mainspring.backends.triton.moe import route
from mainspring.backends.triton.sample import Destination, draw, find_peaks, highest, record, thresholds
from mainspring.backends.triton.summed_norm import Inboxes, summed, summed_add_rms_norm
from mainspring.core.backend import AttentionMetadata, PackedLinear, WeightScheme
from mainspring.core.gguf_layouts import exact_scheme
from mainspring.core.ops.attention import PagedKV
from mainspring.core.ops.gguf_blocks import blocks_of, random_weight
from mainspring.core.ops.heads import HeadNorms, HeadsStep
from tests.compiled.targets import Target

VOCABULARY = 32000
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

QUANTIZED = (
    WeightScheme(weight="int4", bits=4, group_size=128),
    WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False),
    WeightScheme(weight="int8", bits=8),
    WeightScheme(weight="float8_e4m3fn", bits=8),
    WeightScheme(weight="mxfp4", bits=4, group_size=32),
    WeightScheme(weight="nvfp4", bits=4, group_size=16),
    WeightScheme(weight="nf4", bits=4, group_size=64),
    exact_scheme("q4_k"),
    exact_scheme("q5_k"),
    exact_scheme("q6_k"),
    WeightScheme(weight="int8", bits=8, activation="int8", activation_granularity="token"),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One op in one dtype."""

    name: str
    dtype: str
    launch: Callable[[Target], None]
    matrix: bool = False
    """Whether it multiplies matrices."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention's shape and kind."""

    query: int
    kv: int
    dim: int
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False


LLAMA, SMOL = Heads(32, 8, 128), Heads(9, 3, 64, sinks=True)
GEMMA = Heads(8, 4, 256, window=512, softcap=50.0)


def variants(fp8: torch.dtype | None, *, products: bool) -> Iterator[Variant]:
    """All; with a cache of 8 bits where the machine knows one, with `products` where a backend launches our own."""
    for name, dtype in DTYPES.items():
        # float32 is for comparing, which takes small models.
        for heads in (LLAMA, SMOL, GEMMA) if dtype != torch.float32 else (SMOL,):
            shape = f"{heads.query}/{heads.kv} heads of {heads.dim}"
            for kind, rows, tokens, chunks in (
                ("decode, written on the way", 64, 64, False),
                ("decode in splits", 2, 2, False),
                ("chunks", 3, 300, True),
            ):
                launch = partial(_attention, dtype, dtype, heads, rows, tokens, chunks)
                yield Variant(f"attention, {kind}: {shape}", name, launch, matrix=True)
        yield Variant("rms_norm", name, partial(_norm, dtype, False))
        yield Variant("add_rms_norm", name, partial(_norm, dtype, True))
        yield Variant("sum over ranks, add_rms_norm", name, partial(_summed, dtype))
        yield Variant("rope", name, partial(_rope, dtype))
        yield Variant("norms of heads, rope, kv_write", name, partial(_heads, dtype, True))
        yield Variant("rope, kv_write", name, partial(_heads, dtype, False))
        yield Variant("silu_mul", name, partial(_silu, dtype))
        yield Variant("experts", name, partial(_experts, dtype), matrix=True)
        yield Variant("kv_write", name, partial(_write, dtype, dtype))
        yield Variant("sample, choose", name, partial(_sample, dtype))
        if dtype != torch.float32:
            for scheme in QUANTIZED:
                for rows in (16, 200):
                    yield Variant(
                        f"product of {rows} rows, {scheme}", name, partial(_quantized, dtype, scheme, rows), matrix=True
                    )
            yield Variant("int4 dequantized", name, partial(_quantized, dtype, QUANTIZED[0], 600))
            yield Variant("rows of q6_k blocks", name, partial(_rows, dtype, exact_scheme("q6_k")))
        if products:
            yield Variant("product of one row", name, partial(_vector, dtype))
            if dtype != torch.float32:
                yield Variant("product of 16 rows, split", name, partial(_split, dtype), matrix=True)
    if fp8 is not None:
        bf16 = torch.bfloat16
        kind = str(fp8).removeprefix("torch.")
        yield Variant("kv_write", f"bf16, cache {kind}", partial(_write, bf16, fp8))
        decode = partial(_attention, bf16, fp8, LLAMA, 2, 2, False)
        yield Variant("attention, decode in splits: 32/8 heads of 128", f"bf16, cache {kind}", decode, matrix=True)
        chunks = partial(_attention, bf16, fp8, LLAMA, 3, 300, True)
        yield Variant("attention, chunks: 32/8 heads of 128", f"bf16, cache {kind}", chunks, matrix=True)


def _cache(heads: int, head_dim: int, dtype: torch.dtype) -> PagedKV:
    shape = (4, 32, heads, head_dim)
    return PagedKV((torch.zeros(shape, dtype=dtype),), (torch.zeros(shape, dtype=dtype),))


def _attention(
    dtype: torch.dtype, cache: torch.dtype, heads: Heads, rows: int, tokens: int, chunks: bool, target: Target
) -> None:
    kv = _cache(heads.kv, heads.dim, cache)
    q = torch.zeros(tokens, heads.query, heads.dim, dtype=dtype)
    k, v = (torch.zeros(tokens, heads.kv, heads.dim, dtype=dtype) for _ in range(2))
    metadata = AttentionMetadata(
        torch.arange(rows + 1, dtype=torch.int32), torch.ones(rows, dtype=torch.int32),
        torch.zeros(rows, 64, dtype=torch.int32), torch.zeros(tokens, dtype=torch.int64),
        tokens if chunks else 1, 1, 1 if chunks else rows,
    )  # fmt: skip
    plan = plan_step(metadata, heads.kv, target.tuning.processors)
    sinks = torch.zeros(heads.query, dtype=dtype) if heads.sinks else None
    attention(
        q, k, v, kv, 0, plan, scale=heads.dim**-0.5, window=heads.window, softcap=heads.softcap, sinks=sinks,
        tuning=target.tuning, overlap=target.tuning.overlap,
    )  # fmt: skip


def _norm(dtype: torch.dtype, added: bool, target: Target) -> None:
    x, weight = torch.zeros(8, 4096, dtype=dtype), torch.zeros(4096, dtype=dtype)
    if added:
        elementwise.add_rms_norm(x, x, weight, 1e-5, overlap=target.tuning.overlap)
    else:
        elementwise.rms_norm(x, weight, 1e-5, overlap=target.tuning.overlap)


def _summed(dtype: torch.dtype, target: Target) -> None:
    x, weight = torch.zeros(8, 4096, dtype=dtype), torch.zeros(4096, dtype=dtype)
    addresses = torch.zeros(2, dtype=torch.int64)
    inboxes = Inboxes(0, addresses, addresses, torch.zeros(512, dtype=torch.int32), 16 * 1024)
    summed(x, inboxes, overlap=target.tuning.overlap)
    summed_add_rms_norm(x, (x, weight, 1e-5), inboxes, overlap=target.tuning.overlap)


def _rope(dtype: torch.dtype, target: Target) -> None:
    q, k = torch.zeros(8, 32, 128, dtype=dtype), torch.zeros(8, 8, 128, dtype=dtype)
    positions, table = torch.zeros(8, dtype=torch.int32), torch.zeros(64, 128)
    elementwise.rope(q, k, positions, table, overlap=target.tuning.overlap)


def _heads(dtype: torch.dtype, normed: bool, target: Target) -> None:
    q, (k, v) = torch.zeros(8, 32, 128, dtype=dtype), (torch.zeros(8, 8, 128, dtype=dtype) for _ in range(2))
    plan = plan_step(_decodes(8), 8, target.tuning.processors)
    positions, table = torch.zeros(8, dtype=torch.int32), torch.zeros(64, 128)
    weight = torch.zeros(128, dtype=dtype)
    rotate_and_store(
        q, k, v, HeadsStep(positions, table, _cache(8, 128, dtype), 0, plan),
        HeadNorms(weight, weight, 1e-6) if normed else None, overlap=target.tuning.overlap,
    )  # fmt: skip


def _decodes(rows: int) -> AttentionMetadata:
    return AttentionMetadata(
        torch.arange(rows + 1, dtype=torch.int32), torch.ones(rows, dtype=torch.int32),
        torch.zeros(rows, 64, dtype=torch.int32), torch.zeros(rows, dtype=torch.int64), 1, 1, rows,
    )  # fmt: skip


def _silu(dtype: torch.dtype, target: Target) -> None:
    elementwise.silu_mul(torch.zeros(8, 8192, dtype=dtype), overlap=target.tuning.overlap)


def _experts(dtype: torch.dtype, target: Target) -> None:
    x, gate_up, down = (
        torch.zeros(shape, dtype=dtype).expand(*real)
        for shape, real in (((1, 2048), (-1, -1)), ((8, 2 * 768, 2048), (-1, -1, -1)), ((8, 2048, 768), (-1, -1, -1)))
    )
    for tokens in (8, 256, 4096):
        weights, chosen = torch.zeros(tokens, 8), torch.zeros(tokens, 8, dtype=torch.int64)
        route(torch.zeros(tokens, 128, dtype=dtype), 8, True, overlap=target.tuning.overlap)
        moe(x.expand(tokens, -1), gate_up, down, weights, chosen, tuning=target.tuning, overlap=target.tuning.overlap)


def _write(dtype: torch.dtype, cache: torch.dtype, target: Target) -> None:
    kv = _cache(8, 128, cache)
    k = torch.zeros(8, 8, 128, dtype=dtype)
    kv_write(k, k, kv, 0, torch.zeros(8, dtype=torch.int64), overlap=target.tuning.overlap)


def _sample(dtype: torch.dtype, target: Target) -> None:
    rows, (whole, one) = 4, (torch.zeros(4, dtype=torch.int32), torch.ones(4))
    logits = torch.zeros(rows, VOCABULARY, dtype=dtype)
    peaks = find_peaks(logits)
    cut = thresholds(logits, peaks, one, whole, one, any_top_k=True, any_top_p=True)
    drawn = draw(logits, peaks, one, whole, whole, cut=(cut, one))
    draw(logits, peaks, one, whole, whole)
    highest(drawn, VOCABULARY)
    record(drawn, peaks, VOCABULARY, Destination(torch.zeros(4, 64, dtype=torch.int32), whole, whole))


def _product(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.zeros(rows, 4096, dtype=dtype), torch.zeros(4096, 4096, dtype=dtype)


def _vector(dtype: torch.dtype, target: Target) -> None:
    vector(*_product(1, dtype), None, VectorTile(4, 1024, 4), overlap=target.tuning.overlap)


def _split(dtype: torch.dtype, target: Target) -> None:
    arrived = torch.zeros(64, dtype=torch.int32)
    tile = SplitTile(64, 256, 2, 4, 3, ahead=256)
    split(*_product(16, dtype), None, tile, arrived=arrived, overlap=target.tuning.overlap)


def _quantized(dtype: torch.dtype, scheme: WeightScheme, rows: int, target: Target) -> None:
    quantized = Quantized(target.tuning)
    quantized(torch.zeros(rows, 1024, dtype=dtype), _packed(quantized, scheme))


def _rows(dtype: torch.dtype, scheme: WeightScheme, target: Target) -> None:
    quantized = Quantized(target.tuning)
    quantized.rows(torch.zeros(3, dtype=torch.int32), _packed(quantized, scheme), dtype)


def _packed(quantized: Quantized, scheme: WeightScheme) -> PackedLinear:
    plain = scheme.packing == "plain"
    weight = torch.ones(128, 1024) if plain else random_weight(blocks_of(scheme), 128, 1024)
    return quantized.pack(scheme, {"weight": weight})
