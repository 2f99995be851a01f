"""Hooks and the plugin manager. A plugin is an entry point in the group `mainspring`; hooks are found by name.

Loading a plugin runs its module's top level and its hooks, nothing else: no vendor SDK is imported here. A plugin that
fails to import, implements a hook that does not exist, or registers a backend for another contract version is reported
in one sentence and left out; it never takes the others down.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from mainspring.core.backend import CONTRACT_VERSION, Backend, Unavailable
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    from mainspring.core.backend import DeviceInfo

GROUP = "mainspring"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """Every hook. Each is called once at start-up, in the process that needs it, and returns a list or a mapping."""

    @hookspec
    def mainspring_backends(self) -> Iterable[Backend]:
        """Backends to register. Called in the engine process and by the commands that list backends."""
        raise NotImplementedError

    @hookspec
    def mainspring_models(self) -> Mapping[str, str]:
        """Architecture name to `module:Class` of a model built from `core.layers`. Engine process."""
        raise NotImplementedError

    @hookspec
    def mainspring_weight_readers(self) -> Mapping[str, str]:
        """Checkpoint format name to `module:function` that streams its tensors. Engine process."""
        raise NotImplementedError

    @hookspec
    def mainspring_logits_processors(self) -> Mapping[str, str]:
        """Processor name to `module:Class` of a batched logits processor. Engine process."""
        raise NotImplementedError

    @hookspec
    def mainspring_tool_parsers(self) -> Mapping[str, str]:
        """Parser name to `module:Class` of a tool-call text machine. Server process."""
        raise NotImplementedError

    @hookspec
    def mainspring_reasoning_parsers(self) -> Mapping[str, str]:
        """Parser name to `module:Class` of a reasoning text machine. Server process."""
        raise NotImplementedError

    @hookspec
    def mainspring_routes(self) -> Iterable[Any]:
        """Starlette routes to add to the server. Server process."""
        raise NotImplementedError

    @hookspec
    def mainspring_observers(self) -> Iterable[Callable[[Any], None]]:
        """Callables that get every `StepOutput` as the server receives it. Server process."""
        raise NotImplementedError
