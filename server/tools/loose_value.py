"""Values as models write them that are no JSON: Python's literals, and Gemma's with quotes of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.parser import ToolParser

Quotes = Mapping[str, str]
"""How strings begin, and how each of them ends."""

PYTHON_QUOTES = {'"': '"', "'": "'", '"""': '"""', "'''": "'''"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_NAMED = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ENDS = frozenset(",)]}:=")
_MAX_DEPTH = 32


class Malformed(Exception):
    """The text is no value."""


def take_value(machine: ToolParser, quotes: Quotes, depth: int = 0) -> Steps[str]:
    """The next value as JSON text. Raises Malformed."""
    if depth > _MAX_DEPTH:
        raise Malformed
    lead = yield from machine.take_lead((*quotes, "[", "(", "{"))
    if lead in quotes:
        text = yield from _take_string(machine, quotes[lead], escapes=lead in PYTHON_QUOTES)
        return json.dumps(text, ensure_ascii=False)
    if lead in ("[", "("):
        return (yield from _take_list(machine, "]" if lead == "[" else ")", quotes, depth))
    if lead == "{":
        return (yield from take_members(machine, "}", quotes, depth))
    return _bare((yield from take_bare(machine)))


def take_members(machine: ToolParser, close: str, quotes: Quotes, depth: int = 0) -> Steps[str]:
    """Keys and values up to `close`, as a JSON object. Raises Malformed."""
    members: list[str] = []
    while (yield from machine.take_lead((close,))) == END:
        lead = yield from machine.take_lead(tuple(quotes))
        if lead:
            key = yield from _take_string(machine, quotes[lead], escapes=lead in PYTHON_QUOTES)
        else:
            key = yield from take_bare(machine)
        if not key or (yield from machine.take_word()) not in (":", "="):
            raise Malformed
        value = yield from take_value(machine, quotes, depth + 1)
        members.append(f"{json.dumps(key, ensure_ascii=False)}: {value}")
        yield from _take_comma(machine, close)
    return "{" + ", ".join(members) + "}"


def take_bare(machine: ToolParser) -> Steps[str]:
    """A name or a number: up to a comma, a colon, an equals sign or the end of a bracket."""
    taken: list[str] = []
    while (character := (yield from machine.take())) != END and character not in _ENDS:
        taken.append(character)
    machine.put_back(character)
    return "".join(taken).strip()


def _take_list(machine: ToolParser, close: str, quotes: Quotes, depth: int) -> Steps[str]:
    values: list[str] = []
    while (yield from machine.take_lead((close,))) == END:
        values.append((yield from take_value(machine, quotes, depth + 1)))
        yield from _take_comma(machine, close)
    return "[" + ", ".join(values) + "]"


def _take_comma(machine: ToolParser, close: str) -> Steps[None]:
    """A comma, or the end, which stays."""
    character = yield from machine.take_word()
    if character == close:
        machine.put_back(character)
    elif character != ",":
        raise Malformed


def _take_string(machine: ToolParser, close: str, *, escapes: bool) -> Steps[str]:
    taken: list[str] = []
    while True:
        text, marker = yield from machine.take_until((close, "\\") if escapes else (close,))
        taken.append(text)
        if marker == END:
            raise Malformed
        if marker == close:
            return "".join(taken)
        taken.append((yield from _take_escape(machine)))


def _take_escape(machine: ToolParser) -> Steps[str]:
    character = yield from machine.take()
    width = {"x": 2, "u": 4, "U": 8}.get(character)
    if width is None:
        return _ESCAPES.get(character, character if character in "\\'\"/" else "\\" + character)
    digits = ""
    for _ in range(width):
        digits += yield from machine.take()
    try:
        return chr(int(digits, 16))
    except (ValueError, OverflowError):
        raise Malformed from None


def _bare(text: str) -> str:
    if text in _NAMED:
        return _NAMED[text]
    try:
        number = json.loads(text)
    except (ValueError, RecursionError):
        number = None
    if isinstance(number, (int, float)) and number == number and abs(number) != float("inf"):
        return text
    raise Malformed
