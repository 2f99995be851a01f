"""A model small enough for many requests in a second that can say anything: its tokens are bytes and some words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from tests.support import tiny_models
from tests.support.tiny_tokenizers import TINY_CHAT_TEMPLATE, byte_level

MAX_LENGTH = 512


def write_byte_model(directory: Path, seed: int = 0, ends: tuple[int, ...] = (2,)) -> Any:
    """Writes a seeded llama of two layers in float32 with its tokenizer; returns transformers' model of it."""
    tokenizer = byte_level()
    config = transformers.LlamaConfig(
        **tiny_models.SMALL
        | {
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": MAX_LENGTH,
            "bos_token_id": 1,
            "eos_token_id": list(ends),
        }
    )
    model = tiny_models.build(config, seed)
    tiny_models.save(model, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TINY_CHAT_TEMPLATE, "eos_token": "</s>", "bos_token": "<s>"})
    )
    return model
