"""The formats of reasoning by name, and which of them a model has."""

from __future__ import annotations

from collections.abc import Mapping

from mainspring.core.errors import StartupError, unknown
from mainspring.server.reasoning.parser import ReasoningParser
from mainspring.server.reasoning.think import GemmaThought, Kimi, Magistral, Seed, Think
from mainspring.server.tools.formats import bears

NO_REASONING = "none"
"""The name that says: leave thoughts in the text."""
REASONING_FORMATS: Mapping[str, type[ReasoningParser]] = {
    "magistral": Magistral,
    "seed": Seed,
    "kimi": Kimi,
    "gemma": GemmaThought,
    "think": Think,
}
"""In the order in which a template is looked through."""


def choose_reasoning_format(
    name: str | None, template: str | None, plugins: Mapping[str, type[ReasoningParser]]
) -> type[ReasoningParser] | None:
    """The format called `name`, or for None the one whose signs the template's source bears; None where there is none.

    Plugins' formats come first. Raises StartupError for a name that nobody has.
    """
    formats = {**plugins, **{key: value for key, value in REASONING_FORMATS.items() if key not in plugins}}
    if name is None:
        if template is None:
            return None
        return next((format_ for format_ in formats.values() if bears(template, format_.signs)), None)
    if name == NO_REASONING:
        return None
    if name not in formats:
        raise StartupError(unknown("reasoning parser", name, [*formats, NO_REASONING]))
    return formats[name]
