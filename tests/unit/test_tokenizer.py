"""Tokenizers from a model directory: special tokens, templates, and what is wrong with broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Encoder
from tokenizers.processors import TemplateProcessing

from mainspring.core.errors import ModelError, RequestError
from mainspring.server.text.tokenizer import load_tokenizer
from tests.support.tiny_tokenizers import byte_level, write_word_tokenizer


def write(directory: Path, config: dict[str, Any] | None = None, encoder: Encoder | None = None) -> Path:
    (encoder or byte_level()).save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_special_tokens_in_both_spellings(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<unk>", "model_max_length": 5}
    special = load_tokenizer(write(tmp_path, config)).special
    assert (special.bos, special.bos_id, special.eos, special.others) == ("<s>", 1, "</s>", {"pad_token": "<unk>"})


def test_no_config_is_no_mistake(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path))
    assert (tokenizer.special.bos, tokenizer.chat_template) == ("", None)
    assert tokenizer.decode(tokenizer.encode("héllo")) == "héllo"


def test_template_files_win_over_the_config(tmp_path: Path) -> None:
    write(tmp_path, {"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})
    assert load_tokenizer(tmp_path).chat_template == "D"
    assert load_tokenizer(tmp_path).tool_template == "T"
    assert load_tokenizer(tmp_path, tmp_path / "tokenizer_config.json").tool_template == "T"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "J"}')
    assert load_tokenizer(tmp_path).chat_template == "J"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert load_tokenizer(tmp_path).chat_template == "F"
    assert load_tokenizer(tmp_path).tool_template is None
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("U")
    assert load_tokenizer(tmp_path).tool_template == "U"


def test_bos_is_not_doubled(tmp_path: Path) -> None:
    encoder = byte_level()
    encoder.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = load_tokenizer(write(tmp_path, {"bos_token": "<s>"}, encoder))
    assert tokenizer.encode("a") == tokenizer.encode("<s>a")
    assert tokenizer.encode("<s>a", add_special_tokens=False) == tokenizer.encode("a")


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    encoder = byte_level()
    encoder.enable_padding(length=10)
    encoder.enable_truncation(3)
    assert len(load_tokenizer(write(tmp_path, None, encoder)).encode("hello")) == 5


def test_lone_surrogates_are_the_requests_mistake(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        load_tokenizer(write(tmp_path)).encode("a\ud800")


def test_broken_directories(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_tokenizer(tmp_path)


def test_words_of_the_test_model_are_one_token_each(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, 400)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 400
    assert tokenizer.token_text(300) == " w300"
