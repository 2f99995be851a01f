"""Kernels at the shapes that serving gives them, against float64: products of few rows, heads, attention.

What a kernel allocates comes from memory that held NaN a moment ago, so that nothing unwritten passes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mainspring.backends.cuda.cublas import Cublas
from mainspring.backends.cuda.linear import Linears
from mainspring.backends.cuda.overlap import overlap_of
from mainspring.backends.cuda.tiles import prefill_tile
from mainspring.backends.torch_gpu.attention import attention, kv_write, plan_step, rotate_and_store
from mainspring.backends.torch_gpu.tuning import Tuning
from mainspring.backends.triton.launch import ALONE, Overlap
from mainspring.backends.triton.linear import SplitTile, VectorTile, split, vector
from mainspring.core.backend import AttentionMetadata, KVSpec, PackedLinear, unquantized
from mainspring.core.ops import heads as reference
from mainspring.core.ops.attention import PagedKV

ROUNDING = 1e-2
"""Of bfloat16 operands, relative to the whole result."""
OVERLAPS = {"alone": ALONE, "overlapping": overlap_of(torch.cuda.get_device_capability())}


@pytest.fixture(autouse=True)
def poisoned() -> None:
    torch.manual_seed(0)
    for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24):
        torch.full((size,), float("nan"), device="cuda")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize(
    ("rows", "size", "depth"), [(1, 6144, 4096), (3, 250, 1000), (3, 250, 1001), (32, 4096, 14336)]
)
def test_products_of_few_rows(rows: int, size: int, depth: int, overlap: Overlap) -> None:
    x, weight, bias = normal(rows, depth), normal(size, depth), normal(size)
    arrived = torch.zeros(1024, dtype=torch.int32, device="cuda")
    for tile in (SplitTile(64, 256, 1, 4, 3, 256), SplitTile(64, 128, 4, 4, 4), SplitTile(128, 128, 2, 8, 3, 256)):
        for _ in range(3):
            assert error(split(x, weight, bias, tile, arrived=arrived, overlap=overlap), product(x, weight, bias)) < (
                ROUNDING
            )
        # The counters are as the next launch needs them.
        assert not arrived.any()
    if rows == 1:
        for narrow in (VectorTile(4, 1024, 4), VectorTile(16, 256, 4)):
            assert error(vector(x, weight, None, narrow, overlap=overlap), product(x, weight, None)) < ROUNDING


def test_a_choice_is_measured_once_and_kept(tmp_path: Path) -> None:
    weight, x = normal(1024, 2048), normal(1, 2048)
    packed = PackedLinear(unquantized("bfloat16"), 2048, 1024, weight)
    first = Linears(ALONE, 132, "a card", tmp_path)
    first.add(weight)
    assert error(first(x, packed), product(x, weight, None)) < ROUNDING
    (file,) = tmp_path.iterdir()
    kept = file.read_text()
    assert '"depth": 2048' in kept
    # A process after it takes the file's word: this one names a tile that nobody would have measured.
    odd = {"shape": json.loads(kept)[0]["shape"], "kernel": "vector", "tile": {"rows": 1, "columns": 64, "warps": 1}}
    file.write_text(json.dumps([odd]))
    assert error(Linears(ALONE, 132, "a card", tmp_path)(x, packed), product(x, weight, None)) < ROUNDING
    assert json.loads(file.read_text()) == [odd]
    file.write_text("not json")
    assert error(Linears(ALONE, 132, "a card", tmp_path)(x, packed), product(x, weight, None)) < ROUNDING
    assert '"depth": 2048' in file.read_text()


@pytest.mark.parametrize(("rows", "size", "depth"), [(33, 1024, 4096), (200, 4096, 2048)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_librarys_other_guesses_multiply(rows: int, size: int, depth: int, biased: bool, tmp_path: Path) -> None:
    x, weight, bias = normal(rows, depth), normal(size, depth), normal(size) if biased else None
    cublas = Cublas()
    guesses = cublas.algorithms(x, weight, biased, 8)
    assert guesses
    for guess in guesses:
        assert error(cublas.product(x, weight, bias, guess), product(x, weight, bias)) < ROUNDING
    packed = PackedLinear(unquantized("bfloat16"), depth, size, weight, bias)
    for count in (rows, rows - 1):
        linears = Linears(ALONE, 132, "a card", tmp_path, cublas=cublas)
        assert error(linears(x[:count], packed), product(x[:count], weight, bias)) < ROUNDING
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(128, 128), (80, 20)])
def test_heads_are_normed_rotated_and_stored_in_one(normed: bool, head_dim: int, rotary_dim: int) -> None:
    tokens, block_size = 65, 32
    caches = [PagedKV.allocate(KVSpec(1, 8, head_dim, "bfloat16", block_size), 9, "cuda") for _ in range(2)]
    q, k, v = normal(tokens, 32 + 16, head_dim).split((32, 8, 8), dim=1)
    slot = torch.randperm(8 * block_size, device="cuda")[:tokens] + block_size
    slot[-1] = -1
    metadata = AttentionMetadata(*[slot.int()] * 3, slot, 1, 1, 0)
    positions, table = torch.arange(tokens, device="cuda"), torch.randn(tokens, rotary_dim, device="cuda")
    norms = reference.HeadNorms(normal(head_dim), normal(head_dim), 1e-6) if normed else None
    steps = [reference.HeadsStep(positions, table, cache, 0, metadata) for cache in caches]
    wanted = reference.rotate_and_store(q, k, v, steps[0], norms)
    found = rotate_and_store(q, k, v, steps[1], norms, overlap=OVERLAPS["overlapping"])
    assert error(found, wanted.double()) < ROUNDING
    assert error(caches[1].keys[0], caches[0].keys[0].double()) < ROUNDING
    assert torch.equal(caches[1].values[0], caches[0].values[0])


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("rows", "queries", "context"), [(1, 1, 16384), (9, 1, 1000), (1, 4096, 4096), (3, 700, 1500)])
def test_attention_of_long_contexts(rows: int, queries: int, context: int, stored: bool, overlap: Overlap) -> None:
    block_size, blocks = 32, -(-context // 32)
    kv = PagedKV.allocate(KVSpec(1, 8, 128, "bfloat16", block_size), 1 + rows * blocks, "cuda")
    for cache in (kv.keys[0], kv.values[0]):
        cache.copy_(torch.randn_like(cache))
    table = (torch.randperm(rows * blocks, device="cuda") + 1).int().view(rows, blocks)
    start = torch.arange(rows + 1, device="cuda", dtype=torch.int32) * queries
    length = torch.full((rows,), context, device="cuda", dtype=torch.int32)
    at = torch.arange(context - queries, context, device="cuda")
    slot = (table[:, at // block_size].long() * block_size + at % block_size).flatten()
    tokens = rows * queries
    q, k, v = normal(tokens, 32, 128), normal(tokens, 8, 128), normal(tokens, 8, 128)
    metadata = AttentionMetadata(start, length, table, slot, queries, context, rows if queries == 1 else 0)
    plan = plan_step(metadata, 8, 132)
    fresh = (None, None) if stored else (k, v)
    if stored:
        kv_write(k, v, kv, 0, slot)
    found = attention(
        q, *fresh, kv, 0, plan, scale=128**-0.5, tuning=Tuning(132, prefill=prefill_tile), overlap=overlap
    )
    assert found.isfinite().all()
    for row in range(rows):
        keys, values = (
            cache[table[row].long()].flatten(0, 1)[:context].double() for cache in (kv.keys[0], kv.values[0])
        )
        for query in {0, queries // 2, queries - 1}:
            token, seen = row * queries + query, context - queries + query + 1
            scores = torch.einsum("kgd,nkd->kgn", q[token].double().view(8, 4, 128), keys[:seen]) * 128**-0.5
            wanted = torch.einsum("kgn,nkd->kgd", scores.softmax(-1), values[:seen]).reshape(32, 128)
            assert error(found[token], wanted) < ROUNDING
