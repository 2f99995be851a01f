"""How many parameters a model has, by arithmetic: the start-up plan needs it before anything is built."""

from __future__ import annotations

from mainspring.core.architectures.table import ARCHITECTURES, Architecture
from mainspring.core.config import ModelConfig


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) features of each layer's linear layers, by what they do; embeddings and the head are not among them."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    gates = 2 if _architecture(config).gated else 1
    return {
        "query, key and value projection": (config.hidden_size, queries + 2 * keys),
        "attention output projection": (queries, config.hidden_size),
        "MLP input projection": (config.hidden_size, gates * config.intermediate_size),
        "MLP output projection": (config.intermediate_size, config.hidden_size),
    }


def parameter_count(config: ModelConfig) -> int:
    """Weights of the model, tied embeddings counted once. Exact for the architectures in the table.

    A plugin's architecture is counted as if it were laid out like Llama: an estimate.
    """
    architecture = _architecture(config)
    norm = config.hidden_size * (2 if architecture.biased_norms_and_positions else 1)
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
    positions = config.max_position * config.hidden_size if architecture.biased_norms_and_positions else 0
    linear = sum(in_features * out_features for in_features, out_features in linear_shapes(config).values())
    sparse = _experts_instead(config)
    head_norms = 2 * config.head_dim if architecture.qk_norms else 0
    layer = linear + _biases(config) + head_norms + architecture.norms * norm
    return embeddings + positions + config.num_layers * layer + norm + sparse


def _experts_instead(config: ModelConfig) -> int:
    """What experts and routers have more than the MLPs in whose place they are."""
    experts = config.experts
    if experts is None:
        return 0
    of_mlp = 3 * config.hidden_size * config.intermediate_size
    of_experts = experts.count * config.hidden_size * (3 * experts.size + 1)
    return (config.num_layers - len(experts.dense_layers)) * (of_experts - of_mlp)


def _biases(config: ModelConfig) -> int:
    """Of one layer's linear layers."""
    has_bias = (config.qkv_bias, config.output_bias, config.mlp_bias, config.mlp_bias)
    outputs = (out_features for _, out_features in linear_shapes(config).values())
    return sum(out_features for out_features, biased in zip(outputs, has_bias, strict=True) if biased)


def _architecture(config: ModelConfig) -> Architecture:
    return ARCHITECTURES.get(config.architecture, ARCHITECTURES["LlamaForCausalLM"])
