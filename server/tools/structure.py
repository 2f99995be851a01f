"""The constraint of an answer that must be calls, as data: a structural tag that a grammar engine compiles.

The form is XGrammar's (https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html), which llguidance reads too.
"""

from __future__ import annotations

from typing import Any

from mainspring.server.tools.parser import Format, Tag, ToolParser
from mainspring.server.tools.plain_json import PlainJson
from mainspring.server.tools.tool import Offer


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
    elements: list[Format] = []
    if thoughts_end:
        elements.append({"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": thoughts_end})
    if format_.opening:
        elements.append({"type": "const_string", "value": format_.opening})
    elements.append(calls)
    if format_.closing:
        elements.append({"type": "const_string", "value": format_.closing})
    whole = elements[0] if len(elements) == 1 else {"type": "sequence", "elements": elements}
    return {"type": "structural_tag", "format": whole}


def _tag(tag: Tag) -> Format:
    return {"type": "tag", "begin": tag.begin, "content": tag.arguments, "end": tag.end}
