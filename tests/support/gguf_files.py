"""Writes a transformers model as a `.gguf` file, by llama.cpp's conventions.

The names are spelled out here, and not taken from the table that the reader uses, so that the two check each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from mainspring.core.gguf_layouts import packing_of
from mainspring.core.ops import gguf_blocks

NAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.embed_tokens\.", "token_embd."),
    (r"^model\.norm\.", "output_norm."),
    (r"^lm_head\.", "output."),
    (r"^model\.layers\.(\d+)\.", r"blk.\1."),
    (r"self_attn\.q_norm", "attn_q_norm"),
    (r"self_attn\.k_norm", "attn_k_norm"),
    (r"self_attn\.o_proj", "attn_output"),
    (r"self_attn\.([a-z]+)_proj", r"attn_\1"),
    (r"mlp\.gate_up_proj", "ffn_up"),
    (r"mlp\.(gate|up|down)_proj", r"ffn_\1"),
    (r"input_layernorm", "attn_norm"),
    (r"pre_feedforward_layernorm", "ffn_norm"),
    (r"post_feedforward_layernorm", "post_ffw_norm"),
    (r"^transformer\.wte\.", "token_embd."),
    (r"^transformer\.wpe\.", "position_embd."),
    (r"^transformer\.ln_f\.", "output_norm."),
    (r"^transformer\.h\.(\d+)\.", r"blk.\1."),
    (r"ln_1\.", "attn_norm."),
    (r"ln_2\.", "ffn_norm."),
    (r"attn\.c_attn", "attn_qkv"),
    (r"attn\.c_proj", "attn_output"),
    (r"mlp\.c_fc", "ffn_up"),
    (r"mlp\.c_proj", "ffn_down"),
)


def gguf_name(name: str, architecture: str) -> str:
    """llama.cpp's name of a transformers tensor."""
    post_attention = "post_attention_norm" if architecture.startswith("gemma") else "ffn_norm"
    for pattern, replacement in (*NAMES, (r"post_attention_layernorm", post_attention)):
        name = re.sub(pattern, replacement, name)
    return name


def gguf_value(name: str, tensor: Tensor, architecture: str, config: Any) -> np.ndarray[Any, Any]:
    """A tensor's values as llama.cpp's converter writes them."""
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        tensor = tensor + 1
    if architecture == "gpt2" and re.search(r"c_(attn|proj|fc)\.weight$", name):
        tensor = tensor.t()
    if architecture == "llama" and (match := re.search(r"\.([qk])_proj\.", name)):
        heads = config.num_attention_heads if match[1] == "q" else config.num_key_value_heads
        tensor = tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
    return np.ascontiguousarray(tensor.float().numpy())


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    *,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, list[float]] | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """The model's weights, the metadata that every architecture has, and what the caller adds of both.

    Matrices whose rows divide into blocks of `kind` are stored as that, or as the first of `kinds` whose pattern their
    name in the file has. K-quants, which the `gguf` package does not write, hold other weights than the model's.
    """
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_eos_token_id(5)
    writer.add_eot_token_id(6)
    writer.add_token_list(["a", "b", "ß"])
    writer.add_token_scores([0.5, 1.5, 2.5])
    for key, value in metadata.items():
        _add(writer, f"{architecture}.{key}", value)
    tied = "lm_head.weight" if config.tie_word_embeddings else ""
    for name, tensor in model.state_dict().items():
        if name != tied:
            stored = gguf_name(name, architecture)
            found = (other for pattern, other in (kinds or {}).items() if re.search(pattern, stored))
            _tensor(writer, stored, gguf_value(name, tensor, architecture, config), next(found, kind))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    match value:
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)


def _tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> None:
    block = gguf.GGML_QUANT_SIZES[kind][0]
    if values.ndim == 2 and kind.name.endswith("_K"):
        packing = packing_of(kind.name)
        assert packing is not None
        writer.add_tensor(name, gguf_blocks.random_weight(packing, *values.shape).numpy(), raw_dtype=kind)
    elif values.ndim == 2 and values.shape[-1] % block == 0:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)
