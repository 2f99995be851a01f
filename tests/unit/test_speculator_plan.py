"""A speculator in the start-up plan: its memory counts, and what it cannot do is said with the rest."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from mainspring.core.architectures.speculators import DraftModelConfig, MedusaConfig, SpeculatorConfig
from mainspring.core.config import EngineConfig
from mainspring.core.errors import StartupError
from mainspring.core.plan import Plan, blocks_that_fit, make_plan
from tests.unit.test_plan import FULL, MODEL, Declares, device

SMALLER = msgspec.structs.replace(MODEL, num_layers=3, num_kv_heads=1)
DRAFT = DraftModelConfig(model=SMALLER, parameters=40_000_000)
HEADS = MedusaConfig(hidden_size=576, vocab_size=49152, num_heads=4, num_layers=1, bias=True, parameters=9_000_000)


def plan(speculator: SpeculatorConfig | None, **changes: object) -> Plan:
    config = EngineConfig(model="m", **{"speculator": "./draft", "memory_fraction": 0.1, **changes})  # type: ignore[arg-type]
    return make_plan(config, MODEL, Declares(FULL), device(), speculator)


def test_a_draft_models_weights_cache_and_scratch_count() -> None:
    alone, beside = plan(None), plan(DRAFT, speculate=20 - 4)
    assert beside.speculator is not None
    assert beside.speculator.kv is not None
    assert beside.weight_bytes == alone.weight_bytes + 40_000_000 * 4
    # Three layers of one head of 64, keys and values, 16 tokens of float32.
    assert beside.block_bytes - alone.block_bytes == 2 * 3 * 64 * 16 * 4
    assert beside.speculator.scratch_blocks == 257
    taken = beside.weight_bytes + beside.workspace_bytes + beside.scratch_bytes + beside.kv_bytes
    assert taken <= beside.usable_bytes < taken + beside.block_bytes
    free = beside.total_bytes - beside.weight_bytes
    assert blocks_that_fit(beside, EngineConfig(model="m"), free, beside.total_bytes) == beside.num_blocks


def test_heads_without_a_cache_are_weights_alone() -> None:
    alone, beside = plan(None), plan(HEADS)
    assert beside.weight_bytes == alone.weight_bytes + 9_000_000 * 4
    assert (beside.block_bytes, beside.scratch_bytes) == (alone.block_bytes, 0)
    assert beside.speculator is not None
    assert beside.speculator.count == 4


def test_what_it_cannot_do_is_said_at_once() -> None:
    static = dataclasses.replace(FULL, shapes="bucketed", head_dims=(64,))
    model = msgspec.structs.replace(SMALLER, head_dim=32, max_position=512, windows=(8, None, None))
    with pytest.raises(StartupError) as raised:
        make_plan(
            EngineConfig(model="m", speculator="./draft", speculate=17),
            MODEL,
            Declares(dataclasses.replace(static, attention=frozenset())),
            device(),
            DraftModelConfig(model=model, parameters=1),
        )
    reasons = "\n".join(raised.value.reasons)
    for words in (
        "needs 17 drafted tokens, has at most 16 drafted tokens; use --speculate 16 or less",
        "needs steps of any shape, has bucketed; use --speculator ngram or heads without a cache",
        "needs head dimension 32, has 64",
        "needs attention sliding_window",
        "needs 8192 tokens of context, has 512; use --max-total-tokens 512 or less",
    ):
        assert f"speculator: {words}" in reasons
