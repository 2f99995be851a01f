"""Processors from the names of their classes: those of this room and those of plugins."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from mainspring.core.errors import StartupError
from mainspring.core.processors.contract import LogitsProcessor
from mainspring.core.request import ProcessorForm

BUILT_IN: Mapping[str, str] = MappingProxyType({"watermark": "mainspring.core.processors.watermark:Watermark"})
_MOST_HISTORY = 64


def load_processors(places: Mapping[str, str], vocab_size: int) -> dict[str, LogitsProcessor]:
    """By name, in the order in which they apply. Raises `StartupError` with what is wrong with any of them."""
    made: dict[str, LogitsProcessor] = {}
    problems: list[str] = []
    for name, place in {**BUILT_IN, **places}.items():
        try:
            made[name] = _load(name, place, vocab_size)
        except StartupError as error:
            problems += error.reasons
    if problems:
        raise StartupError(problems)
    return dict(sorted(made.items(), key=lambda entry: (entry[1].order, entry[0])))


def forms_of(processors: Mapping[str, LogitsProcessor]) -> tuple[ProcessorForm, ...]:
    """What the server must know of them."""
    return tuple(ProcessorForm(name, processor.parameters) for name, processor in processors.items())


def _load(name: str, place: str, vocab_size: int) -> LogitsProcessor:
    module, _, attribute = place.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a plugin's import may raise anything, and the operator must hear which plugin it was
        reason = f"logits processor {name!r} ({place}) does not import: {type(error).__name__}: {error}"
        raise StartupError(reason) from error
    if not (isinstance(kind, type) and issubclass(kind, LogitsProcessor)):
        raise StartupError(f"logits processor {name!r} ({place}) is no subclass of LogitsProcessor")
    if not 0 <= kind.history <= _MOST_HISTORY:
        raise StartupError(f"logits processor {name!r} declares history {kind.history}; 0 to {_MOST_HISTORY} are kept")
    for parameter in kind.parameters:
        if (problem := parameter.problem(parameter.default)) is not None:
            raise StartupError(f"logits processor {name!r}: the default of `{parameter.name}` {problem}")
    return kind(vocab_size)
