"""OpenAI's harmony format, which gpt-oss writes: channels for thoughts, calls and words.

https://github.com/openai/harmony. That library reads token ids of one vocabulary; this reads text, as every format
here does, with the special tokens in it. Of the format only what a model answers is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import ClassVar

from mainspring.server.text.machine import END, Steps
from mainspring.server.tools.parser import Tag, ToolParser, json_arguments
from mainspring.server.tools.tool import Tool

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_FUNCTION = re.compile(r"to=functions\.([^\s<]+)")


class Harmony(ToolParser):
    """`<|channel|>analysis<|message|>...<|end|>`, `... commentary to=functions.name ...<|message|>{...}<|call|>`.

    The analysis channel is reasoning; a message to one of the functions is a call; all else is text. Calls of the tools
    that gpt-oss brings itself (`browser`, `python`) are reasoning too: nobody here runs them.
    """

    markers: ClassVar[frozenset[str]] = frozenset({_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((_CHANNEL, _MESSAGE),)
    reads_reasoning: ClassVar[bool] = True

    def read(self) -> Steps[None]:
        marker = yield from self.copy_until((_START, _CHANNEL, *_ENDS), self.say)
        while marker != END:
            if marker in _ENDS:
                marker = yield from self.copy_until((_START, _CHANNEL, *_ENDS), self.say)
                continue
            header, found = yield from self._take_header(marker)
            if found != _MESSAGE:
                return
            marker = yield from self.copy_until((_START, _CHANNEL, *_ENDS), self._reader_of(header))

    def _take_header(self, marker: str) -> Steps[tuple[str, str]]:
        """All up to the message, with the marks in it. Of a header that never ends nothing is shown."""
        header = ""
        while marker not in (_MESSAGE, END):
            text, following = yield from self.take_until((_START, _CHANNEL, _CONSTRAIN, _MESSAGE))
            header += marker + text
            marker = following
        return header, marker

    def _reader_of(self, header: str) -> Callable[[str], None]:
        recipient = _FUNCTION.search(header)
        if recipient is not None:
            self.call(recipient[1])
            return self.argue
        _, _, channel = header.partition(_CHANNEL)
        thinks = channel.lstrip().startswith("analysis") or "to=" in header
        return self.think if thinks else self.say

    @classmethod
    def tag(cls, tool: Tool) -> Tag:
        begin = f"{_CHANNEL}commentary to=functions.{tool.name} {_CONSTRAIN}json{_MESSAGE}"
        return Tag(begin, json_arguments(tool.parameters), "")
