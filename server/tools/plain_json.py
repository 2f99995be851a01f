"""Formats that are JSON and nothing else: Llama 3's, and the one that any model can be asked for."""

from __future__ import annotations

import json
from typing import ClassVar

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.json_text import take_call
from mainspring.server.tools.parser import Tag, ToolParser, json_arguments
from mainspring.server.tools.tool import Tool

_PYTHON_TAG = "<|python_tag|>"


class PlainJson(ToolParser):
    """`{"name": ..., "parameters": {...}}`, alone, in a list, or in a fence.

    Nothing marks a call, so only an object that names one of the request's tools is one; any other stays text.
    """

    separator: ClassVar[str] = "; "

    def read(self) -> Steps[None]:
        lead = yield from self._take_opening()
        while lead != END:
            if (yield from take_call(self, self.tools.__contains__)):
                lead = yield from self._take_next()
            else:
                self.say(self.recorded())
                lead = yield from self._find()

    def _take_opening(self) -> Steps[str]:
        """What may stand before the first call of an answer that is nothing but calls, and its brace."""
        self.record()
        for words in (("```json", "```", _PYTHON_TAG), ("[",), ("{",)):
            lead = yield from self.take_lead(words)
        if lead == END:
            self.say(self.recorded())
            lead = yield from self._find()
        return lead

    def _take_next(self) -> Steps[str]:
        """From the end of a call to the brace of the next one, past what stands between."""
        while lead := (yield from self.take_lead((",", ";", "{", "]", "}", "```", _PYTHON_TAG))):
            if lead == "{":
                self.record(lead)
                return lead
        return (yield from self._find())

    def _find(self) -> Steps[str]:
        """The next brace in the text."""
        while (lead := (yield from self.copy_until(("{", _PYTHON_TAG), self.say))) == _PYTHON_TAG:
            pass
        self.record(lead)
        return lead

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        return Tag(f'{{"name": {json.dumps(tool.name)}, "parameters": ', json_arguments(tool.parameters), "}")


class Llama3Json(PlainJson):
    """Llama 3.1 to 3.3: the same, behind `<|python_tag|>` if the model likes; several calls with semicolons between."""

    markers: ClassVar[frozenset[str]] = frozenset({_PYTHON_TAG})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((_PYTHON_TAG,), ('{"name": function name, "parameters"',))
