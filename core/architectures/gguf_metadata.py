"""GGUF metadata under the names that `config.json` uses, so that one reader an architecture serves both.

Source of the names: the GGUF specification of ggml, and what llama.cpp's converter writes and its loader assumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any

from mainspring.core.architectures.fields import Fields
from mainspring.core.config import StoredWeights
from mainspring.core.errors import ModelError, unknown
from mainspring.core.gguf_file import GGUFFile
from mainspring.core.gguf_layouts import packing_of

ARCHITECTURE_NAMES: Mapping[str, str] = MappingProxyType({
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM", "phi3": "Phi3ForCausalLM", "gpt2": "GPT2LMHeadModel",
})  # fmt: skip

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "context_length": "max_position_embeddings",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "rope.freq_base": "rope_theta",
        "rope.freq_base_swa": "rope_local_base_freq",
    }
)

ROPE_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "type": "rope_type",
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "attn_factor": "attention_factor",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
)

EOS_NAMES = ("eos_token_id", "eot_token_id", "eom_token_id")

WIDE_QUERIES = frozenset({("gemma2", 46), ("gemma3", 62)})
"""The 27B models, whose queries are scaled by hidden size over heads and not by the head dim. GGUF does not say so;
llama.cpp too knows them by their number of layers."""


def gguf_config(file: GGUFFile) -> dict[str, Any]:
    """The metadata as a `config.json` would have it. Raises `ModelError` for an unknown `general.architecture`."""
    architecture = str(file.metadata.get("general.architecture"))
    if architecture not in ARCHITECTURE_NAMES:
        raise ModelError(f"{file.path}: {unknown('GGUF architecture', architecture, ARCHITECTURE_NAMES)}")
    own = {
        key.removeprefix(architecture + "."): value
        for key, value in file.metadata.items()
        if key.startswith(architecture + ".")
    }
    config: dict[str, Any] = {new: own[old] for old, new in NAMES.items() if old in own}
    if own.get("expert_count"):
        raise ModelError(f"{file.path} is a mixture of {own['expert_count']} experts, which is not supported")
    if not config.get("sliding_window"):
        config.pop("sliding_window", None)
    config |= _tensors_say(file)
    fields = Fields(config, str(file.path))
    head_dim = fields.integer("head_dim", fields.integer("hidden_size") // fields.integer("num_attention_heads"))
    config |= _family(architecture, fields, head_dim)
    if rope := _rope(file, own, fields):
        config["rope_scaling"] = rope
    if "rope.dimension_count" in own:
        config["partial_rotary_factor"] = own["rope.dimension_count"] / head_dim
    eos = [file.metadata.get(f"tokenizer.ggml.{name}") for name in EOS_NAMES]
    config["eos_token_id"] = list(dict.fromkeys(token for token in eos if token is not None))
    return config | {"architectures": [ARCHITECTURE_NAMES[architecture]]}


def stored_weights(file: GGUFFile) -> tuple[StoredWeights, ...]:
    """The file's matrices by the blocks that they are stored in, but for types that are always dequantized."""
    found: dict[str, StoredWeights] = {}
    for tensor in file.tensors.values():
        packing = packing_of(tensor.kind.name)
        if packing is not None and len(tensor.shape) == 2:
            before = found.get(packing, StoredWeights(packing, 0, 0))
            values, size = before.num_values + prod(tensor.shape), before.num_bytes + tensor.num_bytes
            found[packing] = StoredWeights(packing, values, size)
    return tuple(found.values())


def _tensors_say(file: GGUFFile) -> dict[str, Any]:
    """Facts that GGUF keeps only in which tensors there are."""
    if "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} has no tensor token_embd.weight; it is no whole language model")
    return {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }


def _family(architecture: str, fields: Fields, head_dim: int) -> dict[str, Any]:
    """Facts that llama.cpp knows by the architecture's name.

    Weights are dequantized at load: float16 keeps what their float16 scales hold, but Gemma's activations overflow it.
    """
    if not architecture.startswith("gemma"):
        return {"dtype": "float16"}
    if (architecture, fields.integer("num_hidden_layers")) in WIDE_QUERIES:
        head_dim = fields.integer("hidden_size") // fields.integer("num_attention_heads")
    return {"dtype": "bfloat16", "query_pre_attn_scalar": head_dim}


def _rope(file: GGUFFile, own: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Rope scaling, whose per-dimension divisors GGUF stores as tensors.

    `rope_freqs` is Llama 3's scaling worked out by the converter: the same thing as a longrope with one set of factors.
    """
    given = {new: own[f"rope.scaling.{old}"] for old, new in ROPE_NAMES.items() if f"rope.scaling.{old}" in own}
    if "rope_freqs.weight" in file.tensors:
        factors = file.read("rope_freqs.weight").tolist()
        unscaled = {"factor": 1.0, "attention_factor": 1.0}
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors} | unscaled
    if "rope_factors_long.weight" in file.tensors:
        for length in ("short", "long"):
            given[f"{length}_factor"] = file.read(f"rope_factors_{length}.weight").tolist()
        given["rope_type"] = "longrope"
        given.setdefault("original_max_position_embeddings", fields.integer("max_position_embeddings"))
    return given
