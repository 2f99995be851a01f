"""How many parameters a model has, by arithmetic: the start-up plan needs it before anything is built."""

from __future__ import annotations

from mainspring.core.architectures.table import ARCHITECTURES, Architecture
from mainspring.core.config import ModelConfig


def parameter_count(config: ModelConfig) -> int:
    """Weights of the model, tied embeddings counted once. Exact for the architectures in the table.

    A plugin's architecture is counted as if it were laid out like Llama: an estimate.
    """
    architecture = ARCHITECTURES.get(config.architecture, ARCHITECTURES["LlamaForCausalLM"])
    norm = config.hidden_size * (2 if architecture.biased_norms_and_positions else 1)
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
    positions = config.max_position * config.hidden_size if architecture.biased_norms_and_positions else 0
    layer = _attention(config, architecture) + _mlp(config, architecture) + architecture.norms * norm
    return embeddings + positions + config.num_layers * layer + norm


def _attention(config: ModelConfig, architecture: Architecture) -> int:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    qkv = _linear(config.hidden_size, queries + 2 * keys, config.qkv_bias)
    norms = 2 * config.head_dim if architecture.qk_norms else 0
    return qkv + norms + _linear(queries, config.hidden_size, config.output_bias)


def _mlp(config: ModelConfig, architecture: Architecture) -> int:
    inner = config.intermediate_size
    up = _linear(config.hidden_size, inner * (2 if architecture.gated else 1), config.mlp_bias)
    return up + _linear(inner, config.hidden_size, config.mlp_bias)


def _linear(in_features: int, out_features: int, bias: bool) -> int:
    return in_features * out_features + (out_features if bias else 0)
