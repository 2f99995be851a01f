"""Layers in stages: each layer once and in order, fewer to the later ones; plans of them, and what cannot be cut."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import pytest

from mainspring.core.architectures import parameter_count
from mainspring.core.architectures.speculators import DraftModelConfig, MedusaConfig, SpeculatorConfig
from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo
from mainspring.core.config import EngineConfig, ExpertsConfig
from mainspring.core.errors import BackendError
from mainspring.core.parallel.stages import Place, Stage, place_of
from mainspring.core.plan import Plan, draft
from mainspring.core.plugins import Choice
from mainspring.core.setting import devices_for
from tests.support.model_directory import TINY

CARDS = Capabilities(compute_dtypes=("float32",), kv_dtypes=("float32",), collectives="nccl")
DEVICE = DeviceInfo(0, "Device", "none", 1 << 30)
MEDUSA = MedusaConfig(hidden_size=64, vocab_size=TINY.vocab_size, num_heads=2, num_layers=1, bias=True, parameters=9)
MODEL = msgspec.structs.replace(TINY, num_layers=5, tied_embeddings=False, windows=(8, 8, None, 8, None))


@pytest.mark.parametrize(("layers", "count"), [(2, 2), (7, 2), (32, 3), (61, 8), (5, 1)])
def test_every_layer_is_in_one_stage_and_later_stages_have_fewer(layers: int, count: int) -> None:
    spans = [Stage(index, count).layers(layers) for index in range(count)]
    assert [layer for span in spans for layer in range(*span)] == list(range(layers))
    sizes = [past - start for start, past in spans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_ranks_are_numbered_stage_by_stage() -> None:
    places = [place_of(rank, 2, 3) for rank in range(6)]
    assert [place.rank for place in places] == list(range(6))
    assert [place.stage.index for place in places] == [0, 0, 1, 1, 2, 2]
    assert [place.shard.rank for place in places] == [0, 1, 0, 1, 0, 1]
    assert all(rank in place.sharing and len(place.sharing) == 2 for rank, place in enumerate(places))
    assert [place.stage.first for place in places] == [True, True, False, False, False, False]
    assert [place.stage.last for place in places] == [False, False, False, False, True, True]
    assert {(place.world, place.chooser) for place in places} == {(6, 4)}


def test_hidden_states_go_to_the_same_shard_of_the_next_stage() -> None:
    places = [place_of(rank, 2, 3) for rank in range(6)]
    for place in places[:4]:
        assert places[place.next].previous == place.rank
        assert places[place.next].shard == place.shard
    assert Place().world == 1


def test_a_stage_has_its_own_layers_windows_and_dense_layers() -> None:
    experts = ExpertsConfig(count=4, chosen=2, size=8, normalized=True, dense_layers=(0, 3))
    first, last = (Stage(index, 2).part_of(msgspec.structs.replace(MODEL, experts=experts)) for index in (0, 1))
    assert (first.num_layers, first.windows) == (3, (8, 8, None))
    assert (last.num_layers, last.windows) == (2, (8, None))
    assert first.experts is not None
    assert last.experts is not None
    assert (first.experts.dense_layers, last.experts.dense_layers) == ((0,), (0,))


def planned(
    num_stages: int,
    *,
    capabilities: Capabilities = CARDS,
    tied: bool = False,
    heads: SpeculatorConfig | None = None,
    **asked: object,
) -> Plan:
    sizes = {"max_sequences": 4, "max_batch_tokens": 64, **asked}
    config = msgspec.convert({"model": "m", "num_stages": num_stages, **sizes}, EngineConfig)
    model = msgspec.structs.replace(MODEL, tied_embeddings=tied, windows=())
    return draft(config, model, capabilities, DEVICE, heads)


def test_a_plan_is_the_largest_stage_s() -> None:
    alone, staged = planned(1), planned(2)
    assert not staged.reasons
    assert (alone.kv.layers, staged.kv.layers) == (5, 3)
    ends = 2 * MODEL.vocab_size * MODEL.hidden_size * 4
    assert alone.weight_bytes == 4 * parameter_count(MODEL)
    layers = alone.weight_bytes - ends - 4 * MODEL.hidden_size
    assert staged.weight_bytes == pytest.approx(layers * 3 / 5 + ends / 2 + 4 * MODEL.hidden_size)
    assert staged.usable_bytes == alone.usable_bytes
    sharing = replace(CARDS, ranks_share_device=True)
    together = planned(2, num_shard=2, capabilities=sharing)
    assert together.usable_bytes == planned(1, capabilities=sharing).usable_bytes // 4
    assert together.kv.layers == 3


def test_a_table_that_is_both_ends_weighs_on_the_first_stage_and_on_the_last() -> None:
    table = MODEL.vocab_size * MODEL.hidden_size * 4
    assert planned(1).weight_bytes - planned(1, tied=True).weight_bytes == table
    assert planned(2, tied=True).weight_bytes == planned(2).weight_bytes


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (planned(6), r"needs a layer for each stage, has 5 layers; use --pipeline-parallel-size 5 or less"),
        (planned(2, heads=MEDUSA, speculator="heads"), r"hidden states, has heads .*; use --speculator ngram or"),
        (planned(2, capabilities=replace(CARDS, collectives=None)), r"needs messages between ranks, has none; leave"),
    ],
)  # fmt: skip
def test_a_plan_says_why_stages_cannot_be(plan: Plan, reason: str) -> None:
    (said,) = plan.reasons
    assert said.startswith("--pipeline-parallel-size ")
    assert re.search(reason, said)


class Rack(Backend):
    """Cards that cannot be opened."""

    name, contract_version = "rack", 1

    def __init__(self, count: int) -> None:
        self._cards = [replace(DEVICE, index=index) for index in range(count)]

    def devices(self) -> list[DeviceInfo]:
        return self._cards

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        return CARDS

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        raise AssertionError("nothing is opened")


def test_guesses_that_need_no_hidden_states_go_with_stages() -> None:
    model = DraftModelConfig(model=TINY, parameters=parameter_count(TINY))
    for plan in (planned(2, speculator="ngram"), planned(2, heads=model, speculator="draft")):
        assert not plan.reasons


def test_stages_of_shards_take_a_card_each() -> None:
    def found(cards: int, num_shard: int | None, num_stages: int) -> list[int]:
        backend = Rack(cards)
        return [device.index for device in devices_for(Choice(backend, DEVICE, ""), num_shard, num_stages)]

    assert found(8, 2, 3) == [0, 1, 2, 3, 4, 5]
    assert found(8, None, 3) == [0, 1, 2, 3, 4, 5]
    assert found(8, 1, 1) == [0]
    with pytest.raises(BackendError, match=r"needs 6 devices, and rack has 5 .*; use --num-shard 2 or less"):
        found(5, 3, 2)
    with pytest.raises(BackendError, match=r"use --pipeline-parallel-size 2 or less"):
        found(2, None, 3)
