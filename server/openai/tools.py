"""Tools in OpenAI's protocol and TGI's dialect of it: what a request offers, and the calls of a chat so far."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mainspring.core.errors import unknown
from mainspring.server.errors import FieldError, invalid
from mainspring.server.openai.tool_types import AllowedToolsChoice, NamedTool
from mainspring.server.openai.types import ChatRequest
from mainspring.server.tools.tool import Offer, Tool

_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}
DEFAULT_TOOL_PROMPT = (
    "Given the functions available, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt. Respond in the format {name: function name, parameters: dictionary of argument name and "
    "its value}.Do not use variables."
)
"""TGI's, so that a model which is asked in this way answers as it did there."""


def offer_of(request: ChatRequest) -> Offer:
    """What the answer may, or must, call. Raises RequestError."""
    tools = tools_of(request)
    choice = request.tool_choice
    parallel = request.parallel_tool_calls is not False
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("`tool_choice` asks for a tool, and `tools` has none", "tool_choice")
        return Offer()
    match choice:
        case "none":
            return Offer()
        case None | "auto":
            return Offer(tools, parallel=parallel)
        case "required":
            return Offer(tools, required=True, parallel=parallel)
        case AllowedToolsChoice(allowed_tools=allowed):
            names = [tool.function.name for tool in allowed.tools]
            return Offer(_named(tools, names), required=allowed.mode == "required", parallel=parallel)
        case NamedTool(function=function):
            return Offer(_named(tools, [function.name]), required=True, parallel=False)
        case name:
            return Offer(_named(tools, [name]), required=True, parallel=False)


def tools_of(request: ChatRequest) -> tuple[Tool, ...]:
    """All tools of the request. Raises RequestError for two of one name."""
    found: dict[str, Tool] = {}
    for number, spec in enumerate(request.tools or ()):
        function = spec.function
        if function.name in found:
            raise invalid(f"`tools.{number}.function.name` is {function.name!r} for the second time", "tools")
        schema = function.parameters or function.arguments or _NO_ARGUMENTS
        found[function.name] = Tool(function.name, schema, function.description, strict=bool(function.strict))
    return tuple(found.values())


def _named(tools: Iterable[Tool], names: Sequence[str]) -> tuple[Tool, ...]:
    known = {tool.name: tool for tool in tools}
    for name in names:
        if name not in known:
            raise UnknownToolError(name, known)
    return tuple(known[name] for name in dict.fromkeys(names))


class UnknownToolError(FieldError):
    """`tool_choice` names a tool that the request does not bring."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"`tool_choice`: {unknown('tool', name[:200], known)}", "tool_choice")


def call_for_template(call: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier call with its arguments as an object, which is what templates take them for."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else dict(call)


def with_tools_in_text(
    messages: Sequence[dict[str, Any]], tools: Sequence[Tool], prompt: str | None
) -> list[dict[str, Any]]:
    """The chat with its tools written behind the last message, for a template that has no place for them."""
    listed = json.dumps([tool.for_template() for tool in tools], ensure_ascii=False)
    last = {**messages[-1], "content": f"{messages[-1]['content']}\n---\n{prompt or DEFAULT_TOOL_PROMPT}\n{listed}"}
    return [*messages[:-1], last]


def with_tool_names(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool messages with the name of what they are the result of, which some templates show, found by its call's id."""
    names: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function")
            if isinstance(function, dict) and isinstance(call.get("id"), str):
                names[call["id"]] = str(function.get("name"))
        named = message["role"] == "tool" and "name" not in message
        name = names.get(message.get("tool_call_id", "")) if named else None
        found.append(message if name is None else {**message, "name": name})
    return found
