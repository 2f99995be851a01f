"""Qwen3-Coder's calls, whose arguments are elements and whose types are the schema's."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.parser import Tag, ToolParser, json_arguments
from mainspring.server.tools.tool import Tool


class QwenXml(ToolParser):
    """`<tool_call><function=name><parameter=city>Paris</parameter></function></tool_call>`."""

    markers: ClassVar[frozenset[str]] = frozenset({"<tool_call>", "</tool_call>"})
    trigger: ClassVar[str] = "<tool_call>"
    signs: ClassVar[tuple[tuple[str, ...], ...]] = (("<tool_call>", "<function="),)

    def read(self) -> Steps[None]:
        starts = ("<tool_call>", "<function=")
        while (marker := (yield from self.copy_until(starts, self.say))) != END:
            self.record(marker)
            if marker == "<tool_call>" and (yield from self.take_lead(("<function=",))) == END:
                self.say(self.recorded())
                continue
            name, marker = yield from self.take_until((">", "\n"))
            if marker != ">" or not name.strip():
                self.say(self.recorded())
                continue
            self.recorded()
            yield from self._read_arguments(name.strip())
            yield from self.take_lead(("</tool_call>",))

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        begin = f"<tool_call>\n<function={tool.name}>\n"
        return Tag(begin, json_arguments(tool.parameters, "qwen_xml"), "\n</function>\n</tool_call>")

    def _read_arguments(self, name: str) -> Steps[None]:
        self.call(name)
        self.argue("{")
        separator = ""
        while (yield from self.take_until(("<parameter=", "</function>")))[1] == "<parameter=":
            key, _ = yield from self.take_until((">",))
            text, marker = yield from self.take_until(("</parameter>", "<parameter=", "</function>"))
            if marker == END:
                return
            value = self._typed(name, key.strip(), text.removeprefix("\n").removesuffix("\n"))
            self.argue(f"{separator}{json.dumps(key.strip(), ensure_ascii=False)}: {value}")
            separator = ", "
            if marker != "</parameter>":
                self.put_back(marker)
        self.argue("}")

    def _typed(self, name: str, key: str, text: str) -> str:
        """The value as JSON: of its own form, unless the schema says that it is a string."""
        properties: Any = self.tools[name].parameters.get("properties") if name in self.tools else None
        declared = properties.get(key) if isinstance(properties, dict) else None
        if not (isinstance(declared, dict) and declared.get("type") == "string"):
            try:
                return json.dumps(json.loads(text), ensure_ascii=False)
            except (ValueError, RecursionError):
                pass
        return json.dumps(text, ensure_ascii=False)
