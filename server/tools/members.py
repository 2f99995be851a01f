"""Forced arguments of formats that write them one by one, as `name=value` or `name:value`, and no JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mainspring.server.tools.parser import Format, json_arguments

_DEFINITIONS = ("$defs", "definitions")
_PLAIN_STRING = frozenset({"type", "title", "description", "default"})
"""Keywords of a schema that any string satisfies."""


def member_arguments(schema: Mapping[str, Any], key: str, separator: str, quote: str = "") -> Format | None:
    """Members in the schema's order, those that are required before the others.

    `key` is how a name is written, with `{}` for it; `quote` what stands around strings, where that is not JSON's.
    None where the schema says more than its properties do; of properties that are all optional the first one comes.
    """
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or {"allOf", "anyOf", "oneOf", "$ref", "if", "not"} & set(schema):
        return None
    required = schema.get("required") or []
    first = [name for name in properties if name in required] or [*properties][:1]
    rest = [name for name in properties if name not in first]
    shared = {word: schema[word] for word in _DEFINITIONS if word in schema}
    members: list[Format] = []
    for name in (*first, *rest):
        begin = {"type": "const_string", "value": (separator if members else "") + key.format(name)}
        member = {"type": "sequence", "elements": [begin, _value(properties[name], shared, quote)]}
        members.append(member if name in first else {"type": "optional", "content": member})
    if not members:
        return {"type": "const_string", "value": ""}
    return members[0] if len(members) == 1 else {"type": "sequence", "elements": members}


def _value(schema: Any, shared: Mapping[str, Any], quote: str) -> Format:
    if not isinstance(schema, dict):
        return json_arguments(shared)
    if quote and schema.get("type") == "string" and set(schema) <= _PLAIN_STRING:
        return {"type": "tag", "begin": quote, "content": {"type": "any_text"}, "end": quote}
    return json_arguments({**schema, **shared})
