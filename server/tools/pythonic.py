"""Calls as Python writes them: Llama 3.2 and 4, Gemma 3."""

from __future__ import annotations

from typing import ClassVar

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.loose_value import PYTHON_QUOTES, Malformed, take_members
from mainspring.server.tools.members import member_arguments
from mainspring.server.tools.parser import Tag, ToolParser
from mainspring.server.tools.tool import Tool


class Pythonic(ToolParser):
    """`[first(a=1, b="x"), second()]` as the whole answer, between Llama 4's marks or in a `tool_code` fence.

    Only names of the request's tools are calls. A call's arguments come when it is whole: until then it may be text.
    """

    markers: ClassVar[frozenset[str]] = frozenset({"<|python_start|>", "<|python_end|>"})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = (("<|python_start|>",), ("tool_code",), ("[func_name1(",))

    opening: ClassVar[str] = "["
    separator: ClassVar[str] = ", "
    closing: ClassVar[str] = "]"

    def read(self) -> Steps[None]:
        self.record()
        yield from self.take_lead(("<|python_start|>", "```tool_code", "```python", "```"))
        yield from self.take_lead(("[",))
        while (yield from self._take_call()):
            while (yield from self.take_lead((",", "]", "```", "<|python_end|>"))) != END:
                pass
            self.record()
        self.say(self.recorded())

    @classmethod
    def tag(cls, tool: Tool) -> Tag | None:
        arguments = member_arguments(tool.parameters, "{}=", ", ")
        return None if arguments is None else Tag(f"{tool.name}(", arguments, ")")

    def _take_call(self) -> Steps[bool]:
        name, marker = yield from self.take_until(("(", "\n", " ", "="))
        while not name and marker.isspace():
            name, marker = yield from self.take_until(("(", "\n", " ", "="))
        if marker != "(" or name not in self.tools:
            return False
        try:
            arguments = yield from take_members(self, ")", PYTHON_QUOTES)
        except Malformed:
            return False
        self.recorded()
        self.call(name)
        self.argue(arguments)
        return True
