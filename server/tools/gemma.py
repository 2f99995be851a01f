"""Calls as Gemma's newer models write them, with a mark for quotes so that nothing in a string need be escaped.

https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices; Gemma 3 is `pythonic.py`'s.
"""

from __future__ import annotations

from typing import ClassVar

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.loose_value import Malformed, take_members
from mainspring.server.tools.members import member_arguments
from mainspring.server.tools.parser import Tag, ToolParser
from mainspring.server.tools.tool import Tool


class FunctionGemma(ToolParser):
    """`<start_function_call>call:name{city:<escape>Paris<escape>,days:3}<end_function_call>`."""

    begin: ClassVar[str] = "<start_function_call>"
    end: ClassVar[str] = "<end_function_call>"
    quote: ClassVar[str] = "<escape>"
    trigger: ClassVar[str] = begin
    markers: ClassVar[frozenset[str]] = frozenset({begin, end, quote})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((begin,),)

    def read(self) -> Steps[None]:
        while (yield from self.copy_until((self.begin,), self.say)) != END:
            self.record(self.begin)
            if (yield from self._take_call()):
                yield from self.take_lead((self.end,))
            else:
                self.say(self.recorded())

    @classmethod
    def tag(cls, tool: Tool) -> Tag | None:
        arguments = member_arguments(tool.parameters, "{}:", ",", cls.quote)
        return None if arguments is None else Tag(f"{cls.begin}call:{tool.name}{{", arguments, "}" + cls.end)

    def _take_call(self) -> Steps[bool]:
        if (yield from self.take_lead(("call:",))) == END:
            return False
        name, marker = yield from self.take_until(("{", "\n"))
        if marker != "{" or not name.strip():
            return False
        try:
            arguments = yield from take_members(self, "}", {self.quote: self.quote, '"': '"'})
        except Malformed:
            return False
        self.recorded()
        self.call(name.strip())
        self.argue(arguments)
        return True


class Gemma4(FunctionGemma):
    """`<|tool_call>call:name{city:<|"|>Paris<|"|>}<tool_call|>`."""

    begin: ClassVar[str] = "<|tool_call>"
    end: ClassVar[str] = "<tool_call|>"
    quote: ClassVar[str] = '<|"|>'
    trigger: ClassVar[str] = begin
    markers: ClassVar[frozenset[str]] = frozenset({begin, end, quote})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((begin,),)
