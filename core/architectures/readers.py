"""What each architecture's config keys mean: one reader an architecture, all built on `decoder`.

Keys that an old or a terse `config.json` leaves out take the defaults that the architecture's authors gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec

from mainspring.core.architectures.fields import Fields
from mainspring.core.architectures.rope import read_rope, rope_parameters, served_positions
from mainspring.core.config import Dtype, ExpertsConfig, ModelConfig
from mainspring.core.errors import ModelError, unknown

Activation = Literal["silu", "gelu", "gelu_tanh"]

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
})  # fmt: skip

DTYPES: Mapping[str, Dtype] = MappingProxyType({"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"})


def decoder(fields: Fields, *, activation: str = "hidden_act", rope_theta: float = 10000.0) -> ModelConfig:
    """What decoder-only models with rope and RMSNorm have in common; `activation` names the key of the activation."""
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.unusable("num_key_value_heads", f"it must divide num_attention_heads, which is {num_heads}")
    head_dim = _head_dim(fields, hidden_size, num_heads)
    rope = read_rope(fields, head_dim, theta=rope_theta)
    return ModelConfig(
        architecture="",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        max_position=served_positions(rope, fields.integer("max_position_embeddings")),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        activation=_activation(fields, activation),
        rope=rope,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=_dtype(fields),
    )


def read_llama(fields: Fields) -> ModelConfig:
    """Llama 1 to 3, and whatever else kept its keys."""
    attention_bias = fields.flag("attention_bias", False)
    return msgspec.structs.replace(
        decoder(fields),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
    )


def read_mistral(fields: Fields) -> ModelConfig:
    """Llama, each layer with a window where `sliding_window` names one."""
    config = decoder(fields)
    return _with_windows(config, [_window(fields)] * config.num_layers)


def read_qwen2(fields: Fields) -> ModelConfig:
    """Llama with biases on q, k and v; windows from layer `max_window_layers` on, when they are switched on."""
    config = decoder(fields)
    return _with_windows(msgspec.structs.replace(config, qkv_bias=True), _qwen_windows(fields, config.num_layers))


def read_qwen3(fields: Fields) -> ModelConfig:
    """Norms on q and k in place of biases; heads of 128 unless said otherwise."""
    return _qwen3(fields.over(Fields({"head_dim": 128}, fields.source)))


def _qwen3(fields: Fields) -> ModelConfig:
    config = decoder(fields)
    bias = fields.flag("attention_bias", False)
    config = msgspec.structs.replace(config, qkv_bias=bias, output_bias=bias)
    return _with_windows(config, _qwen_windows(fields, config.num_layers))


def read_mixtral(fields: Fields) -> ModelConfig:
    """Mistral with experts, whose weights add up to one."""
    given = fields.over(Fields({"num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5}, fields.source))
    config = read_mistral(given)
    return _with_experts(config, given, "num_local_experts", size=config.intermediate_size, normalized=True)


def read_qwen3_moe(fields: Fields) -> ModelConfig:
    """Qwen3 with experts in all layers but some; heads share the hidden size out unless said otherwise."""
    given = fields.over(Fields({"num_experts_per_tok": 8, "moe_intermediate_size": 768}, fields.source))
    # Hugging Face's own name of the number of experts, and that of its later versions.
    key = "num_experts" if given.has("num_experts") else "num_local_experts"
    config, every = _qwen3(given), given.integer("decoder_sparse_step", 1)
    named = {int(layer) for layer in given.numbers("mlp_only_layers")} if given.has("mlp_only_layers") else set()
    dense = tuple(layer for layer in range(config.num_layers) if layer in named or (layer + 1) % every)
    return _with_experts(
        config, given, key, size=given.integer("moe_intermediate_size"),
        normalized=given.flag("norm_topk_prob", False), dense_layers=dense,
    )  # fmt: skip


def _with_experts(
    config: ModelConfig, fields: Fields, key: str, *, size: int, normalized: bool, dense_layers: tuple[int, ...] = ()
) -> ModelConfig:
    count, chosen = fields.integer(key), fields.integer("num_experts_per_tok")
    if chosen > count:
        raise fields.unusable("num_experts_per_tok", f"there are {count} experts")
    experts = ExpertsConfig(count=count, chosen=chosen, size=size, normalized=normalized, dense_layers=dense_layers)
    return msgspec.structs.replace(config, experts=experts)


GEMMA_DEFAULTS: Mapping[str, object] = MappingProxyType({
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
})  # fmt: skip


def read_gemma2(fields: Fields) -> ModelConfig:
    """Every other layer has a window, the first one included; scores and logits are capped."""
    defaults = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    # A cap that is null is off; one that is absent has the architecture's default.
    defaults = {key: value for key, value in defaults.items() if key not in fields.values}
    fields = fields.over(Fields({**GEMMA_DEFAULTS, **defaults}, fields.source))
    config = _gemma(fields)
    return _with_windows(config, _typed_windows(fields, config.num_layers, pattern=2))


def read_gemma3(fields: Fields) -> ModelConfig:
    """Five layers with a window and a rope of their own to one without; `text_config` of the multimodal one."""
    if fields.has("text_config"):
        fields = fields.table("text_config").over(fields)
    defaults = {"vocab_size": 262_208, "max_position_embeddings": 131_072, "num_hidden_layers": 26}
    fields = fields.over(Fields({**GEMMA_DEFAULTS, **defaults}, fields.source))
    head_dim = fields.integer("head_dim")
    given = rope_parameters(fields)
    if given.has("full_attention"):
        everywhere, local = given.table("full_attention"), given.table("sliding_attention")
    else:
        everywhere = given
        local = Fields({"rope_theta": fields.number("rope_local_base_freq", 10000.0)}, fields.source)
    config = msgspec.structs.replace(
        _gemma(Fields({**fields.values, "rope_parameters": everywhere.values}, fields.source), rope_theta=1e6),
        local_rope=read_rope(fields, head_dim, local),
        # Gemma 3 writes the scaled context into its config, whatever its rope scaling is.
        max_position=fields.integer("max_position_embeddings"),
    )
    pattern = fields.integer("sliding_window_pattern", 6)
    return _with_windows(config, _typed_windows(fields, config.num_layers, pattern))


def read_phi3(fields: Fields) -> ModelConfig:
    """Llama with a part of each head rotating, and longrope under older names."""
    given = rope_parameters(fields)
    if given.text("rope_type", given.text("type", "default")) == "yarn":
        # Phi-3's first configs said "yarn" and meant what is called longrope since.
        fields = Fields({**fields.values, "rope_parameters": {**given.values, "rope_type": "longrope"}}, fields.source)
    config = decoder(fields)
    return _with_windows(config, [_window(fields)] * config.num_layers)


GPT2_NAMES: Mapping[str, str] = MappingProxyType({
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings", "n_inner": "intermediate_size", "layer_norm_epsilon": "rms_norm_eps",
})  # fmt: skip


def read_gpt2(fields: Fields) -> ModelConfig:
    """LayerNorm, learned positions, a plain MLP, biases everywhere."""
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if fields.flag(name, False):
            raise fields.unusable(name, "this variant of GPT-2 is not supported")
    fields = fields.renamed(GPT2_NAMES)
    defaults = {
        "intermediate_size": 4 * fields.integer("hidden_size"), "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "activation_function": "gelu_new",
    }  # fmt: skip
    config = decoder(fields.over(Fields(defaults, fields.source)), activation="activation_function")
    return msgspec.structs.replace(
        config,
        rope=None,
        attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def _gemma(fields: Fields, rope_theta: float = 10000.0) -> ModelConfig:
    if fields.flag("use_bidirectional_attention", False):
        raise fields.unusable("use_bidirectional_attention", "an embedding model cannot generate text")
    config = decoder(fields, activation="hidden_activation", rope_theta=rope_theta)
    bias = fields.flag("attention_bias", False)
    return msgspec.structs.replace(
        config,
        attention_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping"),
        logits_softcap=fields.optional_number("final_logit_softcapping"),
        embedding_scale=config.hidden_size**0.5,
        qkv_bias=bias,
        output_bias=bias,
    )


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if fields.has("head_dim"):
        return fields.integer("head_dim")
    if hidden_size % num_heads:
        raise fields.unusable("num_attention_heads", f"without head_dim it must divide hidden_size {hidden_size}")
    return hidden_size // num_heads


def _activation(fields: Fields, name: str) -> Activation:
    activation = fields.text(name, "silu")
    if activation not in ACTIVATIONS:
        raise ModelError(f"{fields.source}: {unknown('activation', activation, ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def _dtype(fields: Fields) -> Dtype:
    """`dtype`, which older configs call `torch_dtype`; float32 is what both mean when neither is there."""
    name = fields.text("dtype", fields.text("torch_dtype", "float32")).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(f"{fields.source}: {unknown('dtype', name, DTYPES)}")
    return DTYPES[name]


def _window(fields: Fields) -> int | None:
    return fields.integer("sliding_window") if fields.has("sliding_window") else None


def _qwen_windows(fields: Fields, num_layers: int) -> list[int | None]:
    if not fields.flag("use_sliding_window", False):
        return [None] * num_layers
    fields = fields.over(Fields({"sliding_window": 4096, "max_window_layers": 28}, fields.source))
    if fields.has("layer_types"):
        return _typed_windows(fields, num_layers, pattern=1)
    # Zero is a sound value here (a window everywhere), so `integer` would be wrong.
    first = fields.values["max_window_layers"]
    return [_window(fields) if layer >= first else None for layer in range(num_layers)]


def _typed_windows(fields: Fields, num_layers: int, pattern: int) -> list[int | None]:
    """From `layer_types`; without it, every `pattern`-th layer attends to everything and the others have the window."""
    if not fields.has("layer_types"):
        return [None if (layer + 1) % pattern == 0 else _window(fields) for layer in range(num_layers)]
    types = fields.texts("layer_types")
    if len(types) != num_layers or not set(types) <= {"sliding_attention", "full_attention"}:
        raise fields.unusable("layer_types", f"{num_layers} of sliding_attention or full_attention are needed")
    return [_window(fields) if kind == "sliding_attention" else None for kind in types]


def _with_windows(config: ModelConfig, windows: list[int | None]) -> ModelConfig:
    return msgspec.structs.replace(config, windows=tuple(windows) if any(windows) else ())
