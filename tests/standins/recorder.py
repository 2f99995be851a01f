"""Doubles of vendors' functions: they hold the documented signature, refuse any other call, and keep what was called."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class Recorder:
    """What was called, by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def function(self, name: str, documented: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """A function that binds its arguments to the documented signature, as in `(x, *, y=None)`, before it behaves."""
        signature = _signature(documented)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}{documented}: {error}") from error
            self.calls[name] += 1
            bound.apply_defaults()
            return behaviour(*bound.args, **bound.kwargs)

        return call


def _signature(documented: str) -> inspect.Signature:
    scope: dict[str, Any] = {}
    exec(f"def documented{documented}: ...", scope)  # noqa: S102  a signature that stands in this folder
    return inspect.signature(scope["documented"])


def install(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Modules by name, importable from now on in this process; parents know their children."""
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
