"""In which formats the served model writes calls and thoughts: as the operator says, or as its template shows.

Formats are those of `server/tools` and `server/reasoning` and those that plugins bring.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pluggy

from mainspring.server.reasoning.formats import choose_reasoning_format
from mainspring.server.reasoning.parser import ReasoningParser
from mainspring.server.tools.formats import choose_tool_format
from mainspring.server.tools.parser import ToolParser


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """Names of formats, None for those that the template decides; and what plugins add to the tables."""

    tool_calls: str | None = None
    reasoning: str | None = None
    tool_plugins: Mapping[str, type[ToolParser]] = field(default_factory=dict)
    reasoning_plugins: Mapping[str, type[ReasoningParser]] = field(default_factory=dict)

    def choose(self, template: str | None) -> tuple[type[ToolParser], type[ReasoningParser] | None]:
        """The formats of a model with this template. Raises StartupError for a name that nobody has."""
        return (
            choose_tool_format(self.tool_calls, template, self.tool_plugins),
            choose_reasoning_format(self.reasoning, template, self.reasoning_plugins),
        )


@dataclass(frozen=True, slots=True)
class PluginFormats:
    """What plugins bring, and a sentence for each that cannot be used."""

    tools: Mapping[str, type[ToolParser]]
    reasoning: Mapping[str, type[ReasoningParser]]
    problems: tuple[str, ...]


def plugin_formats(manager: pluggy.PluginManager) -> PluginFormats:
    """Loads what the hooks name."""
    problems: list[str] = []
    tools = dict(_loaded(manager.hook.mainspring_tool_parsers(), ToolParser, problems))
    reasoning = dict(_loaded(manager.hook.mainspring_reasoning_parsers(), ReasoningParser, problems))
    return PluginFormats(tools, reasoning, tuple(problems))


def _loaded(mappings: Iterable[Mapping[str, str]], contract: type, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for name, place in chain.from_iterable(mapping.items() for mapping in mappings):
        module, _, attribute = place.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # noqa: BLE001  a plugin's import may raise anything, and must not take the server down
            problems.append(f"parser {name!r} ({place}) does not import: {type(error).__name__}: {error}")
            continue
        if isinstance(found, type) and issubclass(found, contract):
            yield name, found
        else:
            problems.append(f"parser {name!r} ({place}) is no subclass of {contract.__module__}.{contract.__name__}")
