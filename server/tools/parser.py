"""The contract of a format: how one family of models writes calls of tools.

A plugin's format is a subclass, named by the hook `mainspring_tool_parsers`; docs/tools.md has a complete one.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mainspring.server.text.machine import Steps, TextMachine
from mainspring.server.tools.tool import Tool

Format = Mapping[str, Any]
"""A part of a structural tag (https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html)."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A whole call in the format's words: fixed text, arguments, fixed text."""

    begin: str
    arguments: Format
    """What they may be; of a JSON schema, `json_arguments`."""
    end: str


def json_arguments(schema: Mapping[str, Any], style: str = "json") -> Format:
    """Arguments that satisfy a JSON schema, as JSON or in another style that grammar engines know."""
    content: dict[str, Any] = {"type": "json_schema", "json_schema": dict(schema)}
    return content if style == "json" else {**content, "style": style}


class ToolParser(TextMachine):
    """One answer's text to text and calls. A new one for every sequence."""

    signs: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """How to know the format by a chat template: all texts of one of these groups stand in its source."""
    trigger: ClassVar[str] = ""
    """How calls begin among words, `opening` included; empty where nothing marks them."""
    opening: ClassVar[str] = ""
    """Written before the first call."""
    separator: ClassVar[str] = ""
    """Between calls."""
    closing: ClassVar[str] = ""
    """Behind the last."""
    reads_reasoning: ClassVar[bool] = False
    """Whether it tells thoughts from words too, so that no reasoning parser goes before it."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self.tools = {tool.name: tool for tool in tools}

    @abstractmethod
    def read(self) -> Steps[None]:
        """Reads the whole answer: `say` its words, and for each call `call` its name and `argue` its arguments."""

    @classmethod
    def tag(cls, tool: Tool) -> Tag | None:
        """A call of this tool, to be forced by a grammar. None: calls of this format are no text around JSON."""
        return None

    @classmethod
    def new_id(cls) -> str:
        """An id for a call, unique."""
        return f"call_{secrets.token_hex(12)}"
