"""GGUF headers and the tokenizers built from them, on files written here."""

from __future__ import annotations

import itertools
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.core.errors import ModelError
from mainspring.core.gguf_header import read_header
from mainspring.server.text.gguf_tokenizer import GGUFVocabulary, build_encoder
from mainspring.server.text.tokenizer import load_tokenizer

PIECES = ["▁", "a", "b", "c", "▁a", "ab", "bc", "▁ab", "abc", "cab"]
SCORES = [-20.0, -21.0, -22.0, -23.0, -1.0, -3.0, -2.0, -4.0, -5.0, -6.0]


def vocabulary(family: str, rule: str = "default", **changes: object) -> GGUFVocabulary:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    metadata = {
        "tokenizer.ggml.model": family,
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
        "tokenizer.ggml.scores": [0.0] * 259 + SCORES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return GGUFVocabulary.of(metadata)


SENTENCEPIECE = build_encoder(vocabulary("llama"))


def by_definition(text: str) -> list[str]:
    """SentencePiece's BPE as it is defined: of all neighbours that make a piece, join the best-scored, leftmost."""
    parts = list("▁" + text.replace(" ", "▁"))
    scores = dict(zip(PIECES, SCORES, strict=True))
    while True:
        joins = [(-scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not joins:
            return parts
        _, place = min(joins)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@given(text=st.text(alphabet="abc ", min_size=1, max_size=30))
def test_sentencepiece_merges_follow_from_scores(text: str) -> None:
    assert SENTENCEPIECE.encode(text, add_special_tokens=False).tokens == by_definition(text)


def test_sentencepiece_falls_back_to_bytes() -> None:
    assert SENTENCEPIECE.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]


def test_special_tokens_in_text_are_one_token() -> None:
    assert SENTENCEPIECE.encode("</s>", add_special_tokens=False).ids == [2]


@pytest.mark.parametrize(("add_bos", "expected"), [(None, True), (True, True), (False, False)])
def test_bos_follows_the_file(add_bos: bool | None, expected: bool) -> None:
    changes = {} if add_bos is None else {"add_bos_token": add_bos}
    ids = build_encoder(vocabulary("llama", **changes)).encode("a").ids
    assert (ids[0] == 1) is expected


def test_unknown_family_and_word_rule_offer_the_known() -> None:
    with pytest.raises(ModelError, match=r"unknown tokenizer\.ggml\.model 'rwkv'"):
        build_encoder(vocabulary("rwkv"))
    with pytest.raises(ModelError, match="did you mean 'llama-bpe'"):
        build_encoder(vocabulary("gpt2", rule="llama-bp"))


def write_gguf(file: Path) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_uint32("answer", 42)
    writer.add_bool("yes", True)
    writer.add_float32("half", 0.5)
    writer.add_array("floats", [0.5, 1.5])
    writer.add_array("words", ["é", "", "x"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *PIECES])
    writer.add_token_scores([0.0, 0.0, 0.0, *SCORES])
    writer.add_token_types([2, 3, 3, *[1] * len(PIECES)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def test_metadata_of_every_kind(tmp_path: Path) -> None:
    metadata = read_header(write_gguf(tmp_path / "m.gguf")).metadata
    assert {key: metadata[key] for key in ("answer", "yes", "half", "floats", "words")} == {
        "answer": 42,
        "yes": True,
        "half": 0.5,
        "floats": [0.5, 1.5],
        "words": ["é", "", "x"],
    }


def test_tokenizer_of_a_file(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_gguf(tmp_path / "m.gguf"))
    assert tokenizer.special.bos == "<s>"
    assert tokenizer.special.eos == "</s>"
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert tokenizer.encode("abc")[0] == 1
    assert tokenizer.encode("<s>abc")[:2] != [1, 1]
    assert tokenizer.decode(tokenizer.encode("abc")) == " abc"
