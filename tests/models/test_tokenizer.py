"""The demo model's tokenizer and template against transformers'."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mainspring.server.source import resolve
from mainspring.server.text.template import ChatTemplate
from mainspring.server.text.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "",
    " ",
    "Hello, world!",
    "The quick brown fox can't jump over 13 lazy dogs; it's 7:30.",
    "def f(x: int) -> int:\n    return x ** 2  # comment\n\n\n\tif x:\n\t\tpass\n",
    '<html><body class="a">&nbsp;</body></html>',
    "Ünïcödé, naïve café, Straße, İstanbul, ﬁ",
    "日本語のテキスト。中文文本，한국어 텍스트. العربية עברית हिन्दी ไทย",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 e\u0301 \u200d \ufeff",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|endoftext|><repo_name>x<file_sep><|im_",
    "a\r\nb\rc\x00d\x1b[0m",
    "trailing spaces   \n\n   leading",
    "1 22 333 4444 3.14159 1,000,000 0xFF 1e-5",
    "$\\int_0^\\infty e^{-x^2}dx = \\frac{\\sqrt{\\pi}}{2}$",
    "ALLCAPS camelCase snake_case kebab-case a.b.c http://x.y/z?q=1&r=2#s",
    "x" * 500,
    "'s 't 're 've 'm 'll 'd 'S 'T",
]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return load_tokenizer(resolve("demo").path)


@pytest.fixture(scope="module")
def theirs() -> Iterator[PreTrainedTokenizerFast]:
    path = resolve("demo").path
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("text", CORPUS)
def test_ids_equal(ours: Tokenizer, theirs: PreTrainedTokenizerFast, text: str) -> None:
    assert ours.encode(text) == theirs.encode(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Nd", "Nl", "No"]), max_size=60))
def test_ids_equal_on_any_text_without_digits(ours: Tokenizer, theirs: PreTrainedTokenizerFast, text: str) -> None:
    assert ours.encode(text) == theirs.encode(text)


def test_numerals_stand_alone_as_the_model_was_trained(ours: Tokenizer) -> None:
    """The model's own tokenizer.json splits numerals off before words; transformers' reading of GGUF does not.

    The two differ where several spaces stand before a digit, and for a space before a numeral that is no ASCII digit.
    """
    assert [ours.token_text(i) for i in ours.encode("a   12")] == ["a", "   ", "1", "2"]
    assert [ours.token_bytes(i) for i in ours.encode("a ½")][:2] == [b"a", b" "]


@pytest.mark.parametrize("text", CORPUS)
def test_decoding_gives_the_text_back(ours: Tokenizer, text: str) -> None:
    ids = [token_id for token_id in ours.encode(text) if not ours.is_special(token_id)]
    special = [ours.token_text(i) for i in ours.encode(text) if ours.is_special(i)]
    for token in special:
        text = text.replace(token, "", 1)
    assert ours.decode(ids) == text


def test_template_equals(ours: Tokenizer, theirs: PreTrainedTokenizerFast) -> None:
    assert ours.chat_template is not None
    template = ChatTemplate(ours.chat_template, ours.special)
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <b> é 😀"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    for length in (2, 4):
        expected = theirs.apply_chat_template(chat[:length], tokenize=False, add_generation_prompt=True)
        assert template.render(chat[:length]) == expected
    assert template.render(chat[1:2]).startswith("<|im_start|>system\n")
    continued = theirs.apply_chat_template(chat[:3], tokenize=False, continue_final_message=True)
    assert template.render(chat[:3]) == continued


def test_loading_is_fast() -> None:
    start = time.perf_counter()
    load_tokenizer(resolve("demo").path)
    assert time.perf_counter() - start < 3  # 0.2 s on a quiet core; start-up may spend no more
