"""The model that every tool quantizes: a Llama of two small layers with seeded weights, and the tokens it is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONFIG: Mapping[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip

TOKENS = tuple((7 * place * place + 3) % 64 for place in range(1, 25))


def write(directory: Path) -> None:
    """The model in float16, which holds what every tool reads."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.08 if "proj" in name else 0.5)
            # Columns of different weight, as real models have them: what groups and act-order are for.
            parameter.data *= torch.linspace(0.3, 2, parameter.shape[1])[torch.randperm(parameter.shape[1])]
    model.half().save_pretrained(directory)
    _tokenizer().save_pretrained(directory)


CALIBRATION = "calibration.json"
"""Beside a model that has a language: token ids of a text in it."""


def calibration(model: Path) -> list[list[int]]:
    """Token ids for the tools that want some: the model's own, or for a model of no language any."""
    if (model / CALIBRATION).exists():
        read: list[list[int]] = json.loads((model / CALIBRATION).read_text())
        return read
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(3, 64, (64,), generator=generator).tolist() for _ in range(16)]


def logits(weights: Mapping[str, Tensor]) -> Tensor:
    """transformers' of `TOKENS`, in float32, with these weights: [T, V]."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    with torch.inference_mode():
        scores: Tensor = model(torch.tensor([TOKENS]), use_cache=False).logits[0]
    return scores


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {f"w{number}": number for number in range(64)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w2",
    )  # fmt: skip
