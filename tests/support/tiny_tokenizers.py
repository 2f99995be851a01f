"""One small tokenizer of each family whose bytes are told apart in another way, built in memory."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece

from mainspring.server.text.tokenizer import byte_level_alphabet

SPECIAL = ["<unk>", "<s>", "</s>"]
TINY_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A chat in brackets; a last message stays open, so that it can be continued."""


def byte_level() -> Tokenizer:
    """GPT-2's family: every byte is a token; the rest are words and cut-up characters."""
    letters = {byte: character for character, byte in byte_level_alphabet().items()}
    tokens = [*SPECIAL, *(letters[byte] for byte in range(256))]
    words = ["the", " the", " stop", "日本", "é", " \n", "😀😀"]
    tokens += ["".join(letters[byte] for byte in word.encode()) for word in words]
    tokens.append("".join(letters[byte] for byte in "日".encode()[:2]))
    tokens.append("".join(letters[byte] for byte in "日".encode()[2:] + b"x"))
    encoder = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, []))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return encoder


def byte_fallback() -> Tokenizer:
    """Llama's family: SentencePiece with spaces as ▁ and unknown characters as byte tokens."""
    words = ["▁", "▁the", "the", "▁stop", "é", "日本", "a", "b", "▁a", "\n", "st", "op"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    encoder = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True))
    encoder.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1)
    encoder.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return encoder


def metaspace() -> Tokenizer:
    """T5's family: a unigram model over ▁-words."""
    words = ["▁", "▁the", "the", "▁stop", "é", "日本", "a", "b", "▁a", "s", "t", "o", "p", "😀"]
    encoder = Tokenizer(Unigram([(token, -1.0 * i) for i, token in enumerate([*SPECIAL, *words])], unk_id=0))
    encoder.pre_tokenizer = pre_tokenizers.Metaspace()
    encoder.decoder = decoders.Metaspace()
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return encoder


def word_piece() -> Tokenizer:
    """BERT's family: pieces of a word begin with ##, words are joined by spaces."""
    words = ["the", "##re", "stop", "##ped", "é", "日", "##本", "a", "##b", ".", "!", "'", "s"]
    tokens = [*SPECIAL, *words]
    encoder = Tokenizer(WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    encoder.decoder = decoders.WordPiece()
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return encoder


def write_word_tokenizer(directory: Path, vocab_size: int) -> None:
    """`tokenizer.json` and its config: bytes, then words like ` w300`, one token each; ids as in `byte_level`."""
    letters = {byte: character for character, byte in byte_level_alphabet().items()}
    tokens = [*SPECIAL, *(letters[byte] for byte in range(256))]
    tokens += [f"Ġw{number}" for number in range(len(tokens), vocab_size)]
    encoder = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [], ignore_merges=True))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    encoder.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TINY_CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
