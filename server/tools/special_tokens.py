"""Structural tags for models whose marks are special tokens, which no text spells: these are named by their ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mainspring.server.tools.parser import Format

Ids = Mapping[str, int]
"""Special tokens that a structure may speak of, by their text."""


def by_token(format_: Format, ids: Ids) -> Format:
    """The same format with the special tokens in its texts as tokens. Nothing changes where it has none of them."""
    match format_:
        case {"type": "const_string", "value": str(text)}:
            return _sequence(_split(text, ids))
        case {"type": "sequence", "elements": elements}:
            return {**format_, "elements": [by_token(element, ids) for element in elements]}
        case {"type": "optional", "content": content}:
            return {**format_, "content": by_token(content, ids)}
        case {"type": "tag"}:
            return _tag(format_, ids)
        case {"type": "tags_with_separator", "tags": tags}:
            return {**format_, "tags": [by_token(tag, ids) for tag in tags]}
        case {"type": "triggered_tags", "tags": tags, "triggers": [str(trigger)]}:
            return _triggered({**format_, "tags": [by_token(tag, ids) for tag in tags]}, _split(trigger, ids)[0])
    return format_


def _triggered(format_: dict[str, Any], first: Format) -> Format:
    """A trigger that begins with a token is that token: what follows it is the tags' to say."""
    if first["type"] != "token":
        return format_
    others = {key: value for key, value in format_.items() if key not in ("type", "triggers")}
    return {"type": "token_triggered_tags", "trigger_tokens": [first["token"]], **others}


def _tag(tag: Format, ids: Ids) -> Format:
    """Of a tag's two texts only the first and the last token stand outside; what is between joins the content."""
    begin, *before = _split(tag["begin"], ids)
    *behind, end = _split(tag["end"], ids)
    content = by_token(tag["content"], ids)
    if content["type"] == "any_text" and end["type"] == "token":
        content = {"type": "any_tokens", "exclude_tokens": [end["token"]]}
    inner = _sequence([*before, content, *behind])
    return {"type": "tag", "begin": _outer(begin), "content": inner, "end": _outer(end)}


def _outer(part: Format) -> Any:
    return part["value"] if part["type"] == "const_string" else part


def _sequence(parts: list[Format]) -> Format:
    return parts[0] if len(parts) == 1 else {"type": "sequence", "elements": parts}


def _split(text: str, ids: Ids) -> list[Format]:
    """At least one part: texts and tokens in turn."""
    if not ids:
        return [{"type": "const_string", "value": text}]
    pieces = re.split("(" + "|".join(re.escape(word) for word in sorted(ids, key=len, reverse=True)) + ")", text)
    parts: list[Format] = [
        {"type": "token", "token": ids[piece]} if piece in ids else {"type": "const_string", "value": piece}
        for piece in pieces
        if piece
    ]
    return parts or [{"type": "const_string", "value": ""}]
