"""Tiny seeded models of every architecture, built by transformers: the oracle of the model tests.

Shapes are odd on purpose: three heads on one, head dims that are not hidden size over heads, windows shorter than the
prompt. Weights are large enough that attention is not uniform, and norms and biases are not what they are born as.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

VOCABULARY = 89
LENGTH = 29
"""Tokens of the test's sequence, prime so that no chunk size divides it."""
GENERATED = 12

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One model: its transformers config, and how the test serves it."""

    config: Callable[[], Any]
    max_shard_size: str = "5GB"
    max_length: int = LENGTH + GENERATED
    length_dependent: bool = False
    """transformers changes the rope as the sequence grows, so its own cached generation is no oracle."""


def llama(**changes: Any) -> Callable[[], Any]:
    return lambda: transformers.LlamaConfig(**{**SMALL, **changes})


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **parameters}}


def phi3(**changes: Any) -> Callable[[], Any]:
    return lambda: transformers.Phi3Config(**{**SMALL, "num_attention_heads": 6, "num_key_value_heads": 2, **changes})


def gemma3_text(**changes: Any) -> dict[str, Any]:
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    return {
        **SMALL, "num_hidden_layers": 3, "head_dim": 20, "sliding_window": 6, "query_pre_attn_scalar": 30,
        "layer_types": layers, "final_logit_softcapping": 3.0, **changes,
    }  # fmt: skip


SHORT, LONG = [1.0 + 0.1 * i for i in range(8)], [1.5 + 0.3 * i for i in range(8)]

CASES: Mapping[str, Case] = {
    "llama": Case(llama()),
    "llama-tied-sharded": Case(llama(tie_word_embeddings=True, head_dim=24), max_shard_size="20KB"),
    "llama-biases": Case(llama(attention_bias=True, mlp_bias=True)),
    "llama-gelu": Case(llama(hidden_act="gelu")),
    "llama-linear": Case(llama(**rope("linear", factor=4.0))),
    "llama-dynamic": Case(
        llama(max_position_embeddings=16, **rope("dynamic", factor=2.0)), max_length=LENGTH, length_dependent=True
    ),
    "llama-llama3": Case(
        llama(**rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=32))
    ),
    "llama-yarn": Case(llama(**rope("yarn", factor=4.0, original_max_position_embeddings=16))),
    "llama-yarn-mscale": Case(
        llama(
            max_position_embeddings=256,
            **rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=1.3,
                   truncate=False, beta_fast=16.0, beta_slow=2.0),
        )
    ),
    "llama-longrope": Case(
        llama(
            **rope("longrope", factor=4.0, original_max_position_embeddings=16, short_factor=SHORT, long_factor=LONG)
        ),
        length_dependent=True,
    ),
    "mistral": Case(
        lambda: transformers.MistralConfig(
            **{**SMALL, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 7}
        )
    ),
    "qwen2": Case(
        lambda: transformers.Qwen2Config(
            **SMALL | {"num_hidden_layers": 3}, use_sliding_window=True, sliding_window=5, max_window_layers=1
        ),
        max_shard_size="30KB",
    ),
    "qwen2-plain": Case(lambda: transformers.Qwen2Config(**SMALL)),
    "qwen3": Case(lambda: transformers.Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=True)),
    "mixtral": Case(
        lambda: transformers.MixtralConfig(**SMALL, head_dim=16, num_local_experts=5, num_experts_per_tok=2)
    ),
    "qwen3-moe": Case(
        lambda: transformers.Qwen3MoeConfig(
            **SMALL | {"num_hidden_layers": 3}, head_dim=32, num_experts=6, num_experts_per_tok=3,
            moe_intermediate_size=24, mlp_only_layers=[1], norm_topk_prob=True,
        ),
        max_shard_size="60KB",
    ),
    "qwen3-moe-plain": Case(
        lambda: transformers.Qwen3MoeConfig(
            **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=2,
            tie_word_embeddings=True,
        )
    ),
    "gemma2": Case(
        lambda: transformers.Gemma2Config(
            **SMALL, head_dim=20, sliding_window=6, query_pre_attn_scalar=30, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    # What llama.cpp takes for granted: every other layer has a window, queries are scaled by the head dim.
    "gemma2-plain": Case(
        lambda: transformers.Gemma2Config(
            **SMALL, head_dim=20, sliding_window=6, query_pre_attn_scalar=20, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "gemma3-plain": Case(
        lambda: transformers.Gemma3TextConfig(
            **gemma3_text(num_hidden_layers=7, layer_types=None, query_pre_attn_scalar=20)
        )
    ),
    "gemma3": Case(lambda: transformers.Gemma3TextConfig(**gemma3_text())),
    "gemma3-scaled": Case(
        lambda: transformers.Gemma3TextConfig(
            **gemma3_text(),
            rope_parameters={
                "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        )
    ),
    "phi3": Case(phi3(sliding_window=9)),
    "phi3-longrope-short": Case(
        phi3(
            original_max_position_embeddings=48, max_position_embeddings=192,
            num_attention_heads=3, num_key_value_heads=3,
            **rope("longrope", short_factor=SHORT[:4], long_factor=LONG[:4], partial_rotary_factor=0.5),
        )
    ),
    "phi3-longrope-long": Case(
        phi3(
            original_max_position_embeddings=16, num_attention_heads=3, num_key_value_heads=3,
            **rope("longrope", short_factor=SHORT[:4], long_factor=LONG[:4], partial_rotary_factor=0.5),
        ),
        length_dependent=True,
    ),
    "gpt2": Case(
        lambda: transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=48, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None
        )
    ),
}  # fmt: skip


def build(config: Any, seed: int = 0) -> Any:
    """The model in float32, with weights that make a mistake visible."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    return randomized(model.eval())


@torch.no_grad()
def randomized(model: Any) -> Any:
    """Norms and biases moved off their defaults; matrices such that activations keep their size."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
        else:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    return model


def sequence(seed: int = 3) -> list[int]:
    """The test's tokens."""
    return torch.randint(VOCABULARY, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def reference_logits(model: Any, tokens: list[int]) -> Tensor:
    """One forward pass of transformers without a cache: [T, V]."""
    logits: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits


@torch.inference_mode()
def reference_greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    """What transformers itself generates."""
    out = model.generate(
        torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long), do_sample=False,
        max_new_tokens=count, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    generated: list[int] = out[0, len(tokens) :].tolist()
    return generated


def save(model: Any, directory: Path, max_shard_size: str = "5GB") -> Path:
    """As safetensors."""
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return directory
