"""A model on several ranks says what it says on one: real processes, every way a layer is dealt out or layers are cut
into stages, a cache that runs out.

Weights are random floats, so sums in another order move no token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import transformers

from mainspring.core.config import EngineConfig
from mainspring.core.errors import StartupError
from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.request import FinishReason, LogitsProcessing, SamplingParams
from mainspring.server.offline import LLM, Output
from tests.support.in_process import open_in_process
from tests.support.live_server import live_server
from tests.support.tiny_models import build, save
from tests.support.tiny_tokenizers import write_word_tokenizer

VOCABULARY = 89
"""Odd, so that the last rank's part of it is shorter."""
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
PREFIX = [(7 * i) % VOCABULARY for i in range(1, 40)]
PROMPTS = [[*PREFIX, last] for last in range(4)] + [[5, 6, 7], PREFIX]
"""More than the cache holds at once, with a prefix of two blocks in common."""

GREEDY = SamplingParams(max_tokens=30, prompt_logprobs=2, logprobs=2)
DRAWN = SamplingParams(
    max_tokens=20,
    temperature=1.5,
    top_p=0.95,
    seed=11,
    repetition_penalty=1.1,
    processors=(LogitsProcessing("watermark", (0.5, 1.0, 7)),),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One model, and how it is served."""

    config: Callable[[], Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-3
    """Of log-probabilities. Where it is large, tokens may differ, too."""


def llama(**changes: Any) -> Callable[[], Any]:
    return lambda: transformers.LlamaConfig(**{**SHAPE, "head_dim": 32, **changes})


def gemma3(**changes: Any) -> Any:
    layers = ["sliding_attention", "full_attention"]
    return transformers.Gemma3TextConfig(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=20,
        sliding_window=6,
        query_pre_attn_scalar=30,
        layer_types=layers,
        **changes,
    )


def gpt2() -> Any:
    return transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
    )


CASES: Mapping[str, Case] = {
    "llama, kv heads dealt out": Case(llama(num_key_value_heads=2)),
    "llama, one kv head for both, biases": Case(llama(num_key_value_heads=1, attention_bias=True, mlp_bias=True)),
    # The host's kernel rounds partial sums to bfloat16.
    "llama, int4 in groups": Case(llama(num_key_value_heads=2), {"quantize": "int4"}, tolerance=0.2),
    "qwen3, tied": Case(
        lambda: transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True)
    ),
    "gemma3, scaled embedding, windows": Case(gemma3),
    "phi3, merged in the checkpoint": Case(lambda: transformers.Phi3Config(**SHAPE, num_key_value_heads=2)),
    "qwen3-moe, experts' features dealt out": Case(
        lambda: transformers.Qwen3MoeConfig(
            **SHAPE,
            num_key_value_heads=2,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            mlp_only_layers=[1],
        )
    ),
    "qwen3-moe, whole experts": Case(
        lambda: transformers.Qwen3MoeConfig(
            **SHAPE,
            num_key_value_heads=2,
            head_dim=32,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=17,
            mlp_only_layers=[1],
        ),
        {"expert_parallel": True},
    ),
    "mixtral, whole experts": Case(
        lambda: transformers.MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
        {"expert_parallel": True},
    ),
    "gpt2, positions, transposed weights": Case(gpt2),
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_say_what_one_says(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    save(build(case.config()), tmp_path)
    write_word_tokenizer(tmp_path, VOCABULARY)
    alone, together = (
        answers(tmp_path, *ranks) for ranks in ((1, {**case.engine, "expert_parallel": False}), (2, case.engine))
    )
    for one, two in zip(alone, together, strict=True):
        assert two.token_ids == one.token_ids or case.tolerance > 0.1
        assert (two.prompt_logprobs is None) == (one.prompt_logprobs is None)
        for entry, expected in zip(two.prompt_logprobs or [], one.prompt_logprobs or [], strict=True):
            if expected is not None and entry is not None:
                assert entry.logprob == pytest.approx(expected.logprob, abs=case.tolerance)


STAGED: Mapping[str, tuple[Case, int, int]] = {
    "llama, two stages": (Case(llama(num_key_value_heads=2), tolerance=1e-5), 1, 2),
    "llama, three stages of five layers": (
        Case(llama(num_key_value_heads=2, num_hidden_layers=5, attention_bias=True), tolerance=1e-5), 1, 3,
    ),
    "gemma3, one table at both ends": (Case(gemma3, tolerance=1e-5), 1, 2),
    "llama, two stages of two": (Case(llama(num_key_value_heads=2, num_hidden_layers=3)), 2, 2),
}  # fmt: skip
"""With ranks that share a stage, and stages."""


@pytest.mark.parametrize("name", STAGED)
def test_stages_say_what_one_device_says(name: str, tmp_path: Path) -> None:
    """Log-probabilities differ as they do between two runs of one device, whose batches are not the same."""
    case, num_shard, num_stages = STAGED[name]
    save(build(case.config()), tmp_path)
    write_word_tokenizer(tmp_path, VOCABULARY)
    alone, staged = answers(tmp_path, 1, {}), answers(tmp_path, num_shard, {"num_stages": num_stages})
    for one, two in zip(alone, staged, strict=True):
        assert two.token_ids == one.token_ids
        assert scores(two) == pytest.approx(scores(one), abs=case.tolerance)
    assert sum(len(scores(output)) for output in staged) > 300


def scores(output: Output) -> list[float]:
    """Of the prompt, but for its first token, and of the answer."""
    return [entry.logprob for entry in [*(output.prompt_logprobs or []), *(output.logprobs or [])] if entry is not None]


@pytest.mark.parametrize(("num_shard", "num_stages"), [(2, 1), (1, 2)])
def test_two_ranks_choose_the_same_tokens_under_a_grammar(num_shard: int, num_stages: int, tmp_path: Path) -> None:
    save(build(llama(num_key_value_heads=2, eos_token_id=2)()), tmp_path)
    write_word_tokenizer(tmp_path, VOCABULARY)
    grammar = [GrammarSpec("regex", pattern) for pattern in ("[0-9]{12,15}", "[A-F]{9}(, [A-F]{9}){1,3}")]
    alone, together = (
        answers(tmp_path, shards, {"num_stages": stages}, [None, *grammar] * 2)
        for shards, stages in ((1, 1), (num_shard, num_stages))
    )
    assert [one.token_ids for one in alone] == [two.token_ids for two in together]
    ended = [two.text for two in together if two.finish_reason is FinishReason.EOS]
    assert sum(re.fullmatch("[0-9]{12,15}", text) is not None for text in ended) >= 3


@pytest.mark.parametrize("parts", [{"num_shard": 2}, {"num_stages": 2}], ids=lambda parts: next(iter(parts)))
@pytest.mark.parametrize("copies", [False, True])
def test_two_ranks_guess_the_same(parts: dict[str, int], copies: bool, tmp_path: Path) -> None:
    """By a draft model, here the target, which each rank has whole; or by copying, where two tokens are likely."""
    save(build(llama(num_key_value_heads=2)()), tmp_path)
    write_word_tokenizer(tmp_path, VOCABULARY)
    sizes: dict[str, Any] = {"model": str(tmp_path), "backend": "cpu", "num_blocks": 40, "max_batch_tokens": 32}
    params = msgspec.structs.replace(GREEDY, logit_bias={5: 8.0, 6: 8.0}) if copies else GREEDY
    alone = open_in_process(EngineConfig(**sizes, threads=1))
    expected = alone.generate(PROMPTS, params)
    alone.executor.close()
    speculator = "ngram" if copies else str(tmp_path)
    with LLM.of(EngineConfig(**sizes, **parts, speculator=speculator, speculate=3)) as llm:
        assert [output.token_ids for output in llm.generate(PROMPTS, params)] == expected
        assert llm.stats.accepted_tokens > 0


def test_a_server_of_two_stages_answers_as_one_device_does(tmp_path: Path) -> None:
    model = save(build(llama(num_key_value_heads=2, num_hidden_layers=3)()), tmp_path / "m")
    write_word_tokenizer(model, VOCABULARY)
    texts = []
    for stages in ("1", "2"):
        flags = ["--backend", "cpu", "--threads", "1", "--pipeline-parallel-size", stages]
        with live_server(str(model), tmp_path / stages, *flags) as server:
            body = {"inputs": "AB CD", "parameters": {"max_new_tokens": 20, "details": True}}
            reply = httpx.post(f"{server.url}/generate", json=body).raise_for_status().json()
            texts.append((reply["generated_text"], reply["details"]["tokens"]))
    assert texts[0] == texts[1]
    assert len(texts[0][1]) == 20


def test_what_cannot_be_cut_into_stages_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    save(build(gpt2()), tmp_path)
    write_word_tokenizer(tmp_path, VOCABULARY)
    with pytest.raises(StartupError, match=r"GPT2, .* cannot be cut into stages; leave --pipeline-parallel-size out"):
        LLM(str(tmp_path), "cpu", num_stages=2)
    with pytest.raises(StartupError, match=r"needs a layer for each stage, has 2 layers"):
        LLM(str(tmp_path), "cpu", num_stages=3)
    with pytest.raises(StartupError, match=r"messages between ranks, has none; leave it out or use another backend"):
        LLM(str(tmp_path), "sim", num_stages=2)


def test_a_model_that_cannot_be_dealt_out_says_to_how_many_it_can(tmp_path: Path) -> None:
    save(build(llama(num_key_value_heads=2)()), tmp_path)
    write_word_tokenizer(tmp_path, VOCABULARY)
    with pytest.raises(StartupError, match=r"has 4 query heads.*; this model takes --num-shard 1, 2, 4"):
        LLM(str(tmp_path), "cpu", num_shard=3)


def test_a_checkpoint_that_does_not_fit_ends_the_start_of_all_ranks(tmp_path: Path) -> None:
    save(build(llama(num_key_value_heads=2)()), tmp_path)
    write_word_tokenizer(tmp_path, VOCABULARY)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(
        StartupError, match=r"gate_proj.weight is \[128, 64\] where the model's config makes it \[64, 64\]"
    ):
        LLM(str(tmp_path), "cpu", num_shard=2)


def answers(
    model: Path, num_shard: int, engine: Mapping[str, Any], grammar: list[GrammarSpec | None] | None = None
) -> list[Output]:
    """Greedy ones and drawn ones, from a cache that is too small for all at once."""
    config = EngineConfig(
        model=str(model),
        backend="cpu",
        num_shard=num_shard,
        block_size=16,
        num_blocks=13,
        max_batch_tokens=32,
        max_prefill_chunk=24,
        max_sequences=4,
        **engine,
    )
    with LLM.of(config) as llm:
        assert llm.ready.num_shard == num_shard
        found = llm.generate(PROMPTS, GREEDY, (), grammar) + llm.generate(PROMPTS, DRAWN, (), grammar)
        assert llm.stats.preemptions > 0 or grammar is not None  # answers end where their grammars do
        assert llm.stats.prefix_hits > 0
        return found
