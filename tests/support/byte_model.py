"""A model small enough for many requests in a second that can say anything in ASCII: a token is a character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mainspring.core.request import Vocabulary
from mainspring.server.text.tokenizer import byte_level_alphabet
from tests.support import tiny_models
from tests.support.tiny_tokenizers import TINY_CHAT_TEMPLATE

CHAT_TEMPLATE = "{% if tools %}[tools]{% endif %}" + TINY_CHAT_TEMPLATE
"""Tools are hinted at, so that prompts stay short."""
MAX_LENGTH = 512
END = 0
"""The end of a text; character c is token 1 + ord(c)."""
VOCABULARY = Vocabulary((b"</s>", *(bytes([byte]) for byte in range(128))), (END,), (END,))
LOUDNESS = 0.25
"""Logits are so small that a penalty of 4 outweighs any of them."""


def ids_of(text: str) -> list[int]:
    """The tokens of a text."""
    return [1 + ord(character) for character in text]


def write_byte_model(directory: Path, seed: int = 0, ends: tuple[int, ...] = (END,), loudness: float = 1.0) -> Any:
    """Writes a seeded llama of two layers in float32 with its tokenizer; returns transformers' model of it."""
    tokenizer = _tokenizer()
    config = transformers.LlamaConfig(
        **tiny_models.SMALL
        | {
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": MAX_LENGTH,
            "eos_token_id": list(ends),
        }
    )
    model = tiny_models.build(config, seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(loudness)
    tiny_models.save(model, directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE, "eos_token": "</s>"}))
    return model


def _tokenizer() -> Tokenizer:
    letters = {byte: character for character, byte in byte_level_alphabet().items()}
    tokens = ["</s>", *(letters[byte] for byte in range(128))]
    encoder = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, []))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return encoder
