"""The formats of tool calls by name, and which of them a model has."""

from __future__ import annotations

from collections.abc import Mapping

from mainspring.core.errors import StartupError, unknown
from mainspring.server.tools.gemma import FunctionGemma, Gemma4
from mainspring.server.tools.harmony import Harmony
from mainspring.server.tools.parser import ToolParser
from mainspring.server.tools.plain_json import Llama3Json, PlainJson
from mainspring.server.tools.pythonic import Pythonic
from mainspring.server.tools.qwen_xml import QwenXml
from mainspring.server.tools.tagged import DeepSeek, DeepSeekV3, Hermes, Mistral, MistralArgs

TOOL_FORMATS: Mapping[str, type[ToolParser]] = {
    "harmony": Harmony,
    "deepseek_v3": DeepSeekV3,
    "deepseek": DeepSeek,
    "mistral_args": MistralArgs,
    "mistral": Mistral,
    "functiongemma": FunctionGemma,
    "gemma4": Gemma4,
    "qwen_xml": QwenXml,
    "hermes": Hermes,
    "pythonic": Pythonic,
    "llama3_json": Llama3Json,
    "json": PlainJson,
}
"""In the order in which a template is looked through; `json` is for those that none of the others knows."""


def choose_tool_format(
    name: str | None, template: str | None, plugins: Mapping[str, type[ToolParser]]
) -> type[ToolParser]:
    """The format called `name`, or for None the one whose signs the template's source bears.

    Plugins' formats come first. Raises StartupError for a name that nobody has.
    """
    formats = {**plugins, **{key: value for key, value in TOOL_FORMATS.items() if key not in plugins}}
    if name is not None:
        if name not in formats:
            raise StartupError(unknown("tool-call parser", name, formats))
        return formats[name]
    for format_ in formats.values():
        if template is not None and bears(template, format_.signs):
            return format_
    return PlainJson


def bears(template: str, signs: tuple[tuple[str, ...], ...]) -> bool:
    """Whether all texts of one of the groups stand in the template's source."""
    return any(all(sign in template for sign in group) for group in signs)
