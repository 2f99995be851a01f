"""Hooks and the plugin manager. A plugin is an entry point in the group `mainspring`; hooks are found by name.

Loading a plugin runs its module's top level and its hooks, nothing else: no vendor SDK is imported here. A plugin that
fails to import, implements a hook that does not exist, or registers a backend for another contract version is reported
in one sentence and left out; it never takes the others down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import pluggy

from mainspring.core.backend import CONTRACT_VERSION, Backend, DeviceInfo, Unavailable
from mainspring.core.errors import BackendError, unknown

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
    def mainspring_logits_processors(self) -> Mapping[str, str]:
        """Processor name to `module:Class` of a `core.processors.contract.LogitsProcessor`. Engine process."""
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


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend that can run here, the device to open, and why it was taken."""

    backend: Backend
    device: DeviceInfo
    reason: str


@dataclass(frozen=True, slots=True)
class Plugins:
    """What was found: backends by name, the other hooks through `manager`, and what was left out with its reason."""

    manager: pluggy.PluginManager
    backends: Mapping[str, Backend]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Backend name to the sentence that says why it was refused at load."""
    problems: tuple[str, ...] = ()
    """One sentence for each plugin that could not be loaded."""

    def get(self, name: str) -> Backend:
        """The backend called `name`. Raises `BackendError` for one that is unknown or was refused at load."""
        if name in self.refused:
            raise BackendError(self.refused[name])
        if name not in self.backends:
            raise BackendError((unknown("backend", name, self.backends), *self.problems))
        return self.backends[name]

    def choose(self, name: str, index: int = 0) -> Choice:
        """The backend called `name`, or for `auto` the available one with the highest preference.

        Raises `BackendError` with the reason and the remedy when it cannot run here; for `auto`, with every backend's.
        """
        if name != "auto":
            return _choice(self.get(name), index, f"--backend {name} asked for it")
        passed_over: list[str] = []
        for backend in sorted(self.backends.values(), key=lambda backend: (-backend.preference, backend.name)):
            if backend.preference < 0:
                continue
            try:
                return _choice(backend, index, "; ".join((f"{backend.name} is the best available", *passed_over)))
            except BackendError as error:
                passed_over += error.reasons
        raise BackendError(("no backend can run here", *passed_over, *self.refused.values(), *self.problems))

    def models(self) -> dict[str, str]:
        """Architecture name to `module:Class`, from all plugins."""
        found: dict[str, str] = {}
        for mapping in self.manager.hook.mainspring_models():
            found.update(mapping)
        return found

    def logits_processors(self) -> dict[str, str]:
        """Processor name to `module:Class`, from all plugins."""
        found: dict[str, str] = {}
        for mapping in self.manager.hook.mainspring_logits_processors():
            found.update(mapping)
        return found


def load_plugins(points: Iterable[EntryPoint] | None = None) -> Plugins:
    """Loads every installed plugin (or those given) and calls its `mainspring_backends` hook."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    problems = [
        problem
        for point in (entry_points(group=GROUP) if points is None else points)
        if (problem := _register(manager, point)) is not None
    ]
    backends: dict[str, Backend] = {}
    refused: dict[str, str] = {}
    for implementation in manager.hook.mainspring_backends.get_hookimpls():
        for backend in cast("Iterable[Backend]", implementation.function()):
            if (problem := _mismatch(backend, implementation.plugin_name)) is not None:
                refused[backend.name] = problem
            else:
                backends[backend.name] = backend
    return Plugins(manager, backends, refused, tuple(problems))


def _register(manager: pluggy.PluginManager, point: EntryPoint) -> str | None:
    """Adds one plugin; a sentence when it cannot be used."""
    try:
        plugin = point.load()
    except Exception as error:  # noqa: BLE001  a plugin's import may raise anything, and must not take the others down
        return f"plugin {point.name!r} ({point.value}) does not import: {type(error).__name__}: {error}"
    try:
        manager.register(plugin, name=point.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        manager.unregister(plugin)
        return f"plugin {point.name!r} ({point.value}) is not used: {str(error).splitlines()[-1]}. {_hook_hint(error)}"
    return None


def _hook_hint(error: pluggy.PluginValidationError) -> str:
    names = [name for name in vars(Hooks) if name.startswith("mainspring_")]
    given = str(error).partition("unknown hook ")[2].partition(" ")[0].strip("'")
    return unknown("hook", given, names) if given else f"Hooks are: {', '.join(names)}"


def _mismatch(backend: Backend, plugin: str) -> str | None:
    written_for = backend.contract_version
    if written_for == CONTRACT_VERSION:
        return None
    newer, older = ("Mainspring", "plugin") if written_for > CONTRACT_VERSION else ("plugin", "Mainspring")
    return (
        f"backend {backend.name!r} of plugin {plugin!r} is written for contract version {written_for}, and this "
        f"Mainspring speaks version {CONTRACT_VERSION}: upgrade the {newer} or downgrade the {older}"
    )


def _choice(backend: Backend, index: int, reason: str) -> Choice:
    devices = backend.devices()
    if isinstance(devices, Unavailable):
        raise BackendError(f"backend {backend.name!r} is unavailable: {devices.reason}; {devices.remedy}")
    for device in devices:
        if device.index == index:
            return Choice(backend, device, reason)
    have = ", ".join(str(device.index) for device in devices)
    raise BackendError(f"backend {backend.name!r} has no device {index}; it has {have}")
