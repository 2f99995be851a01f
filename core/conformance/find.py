"""A backend by what the kit is told: a plugin's name, or `module:Class` before there is a plugin."""

from __future__ import annotations

import importlib

from mainspring.core.backend import Backend
from mainspring.core.errors import BackendError
from mainspring.core.plugins import load_plugins


def find_backend(address: str) -> Backend:
    """Raises `BackendError` when nothing of that name is there, or what is there is no backend."""
    module, colon, attribute = address.partition(":")
    if not colon:
        return load_plugins().get(address)
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise BackendError(f"{address} cannot be made: {error}; name a class that takes no arguments") from error
    if not isinstance(made, Backend):
        raise BackendError(f"{address} is a {type(made).__name__} and no Backend")
    return made
