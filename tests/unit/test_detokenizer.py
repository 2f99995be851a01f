"""The text of a sequence is the same however its tokens arrive, and never shows half a character."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from mainspring.server.text.detokenizer import Detokenizer
from mainspring.server.text.tokenizer import SpecialTokens, Tokenizer
from tests.support.tiny_tokenizers import byte_fallback, byte_level, metaspace, word_piece

FAMILIES = [byte_level, byte_fallback, metaspace, word_piece]
ENCODERS = {build: build() for build in FAMILIES}
TOKENIZERS = {build: Tokenizer(encoder, SpecialTokens()) for build, encoder in ENCODERS.items()}

families = pytest.mark.parametrize("build", FAMILIES)
token_lists = st.lists(st.integers(0, 400), max_size=60)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.push(token_id) for token_id in ids]


@pytest.mark.promise("F14")
@families
@given(ids=token_lists)
def test_deltas_join_to_the_library_decode_after_an_anchor(build: Callable[[], Encoder], ids: list[int]) -> None:
    encoder, tokenizer = ENCODERS[build], TOKENIZERS[build]
    ids = [token_id for token_id in ids if token_id < encoder.get_vocab_size()]
    anchor = encoder.token_to_id("a")
    whole = encoder.decode([anchor, *ids], skip_special_tokens=True)
    if "�" not in whole:
        assert encoder.decode([anchor]) + "".join(stream(tokenizer, ids)) == whole


@pytest.mark.promise("F14")
@families
@given(ids=token_lists)
def test_deltas_join_to_the_bytes_of_the_tokens(build: Callable[[], Encoder], ids: list[int]) -> None:
    tokenizer = TOKENIZERS[build]
    data = b"".join(tokenizer.token_bytes(i) for i in ids if not tokenizer.is_special(i))
    text = "".join(stream(tokenizer, ids))
    whole = data.decode("utf-8", "replace")
    # All but a character that never became whole, which a decoder of the whole shows as a mark at the end; or as two,
    # where it began like a surrogate (ED A0).
    assert whole.startswith(text)
    assert whole[len(text) :] in ("", "�", "��")


@pytest.mark.promise("F14")
@given(text=st.text(max_size=50))
def test_no_replacement_mark_while_a_character_is_unfinished(text: str) -> None:
    tokenizer = TOKENIZERS[byte_level]
    ids_of = {tokenizer.token_bytes(i): i for i in range(3, 259)}
    deltas = stream(tokenizer, [ids_of[bytes([byte])] for byte in text.encode()])
    assert "".join(deltas) == text
    assert [delta for delta in deltas if delta] == list(text)


def test_a_special_token_has_no_text_and_ends_no_character() -> None:
    tokenizer = TOKENIZERS[byte_fallback]
    ids = [ENCODERS[byte_fallback].token_to_id(token) for token in ("<0xE6>", "</s>", "<0x97>", "<0xA5>")]
    assert stream(tokenizer, ids) == ["", "", "", "日"]


def test_invalid_bytes_become_one_mark_each_maximal_part() -> None:
    tokenizer = TOKENIZERS[byte_fallback]
    ids = [ENCODERS[byte_fallback].token_to_id(token) for token in ("<0xE6>", "<0x97>", "a", "<0xFF>", "b")]
    assert stream(tokenizer, ids) == ["", "", "�a", "�", "b"]


@pytest.mark.promise("F14")
def test_first_token_keeps_its_space_as_it_continues_a_prompt() -> None:
    for build in (byte_fallback, metaspace):
        assert stream(TOKENIZERS[build], [ENCODERS[build].token_to_id("▁the")]) == [" the"]


@families
def test_ids_beyond_the_vocabulary_have_no_text(build: Callable[[], Encoder]) -> None:
    assert stream(TOKENIZERS[build], [10**6]) == [""]


@pytest.mark.promise("F14")
def test_time_is_linear() -> None:
    tokenizer = TOKENIZERS[byte_level]
    bad = ENCODERS[byte_level].token_to_id("ÿ")

    def seconds(length: int) -> float:
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            stream(tokenizer, [bad] * length)
            runs.append(time.perf_counter() - start)
        return min(runs)

    seconds(1000)
    assert seconds(40_000) / seconds(10_000) < 8  # quadratic would be 16
