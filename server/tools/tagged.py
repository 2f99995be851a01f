"""Formats that put a call between marks: Hermes and Qwen, Mistral, DeepSeek."""

from __future__ import annotations

import json
import secrets
import string
from typing import ClassVar

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.json_text import copy_arguments, take_call
from mainspring.server.tools.parser import Tag, ToolParser, json_arguments
from mainspring.server.tools.tool import Tool


class Hermes(ToolParser):
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes 2 Pro, Qwen 2.5 and 3, and many others."""

    markers: ClassVar[frozenset[str]] = frozenset({"<tool_call>", "</tool_call>"})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = (("<tool_call>",),)
    trigger: ClassVar[str] = "<tool_call>"
    separator: ClassVar[str] = "\n"

    def read(self) -> Steps[None]:
        marker = yield from self.copy_until(("<tool_call>",), self.say)
        while marker != END:
            self.record(marker)
            if (yield from self.take_word()) == "{" and (yield from take_call(self, bool)):
                _, marker = yield from self.take_until(("</tool_call>", "<tool_call>"))
            else:
                self.say(self.recorded())
                marker = "</tool_call>"
            if marker == "</tool_call>":
                marker = yield from self.copy_until(("<tool_call>",), self.say)

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        name = json.dumps(tool.name)
        return Tag(f'<tool_call>\n{{"name": {name}, "arguments": ', json_arguments(tool.parameters), "}\n</tool_call>")


class Mistral(ToolParser):
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`; newer ones `[TOOL_CALLS]name[ARGS]{...}` for each call.

    Their templates want ids of nine letters and digits.
    """

    markers: ClassVar[frozenset[str]] = frozenset({"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = (("[TOOL_CALLS]",),)
    trigger: ClassVar[str] = "[TOOL_CALLS]["
    opening: ClassVar[str] = "[TOOL_CALLS]["
    separator: ClassVar[str] = ", "
    closing: ClassVar[str] = "]"

    def read(self) -> Steps[None]:
        while (yield from self.copy_until(("[TOOL_CALLS]",), self.say)) != END:
            lead = yield from self.take_lead(("[{", "[ {", "{"))
            if lead:
                yield from self._read_objects("[TOOL_CALLS]" + lead)
            else:
                yield from self._read_named()

    def _read_objects(self, lead: str) -> Steps[None]:
        while lead:
            self.record(lead)
            if not (yield from take_call(self, bool)):
                self.say(self.recorded())
                return
            while (lead := (yield from self.take_lead((",", "{", "]", "}")))) not in ("{", END):
                pass

    def _read_named(self) -> Steps[None]:
        self.record("[TOOL_CALLS]")
        head, marker = yield from self.take_until(("[ARGS]", "[CALL_ID]", "{", "\n"))
        if marker == "[CALL_ID]":
            _, marker = yield from self.take_until(("[ARGS]", "{"))
        if marker not in ("[ARGS]", "{") or not head.strip():
            self.say(self.recorded())
            return
        self.recorded()
        self.call(head.strip())
        yield from copy_arguments(self, "{" if marker == "{" else (yield from self.take_word()))

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        return Tag(f'{{"name": {json.dumps(tool.name)}, "arguments": ', json_arguments(tool.parameters), "}")

    @classmethod
    def new_id(cls) -> str:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


class MistralArgs(Mistral):
    """The newer way, where a call is forced."""

    signs: ClassVar[tuple[tuple[str, ...], ...]] = (("[TOOL_CALLS]", "[ARGS]"),)
    trigger: ClassVar[str] = "[TOOL_CALLS]"
    opening: ClassVar[str] = ""
    separator: ClassVar[str] = ""
    closing: ClassVar[str] = ""

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        return Tag(f"[TOOL_CALLS]{tool.name}[ARGS]", json_arguments(tool.parameters), "")


_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


class DeepSeek(ToolParser):
    """DeepSeek V3.1: `<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>`, all between marks of their own.

    Read either way: V3 and R1 write `function`, the mark, then the name and the arguments in a fence.
    """

    markers: ClassVar[frozenset[str]] = frozenset({_CALLS_BEGIN, _CALLS_END, _CALL_BEGIN, _CALL_END, _SEPARATOR})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((_CALLS_BEGIN,), (_CALL_BEGIN,))
    trigger: ClassVar[str] = _CALLS_BEGIN
    opening: ClassVar[str] = _CALLS_BEGIN
    closing: ClassVar[str] = _CALLS_END

    def read(self) -> Steps[None]:
        marker = yield from self.copy_until((_CALLS_BEGIN, _CALL_BEGIN), self.say)
        while marker != END:
            if marker == _CALL_BEGIN:
                yield from self._read_call()
                _, marker = yield from self.take_until((_CALL_BEGIN, _CALLS_END))
            elif marker == _CALLS_BEGIN:
                _, marker = yield from self.take_until((_CALL_BEGIN, _CALLS_END))
            else:
                marker = yield from self.copy_until((_CALLS_BEGIN, _CALL_BEGIN), self.say)

    def _read_call(self) -> Steps[None]:
        name, marker = yield from self.take_until((_SEPARATOR, _CALL_END))
        first = yield from self.take_word()
        if marker == _SEPARATOR and name.strip() == "function" and first not in ("{", "`"):
            self.put_back(first)
            name, _ = yield from self.take_until(("\n", "```"))
            first = yield from self.take_word()
        if not name.strip():
            return
        self.call(name.strip())
        while first not in ("{", END):  # a fence
            first = yield from self.take()
        if first == "{":
            yield from copy_arguments(self, first)

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        return Tag(f"{_CALL_BEGIN}{tool.name}{_SEPARATOR}", json_arguments(tool.parameters), _CALL_END)


class DeepSeekV3(DeepSeek):
    """DeepSeek V3 and R1, where a call is forced."""

    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((_CALLS_BEGIN, "```json"),)
    separator: ClassVar[str] = "\n"

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        begin = f"{_CALL_BEGIN}function{_SEPARATOR}{tool.name}\n```json\n"
        return Tag(begin, json_arguments(tool.parameters), f"\n```{_CALL_END}")
