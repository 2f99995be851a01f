"""GGUF files with K-quants, which only llama.cpp writes. In this order, each in an environment that has what it needs:

    python -m tests.quantized.gguf_model source tiny.gguf
    python -m tests.quantized.llamacpp tiny.gguf tests/models/data/gguf q4_k_m q5_k_m
    python -m tests.quantized.gguf_model reference tests/models/data/gguf

The reference is transformers' logits in float32 with the weights as the `gguf` package de-quantises them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.quantized.compare import TOKENS
from tests.support.gguf_files import gguf_name, write_gguf

HIDDEN = 256
"""The fewest inputs of a K-quant's block. Queries have fewer outputs, so the layer behind them falls back to others."""


def build() -> Any:
    """One layer, seeded."""
    torch.manual_seed(9)
    config = LlamaConfig(
        vocab_size=64, hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.06 if "proj" in name else 0.5)
            parameter.data *= torch.linspace(0.3, 2, parameter.shape[1])[torch.randperm(parameter.shape[1])]
    return model


def source(file: Path) -> None:
    """The model in float32."""
    write_gguf(
        file, build(), "llama",
        metadata={
            "feed_forward_length": HIDDEN, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16,
            "rope.freq_base": 10000.0, "vocab_size": 64,
        },
    )  # fmt: skip


def reference(file: Path) -> None:
    """The logits, beside the file."""
    model = build()
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    state = {}
    for name, parameter in model.state_dict().items():
        stored = tensors[gguf_name(name, "llama")]
        values = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy()).reshape(parameter.shape)
        if ".q_proj." in name or ".k_proj." in name:
            # llama.cpp has neighbours rotate with each other, transformers halves.
            values = values.reshape(-1, 8, 2, HIDDEN).transpose(1, 2).reshape(parameter.shape)
        state[name] = values
    model.load_state_dict(state)
    with torch.inference_mode():
        logits = model(torch.tensor([TOKENS]), use_cache=False).logits[0]
    save_file({"logits": logits}, file.with_suffix(".safetensors"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["source", path]:
            source(Path(path))
        case ["reference", path]:
            for found in sorted(Path(path).glob("*.gguf")):
                reference(found)
        case _:
            sys.exit(__doc__)
