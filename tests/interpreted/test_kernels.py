"""Kernels against the references of core, in float32 and float16: the interpreter has no bfloat16 to speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mainspring.backends.triton import elementwise
from mainspring.backends.triton.attention import Cache, Fresh, Rows, Scoring, decode, ragged
from mainspring.backends.triton.heads import Places
from mainspring.backends.triton.heads import rotate_and_store as fused
from mainspring.backends.triton.linear import SplitTile, VectorTile, split, vector
from mainspring.core.backend import AttentionMetadata, KVSpec
from mainspring.core.ops import Ops
from mainspring.core.ops.attention import PagedKV
from mainspring.core.ops.attention import attention as reference
from mainspring.core.ops.heads import HeadNorms, HeadsStep, rotate_and_store

pytestmark = [
    # The logarithm of a mass that is nothing yet: -inf is what it should be.
    pytest.mark.filterwarnings("ignore:divide by zero"),
    # What the interpreter does with numpy.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
]
NAN = float("nan")
OPS = Ops()
"""The references."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def near(found: Tensor, wanted: Tensor, bound: float = 1e-5) -> bool:
    return bool((found.double() - wanted.double()).norm() <= bound * wanted.double().norm())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "size", "depth"), [(1, 70, 200), (5, 70, 200), (16, 96, 256), (20, 130, 416)])
def test_products_of_few_rows(rows: int, size: int, depth: int, biased: bool) -> None:
    x, weight = torch.randn(rows, depth), torch.randn(size, depth)
    bias = torch.randn(size) if biased else None
    wanted = torch.nn.functional.linear(x, weight, bias)
    arrived = torch.zeros(8, dtype=torch.int32)
    for tile in (SplitTile(32, 64, 1, 4, 3), SplitTile(32, 64, 3, 4, 3, ahead=64), SplitTile(64, 32, 4, 4, 3)):
        assert near(split(x, weight, bias, tile, arrived=arrived), wanted)
        assert not arrived.any()
    if rows == 1:
        assert near(vector(x, weight, bias, VectorTile(4, 64, 4)), wanted)
        assert near(vector(x, weight, bias, VectorTile(4, 1024, 4)), wanted)


@dataclass(frozen=True, slots=True)
class Step:
    """Rows of a step, and two caches: one for the reference, one that is NaN wherever nothing was written yet."""

    q: Tensor
    k: Tensor
    v: Tensor
    metadata: AttentionMetadata
    known: PagedKV
    poisoned: PagedKV


def step(lengths: Sequence[int], counts: Sequence[int], block_size: int, head_dim: int) -> Step:
    blocks = 1 + max(-(-length // block_size) for length in lengths)
    spec = KVSpec(1, 2, head_dim, "float32", block_size)
    known, poisoned = (PagedKV.allocate(spec, 1 + len(lengths) * blocks, "cpu") for _ in range(2))
    table = (torch.randperm(len(lengths) * blocks) + 1).int().view(-1, blocks)
    slots: list[int] = []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        places = [int(table[row, p // block_size]) * block_size + p % block_size for p in range(length)]
        slots += places[length - count :] if length else [-1] * count
        for mine, theirs in zip(known.keys + known.values, poisoned.keys + poisoned.values, strict=True):
            mine.view(-1, 2, head_dim)[places] = torch.randn(length, 2, head_dim)
            theirs.view(-1, 2, head_dim)[:] = torch.where(
                mine.view(-1, 2, head_dim) == 0, NAN, mine.view(-1, 2, head_dim)
            )
    start = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    slot = torch.tensor(slots)
    decodes = next((row for row, count in enumerate(counts) if count > 1), len(counts))
    metadata = AttentionMetadata(
        start, torch.tensor(lengths, dtype=torch.int32), table, slot, max(counts), max(lengths), decodes
    )
    q, k, v = (torch.randn(len(slots), heads, head_dim) for heads in (4, 2, 2))
    return Step(q, k, v, metadata, known, poisoned)


SCORINGS = {"plain": Scoring(0.125), "all": Scoring(0.125, 20, 5.0, torch.tensor([0.5, -1.0, 2.0, 0.0]))}


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("block_size", "head_dim"), [(16, 64), (64, 48)])
def test_decodes_write_and_read_the_cache(block_size: int, head_dim: int, splits: int, scoring: Scoring) -> None:
    given = step([70, 1, 0, 33], [1, 1, 1, 1], block_size, head_dim)
    rows = Rows(given.metadata.query_start, given.metadata.kv_length, given.metadata.block_table)
    cache = Cache(given.poisoned.keys[0], given.poisoned.values[0])
    found = torch.full_like(given.q, NAN)
    decode(given.q, cache, rows, scoring, found, splits=splits, fresh=Fresh(given.k, given.v, given.metadata.slot))
    assert near(found, wanted(given, scoring))
    written = given.metadata.slot[given.metadata.slot >= 0]
    for mine, theirs in zip(given.known.keys + given.known.values, (cache.keys, cache.values), strict=True):
        assert torch.equal(mine.view(-1, 2, head_dim)[written], theirs.view(-1, 2, head_dim)[written])


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
@pytest.mark.parametrize(("block_size", "head_dim"), [(16, 64), (64, 48)])
def test_chunks_of_any_length(block_size: int, head_dim: int, scoring: Scoring) -> None:
    given = step([70, 17, 40], [1, 17, 21], block_size, head_dim)
    rows = Rows(given.metadata.query_start, given.metadata.kv_length, given.metadata.block_table)
    expected = wanted(given, scoring)
    for mine, x in ((given.poisoned.keys[0], given.k), (given.poisoned.values[0], given.v)):
        mine.view(-1, 2, head_dim)[given.metadata.slot] = x
    found = torch.full_like(given.q, NAN)
    ragged(given.q, Cache(given.poisoned.keys[0], given.poisoned.values[0]), rows, scoring, found)
    assert near(found, expected)


def wanted(given: Step, scoring: Scoring) -> Tensor:
    return reference(
        given.q, given.k, given.v, given.known, 0, given.metadata,
        scale=scoring.scale, window=scoring.window, softcap=scoring.softcap, sinks=scoring.sinks,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim", "normed"),
    [(10, 2, 64, 64, True), (4, 4, 48, 32, False), (9, 3, 80, 20, True)],
)
def test_heads_are_normed_rotated_and_stored_in_one(
    heads: int, kv_heads: int, head_dim: int, rotary_dim: int, normed: bool, dtype: torch.dtype
) -> None:
    spec = KVSpec(1, kv_heads, head_dim, "float16" if dtype == torch.float16 else "float32", 8)
    known, found = (PagedKV.allocate(spec, 4, "cpu") for _ in range(2))
    q, k, v = torch.randn(3, heads + 2 * kv_heads, head_dim).to(dtype).split((heads, kv_heads, kv_heads), dim=1)
    slot, positions, table = torch.tensor([9, -1, 25]), torch.tensor([5, 0, 17]), torch.randn(20, rotary_dim)
    norms = HeadNorms(torch.randn(head_dim).to(dtype), torch.randn(head_dim).to(dtype), 1e-6) if normed else None
    metadata = AttentionMetadata(slot, slot, slot, slot, 1, 1, 3)
    expected = rotate_and_store(q, k, v, HeadsStep(positions, table, known, 0, metadata), norms)
    weights = None if norms is None else (norms.q, norms.k, norms.epsilon)
    cache = found.keys[0], found.values[0]
    assert near(fused((q, k, v), Places(positions, slot, table), cache, weights), expected)
    assert near(found.keys[0], known.keys[0])
    assert torch.equal(found.values[0], known.values[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_small_ops_round_where_the_references_do(dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(5, 96).to(dtype), torch.randn(5, 96).to(dtype), torch.randn(96).to(dtype)
    assert near(elementwise.rms_norm(x, weight, 1e-6), OPS.rms_norm(x, weight, 1e-6))
    for found, expected in zip(
        elementwise.add_rms_norm(x, residual, weight, 1e-6), OPS.add_rms_norm(x, residual, weight, 1e-6), strict=True
    ):
        assert near(found, expected)
    assert near(elementwise.silu_mul(x), OPS.silu_mul(x), 1e-3)
    q, k = torch.randn(5, 10, 80).to(dtype), torch.randn(5, 3, 80).to(dtype)
    positions, table = torch.arange(5), torch.randn(7, 20)
    for found, expected in zip(elementwise.rope(q, k, positions, table), OPS.rope(q, k, positions, table), strict=True):
        assert near(found, expected)
