"""Doubles of vendors' modules: functions with the documented names and arguments, which keep what was called."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class Recorder:
    """What was called, by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def function(self, name: str, documented: Callable[..., Any]) -> Callable[..., Any]:
        """A function with the signature of `documented`, whose parameters are those of the vendor's documentation."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return documented(*args, **kwargs)

        return call


class Undocumented(Exception):
    """A call that the vendor's documentation does not allow."""


def require(holds: bool, otherwise: str) -> None:
    """Raises `Undocumented`."""
    if not holds:
        raise Undocumented(otherwise)


def install(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Modules by name, importable from now on in this process; parents know their children."""
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
