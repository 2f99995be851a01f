"""What calls must be, as data: a structural tag for an answer that has to call, or whose calls have to be right.

The form is XGrammar's (https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mainspring.server.tools.parser import Format, Tag, ToolParser
from mainspring.server.tools.plain_json import PlainJson
from mainspring.server.tools.tool import Offer

_ANY_ARGUMENTS = {"type": "object"}


def forced_format(own: type[ToolParser], offer: Offer) -> type[ToolParser]:
    """In which format calls are forced: the model's own, or plain JSON where that cannot be said as tags."""
    return PlainJson if any(own.tag(tool) is None for tool in offer.tools) else own


def required_calls(format_: type[ToolParser], offer: Offer, thoughts_end: str = "") -> dict[str, Any]:
    """At least one call of the offered tools, or exactly one, and no words.

    `thoughts_end` is what ends the thoughts that the prompt has begun: until then anything may come.
    """
    tags = [_tag(tag) for tool in offer.tools if (tag := format_.tag(tool)) is not None]
    calls: Format = {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": format_.separator,
        "at_least_one": True,
        "stop_after_first": not offer.parallel,
    }
    elements: list[Format] = _thoughts(thoughts_end)
    if format_.opening:
        elements.append({"type": "const_string", "value": format_.opening})
    elements.append(calls)
    if format_.closing:
        elements.append({"type": "const_string", "value": format_.closing})
    return _whole(elements)


def strict_calls(format_: type[ToolParser], offer: Offer, thoughts_end: str = "") -> dict[str, Any] | None:
    """Words and calls as the model likes, where those of strict tools satisfy their schemas.

    None where no tool is strict, or nothing marks the beginning of a call in the format.
    """
    if not any(tool.strict for tool in offer.tools):
        return None
    tools = [tool if tool.strict else replace(tool, parameters=_ANY_ARGUMENTS) for tool in offer.tools]
    tags = [_tag(tag) for tool in tools if (tag := format_.tag(tool)) is not None]
    if not format_.trigger or len(tags) < len(tools):
        return None
    if format_.opening:
        calls = {"type": "tags_with_separator", "tags": tags, "separator": format_.separator, "at_least_one": True}
        tags = [{"type": "tag", "begin": format_.opening, "content": calls, "end": format_.closing}]
    free = {
        "type": "triggered_tags",
        "triggers": [format_.trigger],
        "tags": tags,
        "stop_after_first": not offer.parallel,
    }
    return _whole([*_thoughts(thoughts_end), free])


def _thoughts(end: str) -> list[Format]:
    return [{"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": end}] if end else []


def _whole(elements: list[Format]) -> dict[str, Any]:
    whole = elements[0] if len(elements) == 1 else {"type": "sequence", "elements": elements}
    return {"type": "structural_tag", "format": whole}


def _tag(tag: Tag) -> Format:
    return {"type": "tag", "begin": tag.begin, "content": tag.arguments, "end": tag.end}
