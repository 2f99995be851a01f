"""Who holds what: every head, feature and row of the vocabulary, once; and what a plan says of how many ranks work."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import torch

from mainspring.core.backend import Capabilities, DeviceInfo
from mainspring.core.config import EngineConfig, ExpertsConfig, ModelConfig
from mainspring.core.layers.weights import WHOLE, Cut
from mainspring.core.ops.quantized import quantize_weight
from mainspring.core.parallel.shard import Shard, obstacles, part_of, part_of_vocabulary, worlds
from mainspring.core.plan import blocks_that_fit, draft
from mainspring.core.quantization import SCHEMES
from tests.support.model_directory import TINY

HOST = Capabilities(
    compute_dtypes=("float32",), kv_dtypes=("float32",), weight_schemes=tuple(SCHEMES.values()), collectives="gloo",
    ranks_share_device=True,
)  # fmt: skip
CARDS = Capabilities(compute_dtypes=("float32",), kv_dtypes=("float32",), collectives="nccl")
DEVICE = DeviceInfo(0, "Device", "none", 1 << 30)


def shape(heads: int, kv_heads: int, features: int = 128) -> ModelConfig:
    return msgspec.structs.replace(TINY, num_heads=heads, num_kv_heads=kv_heads, intermediate_size=features)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_shares_are_everything_once_and_in_order(world: int) -> None:
    shares = [Shard(rank, world).share(64) for rank in range(world)]
    assert (shares[0][0], shares[-1][1]) == (0, 64)
    assert all(left[1] == right[0] for left, right in pairwise(shares))


@pytest.mark.parametrize(("kv_heads", "held"), [(4, [1, 1, 1, 1]), (8, [2, 2, 2, 2]), (2, [1, 1, 1, 1])])
def test_a_rank_holds_the_kv_heads_of_its_query_heads(kv_heads: int, held: list[int]) -> None:
    heads, world = 8, 4
    group = heads // kv_heads
    for rank in range(world):
        shard = Shard(rank, world)
        first, past = shard.kv_heads(kv_heads)
        assert past - first == held[rank]
        queries = range(*shard.share(heads))
        assert {query // group for query in queries} == set(range(first, past))
        # Attention pairs them by their place on the rank.
        here = len(queries) // (past - first)
        assert [first + place // here for place in range(len(queries))] == [query // group for query in queries]


@pytest.mark.parametrize("size", [16, 89, 1000, 50257])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_every_row_of_the_vocabulary_is_held_once(size: int, world: int) -> None:
    spans = [Shard(rank, world).vocabulary(size) for rank in range(world)]
    assert [row for span in spans for row in range(*span)] == list(range(size))
    assert max(past - first for first, past in spans) <= part_of_vocabulary(size, world)


@pytest.mark.parametrize(
    ("model", "world", "expected"),
    [
        (shape(9, 3), 2, ["9 query heads", "3 key and value heads"]),
        (shape(8, 2, 100), 8, ["100 features of the MLP"]),
        (shape(12, 4), 6, ["4 key and value heads", "128 features of the MLP"]),
        (shape(8, 2), 4, []),
    ],
)
def test_what_cannot_be_dealt_out_is_named(model: ModelConfig, world: int, expected: list[str]) -> None:
    assert obstacles(model, world) == expected
    assert (world in worlds(model)) == (not expected)


def test_groups_that_share_a_scale_stay_together() -> None:
    assert worlds(shape(4, 2)) == [1, 2, 4]
    assert worlds(shape(4, 2), group_size=32) == [1, 2]
    assert obstacles(shape(4, 2), 4, group_size=32) == ["64 inputs of the attention output in groups of 32"]
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(1))
    whole = quantize_weight(weight, SCHEMES["int4"])
    halves = [quantize_weight(weight[:, start : start + 64], SCHEMES["int4"]) for start in (0, 64)]
    for name in whole:
        assert torch.equal(torch.cat([half[name] for half in halves], dim=1), whole[name])


def test_a_cut_is_the_same_of_a_tensor_and_of_its_transpose() -> None:
    weight = torch.arange(24.0).view(6, 4)
    for cut in (WHOLE, Cut(((1, 3),)), Cut(((0, 1), (4, 6))), Cut(columns=(1, 3)), Cut(((6, 6),))):
        rows = [row for span in cut.rows or ((0, 6),) for row in range(*span)]
        expected = weight[rows][:, slice(*(cut.columns or (0, 4)))]
        assert torch.equal(cut.of(weight), expected)
        assert torch.equal(cut.of_transposed(weight.t().contiguous()), expected)


def config(num_shard: int, quantize: str | None = None) -> EngineConfig:
    return EngineConfig(model="m", num_shard=num_shard, quantize=quantize, max_sequences=4, max_batch_tokens=64)


def test_a_plan_is_one_rank_s() -> None:
    alone, half = (draft(config(world), shape(4, 2), CARDS, DEVICE) for world in (1, 2))
    assert (alone.kv.heads, half.kv.heads) == (2, 1)
    assert half.kv.block_bytes() * 2 == alone.kv.block_bytes()
    assert alone.weight_bytes / 2 < half.weight_bytes < 0.6 * alone.weight_bytes
    assert half.usable_bytes == alone.usable_bytes
    assert part_of(shape(4, 2), 4).num_kv_heads == 1


def test_ranks_on_one_host_divide_its_memory() -> None:
    plan = draft(config(2), shape(4, 2), HOST, DEVICE)
    assert plan.usable_bytes == draft(config(1), shape(4, 2), HOST, DEVICE).usable_bytes // 2
    free = 100 << 20
    assert blocks_that_fit(plan, config(2), free, DEVICE.total_bytes) * plan.kv.block_bytes() < free // 2


def test_a_plan_says_why_ranks_cannot_be_and_how_many_can() -> None:
    (reason,) = draft(config(3), shape(4, 2), CARDS, DEVICE).reasons
    assert "--num-shard 3: needs equal parts for all ranks, has 4 query heads" in reason
    assert "this model takes --num-shard 1, 2, 4" in reason
    (reason,) = draft(config(4, "int4"), shape(4, 2), HOST, DEVICE).reasons
    assert reason.endswith("this model takes --num-shard 1, 2")
    lonely = Capabilities(compute_dtypes=("float32",), kv_dtypes=("float32",))
    (reason,) = draft(config(2), shape(4, 2), lonely, DEVICE).reasons
    assert "needs collectives among ranks, has none" in reason


def test_experts_are_dealt_out_whole_or_not_at_all() -> None:
    model = msgspec.structs.replace(shape(4, 2), experts=ExpertsConfig(count=6, chosen=2, size=17, normalized=True))
    asked = msgspec.structs.replace(config(2), expert_parallel=True)
    assert [Shard(rank, 2, whole_experts=True).experts(6) for rank in (0, 1)] == [(0, 3), (3, 6)]
    assert not draft(asked, model, CARDS, DEVICE).reasons
    (reason,) = draft(msgspec.structs.replace(asked, num_shard=4), model, CARDS, DEVICE).reasons
    assert "has 6 experts; this model takes --num-shard 1, 2" in reason
    (reason,) = draft(config(2), model, CARDS, DEVICE).reasons
    assert "has 17 features of each expert" in reason
    (reason,) = draft(asked, shape(4, 2), CARDS, DEVICE).reasons
    assert "--enable-expert-parallel: needs experts to deal out, has none; leave it out" in reason
    (reason,) = draft(msgspec.structs.replace(asked, num_shard=1), model, CARDS, DEVICE).reasons
    assert "has one device, which holds all of them; leave it out" in reason
