"""JSON inside a text that is still being written: single values, and objects that are calls."""

from __future__ import annotations

import json
from collections.abc import Callable

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.parser import ToolParser

_NAME_KEYS = ("name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args")
_OTHER_KEYS = ("type", "id")
_SCALAR_ENDS = frozenset(",]}<;")


def copy_value(machine: ToolParser, first: str, emit: Callable[[str], None]) -> Steps[bool]:
    """Gives the text of one JSON value, whose first character is taken already, to `emit`. False: the text ended in it.

    Brackets and strings are followed, nothing else is checked: what a model writes is the client's to judge.
    """
    if first == '"':
        return (yield from _copy_string(machine, emit))
    if first not in "{[":
        return (yield from _copy_scalar(machine, first, emit))
    emit(first)
    depth = 1
    while depth:
        character = yield from machine.take()
        if character == END:
            return False
        if character == '"':
            if not (yield from _copy_string(machine, emit)):
                return False
            continue
        emit(character)
        depth += (character in "{[") - (character in "}]")
    return True


def copy_arguments(machine: ToolParser, first: str) -> Steps[bool]:
    """The arguments of the call that has begun. Those written as a string of JSON are taken out of it; null is none."""
    if first == "{":
        return (yield from copy_value(machine, first, machine.argue))
    text, whole = yield from _take_value(machine, first)
    machine.argue(_as_arguments(text) if whole else text)
    return whole


def take_call(machine: ToolParser, accepts: Callable[[str], bool], *, inner: bool = False) -> Steps[bool]:
    """A call written as an object with `name` and `arguments` (or `parameters`), whose brace is taken already.

    The recording goes on until it is certain that this is a call. False: it is none, or its name is not accepted, and
    nothing was made of it. `inner`: it is the `function` of an object around it.
    """
    name: str | None = None
    early: str | None = None
    """Arguments that came before the name."""
    begun = False
    while (opening := (yield from _take_key(machine))) is not None:
        key, first = opening
        if key == "function" and first == "{" and name is None and not inner:
            if not (yield from take_call(machine, accepts, inner=True)):
                return False
            yield from _leave_object(machine)
            return True
        if key in _NAME_KEYS and first == '"' and name is None:
            text, whole = yield from _take_value(machine, first)
            name = _decoded_string(text) if whole else None
            if not name or not accepts(name):
                return False
            if early is not None:
                begun = _begin(machine, name, early)
        elif key in _ARGUMENT_KEYS and name is not None and not begun:
            begun = _begin(machine, name, "")
            if not (yield from copy_arguments(machine, first)):
                return True
        elif key in _ARGUMENT_KEYS or key in _OTHER_KEYS or begun:
            text, whole = yield from _take_value(machine, first)
            if not whole:
                return begun
            early = _as_arguments(text) if key in _ARGUMENT_KEYS else early
        else:
            return False
        if not (yield from _next_member(machine)):
            break
    if name is not None and not begun:
        begun = _begin(machine, name, early or "{}")
    return begun


def _begin(machine: ToolParser, name: str, arguments: str) -> bool:
    machine.recorded()
    machine.call(name)
    machine.argue(arguments)
    return True


def _take_key(machine: ToolParser) -> Steps[tuple[str, str] | None]:
    """The next key and the first character of its value; None where no member begins."""
    quote = yield from machine.take_word()
    if quote != '"':
        machine.put_back(quote)
        return None
    text, whole = yield from _take_value(machine, quote)
    if not whole or (yield from machine.take_word()) != ":":
        return None
    return _decoded_string(text) or "", (yield from machine.take_word())


def _next_member(machine: ToolParser) -> Steps[bool]:
    character = yield from machine.take_word()
    if character not in (",", "}"):
        machine.put_back(character)
    return character == ","


def _leave_object(machine: ToolParser) -> Steps[None]:
    """Up to the brace that closes the object around a call."""
    while (yield from _next_member(machine)):
        opening = yield from _take_key(machine)
        if opening is None:
            return
        yield from _take_value(machine, opening[1])


def _take_value(machine: ToolParser, first: str) -> Steps[tuple[str, bool]]:
    taken: list[str] = []
    whole = yield from copy_value(machine, first, taken.append)
    return "".join(taken), whole


def _copy_string(machine: ToolParser, emit: Callable[[str], None]) -> Steps[bool]:
    emit('"')
    while (marker := (yield from machine.copy_until(('"', "\\"), emit))) == "\\":
        emit(marker)
        emit((yield from machine.take()))
    emit(marker)
    return marker != END


def _copy_scalar(machine: ToolParser, first: str, emit: Callable[[str], None]) -> Steps[bool]:
    character = first
    while character != END and not character.isspace() and character not in _SCALAR_ENDS:
        emit(character)
        character = yield from machine.take()
    machine.put_back(character)
    return character != END


def _as_arguments(text: str) -> str:
    if text == "null":
        return "{}"
    return _decoded_string(text) or text if text.startswith('"') else text


def _decoded_string(text: str) -> str | None:
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
