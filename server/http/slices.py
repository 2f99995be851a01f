"""Long lists of numbers in a body, read and checked a slice at a time, so that the event loop goes on meanwhile.

A parser or a validator written in C keeps the interpreter to itself until it is done: of half a million token ids, for
tens of milliseconds, in which no other request gets its next token. Between two slices the interpreter changes hands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from pydantic import ValidationError
from pydantic_core import InitErrorDetails

SLICE_BYTES = 32 << 10
"""JSON that is read at once: a quarter of a millisecond."""
SLICE_NUMBERS = 8192
"""Numbers that are checked at once: half a millisecond."""

MAX_LISTS = 64
"""Lists in a list that are read one by one; a handful has anybody, and thousands are short."""

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])


def decode_json(text: bytes) -> Any:
    """What `msgspec.json.decode` returns and raises."""
    if len(text) <= SLICE_BYTES or not text.lstrip().startswith(b"{"):
        return msgspec.json.decode(text)
    return {name: _decode_field(bytes(raw)) for name, raw in _OBJECT.decode(text).items()}


def keys_of(text: bytes) -> Iterable[str]:
    """The names in an object, and none where it is something else. Raises like `decode_json` for what is no JSON."""
    try:
        return _OBJECT.decode(text).keys()
    except msgspec.ValidationError:
        return ()


def _decode_field(text: bytes) -> Any:
    """One field: numbers in slices, lists of such lists one by one, and everything else at once."""
    if len(text) <= SLICE_BYTES or not text.startswith(b"[") or b'"' in text or b"{" in text:
        return msgspec.json.decode(text)
    num_lists = text.count(b"[")
    if num_lists == 1:
        return _decode_numbers(text)
    if num_lists > MAX_LISTS:
        return msgspec.json.decode(text)
    return [_decode_field(bytes(raw)) for raw in _ARRAY.decode(text)]


def _decode_numbers(text: bytes) -> list[Any]:
    """An array without strings, arrays and objects inside."""
    numbers: list[Any] = []
    start, end = text.index(b"[") + 1, text.rfind(b"]")
    while start < end:
        stop = text.find(b",", start + SLICE_BYTES, end)
        stop = end if stop < 0 else stop
        part = msgspec.json.decode(b"[" + text[start:stop] + b"]")
        if not part:
            break  # nothing between two commas
        numbers += part
        start = stop + 1
    if start != end + 1 or text[end + 1 :].strip():
        msgspec.json.decode(text)  # raises, and says where
    return numbers


def check_slices(numbers: object, check: Callable[[object], Any]) -> Any:
    """A list as `check`, pydantic's validator of such lists, returns it. Raises its errors."""
    if not isinstance(numbers, list) or len(numbers) <= SLICE_NUMBERS:
        return check(numbers)
    checked: list[Any] = []
    for start in range(0, len(numbers), SLICE_NUMBERS):
        try:
            checked += check(numbers[start : start + SLICE_NUMBERS])
        except ValidationError as error:
            raise _moved(error, start) from error
    return checked


def _moved(error: ValidationError, start: int) -> ValidationError:
    """The same mistakes, in a list of which `start` entries went before."""
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(
                type=entry["type"],
                loc=(start + int(entry["loc"][0]), *entry["loc"][1:]),
                input=entry["input"],
                ctx=entry.get("ctx", {}),
            )
            for entry in error.errors(include_url=False)
        ],
    )
