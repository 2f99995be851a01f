"""Which keywords of JSON Schema each engine enforces, found by trying.

`python -m tests.guided.keywords > docs/guided-keywords.md` writes the page.

Each keyword has a schema, texts that fit it and texts that do not; a grammar enforces the keyword when it lets all of the
former pass, token by token to the end, and none of the latter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.grammar.protocol import GrammarEngine, GrammarError
from mainspring.core.grammar.store import ENGINES, open_engine
from mainspring.core.request import Vocabulary

BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), (0,), (0,))
"""A token is a byte; token 0 ends."""
A = {"a": {"type": "boolean"}}


@dataclass(frozen=True, slots=True)
class Trial:
    """Texts for and against a keyword."""

    schema: Any
    fits: tuple[str, ...]
    does_not: tuple[str, ...]


def _string(fits: str, does_not: str, **keywords: Any) -> Trial:
    return Trial({"type": "string", **keywords}, (f'"{fits}"',), (f'"{does_not}"',))


def _format(name: str, fits: str, does_not: str) -> tuple[str, Trial]:
    return f"format: {name}", _string(fits, does_not, format=name)


OPEN = {"type": "object", "properties": A}
CLOSED = {**OPEN, "additionalProperties": False}
TRIALS: Mapping[str, Trial] = {
    "type": Trial({"type": "integer"}, ("17", "-3"), ('"a"', "true", "1.5")),
    "type, several": Trial({"type": ["integer", "null"]}, ("1", "null"), ("true",)),
    "enum": Trial({"enum": ["a", 1, None]}, ('"a"', "1", "null"), ('"b"', "2")),
    "const": Trial({"const": {"a": 1}}, ('{"a":1}',), ('{"a":2}', "{}")),
    "minimum": Trial({"type": "integer", "minimum": 5}, ("5", "123"), ("4", "-9")),
    "maximum": Trial({"type": "integer", "maximum": 5}, ("5", "-123"), ("6", "10")),
    "exclusiveMinimum": Trial({"type": "integer", "exclusiveMinimum": 5}, ("6",), ("5",)),
    "exclusiveMaximum": Trial({"type": "integer", "exclusiveMaximum": 5}, ("4",), ("5",)),
    "minimum, maximum of number": Trial({"type": "number", "minimum": 0.5, "maximum": 2}, ("0.5", "1.75"), ("0.4", "2.1")),
    "multipleOf": Trial({"type": "integer", "multipleOf": 5}, ("10", "0"), ("7",)),
    "minLength": _string("abc", "ab", minLength=3),
    "maxLength": _string("abc", "abcd", maxLength=3),
    "pattern": _string("abab", "aba", pattern="^(ab)+$"),
    "pattern, not anchored": _string("xaby", "xy", pattern="ab"),
    "pattern, with quotes": Trial({"type": "string", "pattern": '^"[a-z]{2}"$'}, (r'"\"ab\""',), ('"ab"', '""ab""')),
    "pattern, with backslashes": Trial({"type": "string", "pattern": r"^\\[a-z]$"}, (r'"\\x"',), ('"x"', r'"\x"')),
    "pattern, a class of all but some": Trial({"type": "string", "pattern": "^[^0-9]{3}$"}, ('"abc"', r'"a\"b"'), ('"a1b"', '"a"b"', '"a\\\\"')),
    "pattern, any character": Trial({"type": "string", "pattern": "^.{3}$"}, ('"abc"', r'"a\"b"'), ('"ab"', '"a"b"')),
    r"pattern, \S": Trial({"type": "string", "pattern": r"^\S{3}$"}, ('"abc"',), ('"a b"', '"a"b"')),
    "multipleOf of number": Trial({"type": "number", "multipleOf": 0.5}, ("1.5",), ("0.3",)),
    "items": Trial({"type": "array", "items": {"type": "boolean"}}, ("[]", "[true, false]"), ("[1]",)),
    "prefixItems": Trial(
        {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "minItems": 2}, ("[true, null]",), ("[null, true]",)
    ),
    "minItems": Trial({"type": "array", "items": {"type": "null"}, "minItems": 2}, ("[null, null]",), ("[null]",)),
    "maxItems": Trial({"type": "array", "items": {"type": "null"}, "maxItems": 1}, ("[null]",), ("[null, null]",)),
    "uniqueItems": Trial({"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}, ("[true]",), ("[true, true]",)),
    "contains": Trial({"type": "array", "items": {"type": "boolean"}, "contains": {"const": True}}, ("[true]",), ("[false]",)),
    "minContains": Trial(
        {"type": "array", "items": {"type": "boolean"}, "contains": {"const": True}, "minContains": 2}, ("[true, true]",), ("[true]",)
    ),
    "unevaluatedItems": Trial(
        {"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False}, ("[null]",), ("[null, 1]",)
    ),
    "properties": Trial(CLOSED, ('{"a": true}',), ('{"a": 1}',)),
    "required": Trial({**CLOSED, "required": ["a"]}, ('{"a": true}',), ("{}",)),
    "required, not in properties": Trial({**OPEN, "required": ["b"]}, ('{"a": true, "b": 1}',), ('{"a": true}',)),
    "additionalProperties: false": Trial(CLOSED, ("{}",), ('{"b": 1}',)),
    "additionalProperties: a schema": Trial(
        {"type": "object", "additionalProperties": {"type": "null"}}, ('{"x": null}',), ('{"x": 1}',)
    ),
    "patternProperties": Trial(
        {"type": "object", "patternProperties": {"^x+$": {"type": "null"}}, "additionalProperties": False}, ('{"xx": null}',), ('{"xx": 1}', '{"y": null}')
    ),
    "propertyNames": Trial(
        {"type": "object", "propertyNames": {"pattern": "^x+$"}, "additionalProperties": {"type": "null"}}, ('{"xx": null}',), ('{"y": null}',)
    ),
    "minProperties": Trial({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1}, ('{"x": null}',), ("{}",)),
    "maxProperties": Trial(
        {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 1}, ('{"x": null}',), ('{"x": null, "y": null}',)
    ),
    "dependentRequired": Trial(
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "dependentRequired": {"a": ["b"]}, "additionalProperties": False},
        ('{"a": null, "b": null}', "{}"), ('{"a": null}',),
    ),
    "dependentSchemas": Trial(
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "dependentSchemas": {"a": {"required": ["b"]}}, "additionalProperties": False},
        ('{"a": null, "b": null}', "{}"), ('{"a": null}',),
    ),
    "unevaluatedProperties": Trial({**OPEN, "unevaluatedProperties": False}, ('{"a": true}',), ('{"b": 1}',)),
    "anyOf": Trial({"anyOf": [{"type": "null"}, {"const": 1}]}, ("null", "1"), ("2",)),
    "anyOf beside type": Trial({"type": "string", "anyOf": [{"pattern": "^a+$"}, {"pattern": "^b+$"}]}, ('"a"', '"bb"'), ('"ab"', "1", "{}")),
    "anyOf beside properties": Trial({**CLOSED, "anyOf": [{"required": ["a"]}, {"maxProperties": 0}]}, ('{"a": true}',), ('{"a": 1}', '{"b": 1}', "3")),
    "oneOf, exclusive": Trial({"oneOf": [{"const": "a"}, {"const": "b"}]}, ('"a"', '"b"'), ('"c"',)),
    "oneOf, of types": Trial({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, ("null", "true"), ("1",)),
    "oneOf, told apart by a property": Trial(
        {
            "oneOf": [
                {"type": "object", "properties": {"k": {"const": "a"}, "x": {"type": "null"}}, "required": ["k"], "additionalProperties": False},
                {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"], "additionalProperties": False},
            ]
        },
        ('{"k": "a", "x": null}', '{"k": "b"}'), ('{"k": "b", "x": null}',),
    ),
    "oneOf, overlapping": Trial({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 2}]}, ("1", "9"), ("2",)),
    "allOf": Trial({"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 8}]}, ("5",), ("2", "9")),
    "allOf, of objects": Trial({"allOf": [OPEN, {"required": ["a"]}]}, ('{"a": true}',), ("{}",)),
    "not": Trial({"type": "integer", "not": {"const": 3}}, ("4",), ("3",)),
    "if, then, else": Trial({"type": "integer", "if": {"minimum": 10}, "then": {"maximum": 20}, "else": {"maximum": 5}}, ("3", "15"), ("7", "30")),
    "$ref": Trial({"$defs": {"p": {"const": "u"}}, "$ref": "#/$defs/p"}, ('"u"',), ('"v"',)),
    "$ref beside keywords": Trial({"$defs": {"p": {"type": "integer"}}, "$ref": "#/$defs/p", "maximum": 5}, ("3",), ("8",)),
    "$ref, recursive": Trial(
        {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}, ("[[], [[]]]",), ("[1]", "[[1]]")
    ),
    "$anchor": Trial({"$defs": {"p": {"$anchor": "here", "const": "u"}}, "$ref": "#here"}, ('"u"',), ('"v"',)),
    "$dynamicRef": Trial({"$defs": {"p": {"$dynamicAnchor": "here", "const": "u"}}, "$dynamicRef": "#here"}, ('"u"',), ('"v"',)),
    "false": Trial({"type": "array", "items": False}, ("[]",), ("[1]",)),
    **dict([
        _format("date", "2024-02-29", "2024-13-01"), ("format: date, days of the month", _string("2024-02-29", "2023-02-30", format="date")),
            ("format: date-time, days of the month", _string("2024-02-29T12:00:00Z", "2023-02-30T12:00:00Z", format="date-time")),
        _format("time", "12:34:56Z", "25:00:00Z"), _format("date-time", "2024-01-31T12:34:56Z", "2024-01-31 noon"),
        _format("duration", "P1DT2H", "1 day"), _format("email", "a.b@c.de", "a.b.c"), _format("hostname", "a-b.example", "-a..b"),
        _format("ipv4", "127.0.0.1", "127.0.0.256"), _format("ipv6", "fe80::1", "fe80:::1"),
        _format("uri", "https://a.b/c?d=e", "no uri"), _format("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        _format("regex", "a+b", "a(b"), _format("json-pointer", "/a/b", "a/b"),
    ]),
}  # fmt: skip


def passes(engine: GrammarEngine, source: str, text: str) -> bool:
    """Whether a model could write the text and end there."""
    matcher = engine.matcher(source)
    return all(matcher.accept(1 + byte) for byte in text.encode()) and matcher.accept(0)


def found(engine: GrammarEngine, trial: Trial) -> str:
    """What the page says of an engine and a keyword."""
    try:
        source = engine.source(GrammarSpec("json_schema", json.dumps(trial.schema)))
        if engine.warnings(source):
            return "refused"
        right = [passes(engine, source, text) for text in trial.fits]
        wrong = [passes(engine, source, text) for text in trial.does_not]
    except GrammarError:
        return "refused"
    if not all(right):
        return "enforced too strictly" if not any(wrong) else "wrong"
    if not any(wrong):
        return "enforced"
    return "in part" if not all(wrong) else "not enforced"


def engines() -> dict[str, GrammarEngine]:
    """All that are known. Raises `GrammarError` for one that is not installed."""
    return {name: open_engine(name, BYTES, len(BYTES.tokens)) for name in ENGINES}


def page(opened: Mapping[str, GrammarEngine]) -> Iterator[str]:
    """docs/guided-keywords.md, line by line."""
    yield from (
        "# Keywords of JSON Schema",
        "",
        "Which of them an answer is held to, found by trying each: texts that fit must pass, texts that do not must not",
        "(`tests/guided/keywords.py`, which wrote this page). *refused*: the request is, with the reason: leave the keyword out",
        "and check the answer. *enforced too strictly*: some texts that would fit do not come.",
        "",
        "| keyword | " + " | ".join(opened) + " |",
        "|---|" + "---|" * len(opened),
    )
    for keyword, trial in TRIALS.items():
        yield f"| `{keyword}` | " + " | ".join(found(engine, trial) for engine in opened.values()) + " |"


def main() -> None:
    print("\n".join(page(engines())))  # engines print too, to standard error


if __name__ == "__main__":
    main()
