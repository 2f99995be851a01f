"""Bodies read in slices: the same values and the same mistakes as at once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.server.errors import FieldError
from mainspring.server.http import slices
from mainspring.server.http.body import parse_wire
from mainspring.server.http.slices import decode_json, keys_of
from mainspring.server.openai.types import CompletionRequest

NUMBERS = st.lists(st.integers(-5, 10**6) | st.floats(allow_nan=False, allow_infinity=False) | st.none(), max_size=40)
VALUES = NUMBERS | st.lists(NUMBERS, max_size=6) | st.text(max_size=40) | st.dictionaries(st.text(max_size=3), NUMBERS)


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", 16)
    monkeypatch.setattr(slices, "SLICE_NUMBERS", 4)
    monkeypatch.setattr(slices, "MAX_LISTS", 4)


def outcome(decode: Any, text: bytes) -> Any:
    """The value, or that there is none."""
    try:
        return decode(text)
    except msgspec.DecodeError:
        return msgspec.DecodeError


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.sampled_from([None, 0, 1]))
def test_it_is_the_value_that_it_is_at_once(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent).encode()
    assert decode_json(text) == msgspec.json.decode(text)
    assert list(keys_of(text)) == list(value)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_what_is_no_json_is_none_in_slices_either(data: st.DataObject) -> None:
    text = bytearray(json.dumps({"prompt": list(range(data.draw(st.integers(0, 40)))), "n": 1}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(text) - 1))
        text[position : position + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b",", b"]", b"[", b" ", b"-", b"}", b'"', b"7", b"null"])
        )
    assert outcome(decode_json, bytes(text)) == outcome(msgspec.json.decode, bytes(text))


@pytest.mark.parametrize("wrong", [-1, "x", 1.5, True, None, [1]])
@pytest.mark.parametrize("position", [1, 3, 4, 9])
@pytest.mark.parametrize("nested", [False, True])
def test_a_wrong_number_is_named_by_its_place_in_the_list(wrong: Any, position: int, nested: bool) -> None:
    ids: list[Any] = list(range(10))
    ids[position] = wrong
    body = json.dumps({"prompt": [[5] * 9, ids] if nested else ids}).encode()
    with pytest.raises(FieldError) as refused:
        parse_wire(CompletionRequest, body)
    assert refused.value.field == (f"prompt.1.{position}" if nested else f"prompt.{position}")


def test_long_prompts_are_read_whole() -> None:
    ids = list(range(1000))
    assert parse_wire(CompletionRequest, json.dumps({"prompt": ids}).encode()).prompt == ids
    assert parse_wire(CompletionRequest, json.dumps({"prompt": [ids, ids]}).encode()).prompt == [ids, ids]
    assert parse_wire(CompletionRequest, json.dumps({"prompt": [[1]] * 50}).encode()).prompt == [[1]] * 50


@pytest.mark.parametrize("text", [b"[1, 2, 3, 4, 5, 6, 7, 8, 9]", b'"a string of more than one slice"'])
def test_what_is_no_object_has_no_keys(text: bytes) -> None:
    assert list(keys_of(text)) == []
    assert decode_json(text) == msgspec.json.decode(text)
