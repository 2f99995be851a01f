"""Plugins: found by entry point, refused in one sentence, never taking others down."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError
from mainspring.core.plugins import GROUP, Plugins, hookimpl, load_plugins


class Fake(Backend):
    """A backend whose answers are given to it."""

    name = "fake"
    contract_version = 1

    def __init__(self, name: str = "fake", devices: list[DeviceInfo] | Unavailable | None = None) -> None:
        self.name = name  # type: ignore[misc]
        self._devices = [DeviceInfo(0, "Fake", "none", 1 << 30)] if devices is None else devices

    def devices(self) -> list[DeviceInfo] | Unavailable:
        return self._devices

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        return Capabilities(compute_dtypes=("float32",), kv_dtypes=())

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        raise AssertionError("not opened here")


class Preferred(Fake):
    preference = 100


class Simulator(Fake):
    preference = -1


@pytest.fixture
def module(request: pytest.FixtureRequest) -> Iterator[types.ModuleType]:
    """An empty importable module."""
    module = types.ModuleType("plugin_under_test")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def load(module: types.ModuleType, *backends: Backend) -> Plugins:
    @hookimpl
    def mainspring_backends() -> tuple[Backend, ...]:
        return backends

    module.mainspring_backends = mainspring_backends  # type: ignore[attr-defined]
    return load_plugins([EntryPoint("under_test", module.__name__, GROUP)])


def test_a_backend_is_found_by_name(module: types.ModuleType) -> None:
    backend = Fake()
    plugins = load(module, backend)
    assert plugins.get("fake") is backend
    assert plugins.problems == ()


def test_an_unknown_name_offers_the_nearest(module: types.ModuleType) -> None:
    with pytest.raises(BackendError, match="unknown backend 'fkae'; did you mean 'fake'"):
        load(module, Fake()).get("fkae")


@pytest.mark.parametrize(("version", "upgrade"), [(2, "upgrade the Mainspring"), (0, "upgrade the plugin")])
def test_another_contract_version_is_refused_in_a_sentence(
    module: types.ModuleType, version: int, upgrade: str
) -> None:
    backend = Fake()
    backend.contract_version = version  # type: ignore[misc]
    plugins = load(module, backend, Fake("other"))
    with pytest.raises(BackendError, match=f"written for contract version {version}.*version 1: {upgrade}"):
        plugins.get("fake")
    assert plugins.get("other").name == "other"


def test_a_misspelt_hook_is_named_with_the_nearest(module: types.ModuleType) -> None:
    @hookimpl
    def mainspring_backend() -> list[Backend]:
        return []

    module.mainspring_backend = mainspring_backend  # type: ignore[attr-defined]
    (problem,) = load(module, Fake()).problems
    assert "under_test" in problem
    assert "did you mean 'mainspring_backends'" in problem


def test_a_plugin_that_does_not_import_leaves_the_others_alone(module: types.ModuleType) -> None:
    @hookimpl
    def mainspring_backends() -> list[Backend]:
        return [Fake()]

    module.mainspring_backends = mainspring_backends  # type: ignore[attr-defined]
    points = [EntryPoint("broken", "no_such_module_anywhere", GROUP), EntryPoint("good", module.__name__, GROUP)]
    plugins = load_plugins(points)
    assert "fake" in plugins.backends
    assert "plugin 'broken' (no_such_module_anywhere) does not import" in plugins.problems[0]


def test_a_missing_sdk_says_what_to_install(module: types.ModuleType) -> None:
    absent = Fake(devices=Unavailable("the SDK is not installed", "pip install the-sdk"))
    with pytest.raises(BackendError, match="'fake' is unavailable: the SDK is not installed; pip install the-sdk"):
        load(module, absent).choose("fake")


def test_auto_takes_the_most_preferred_that_is_available_and_says_why(module: types.ModuleType) -> None:
    absent = Preferred("first", Unavailable("no driver", "install one"))
    choice = load(module, Fake("plain"), absent, Simulator("toy")).choose("auto")
    assert choice.backend.name == "plain"
    assert "no driver" in choice.reason


def test_auto_never_takes_a_simulator(module: types.ModuleType) -> None:
    with pytest.raises(BackendError, match="no backend can run here"):
        load(module, Simulator("toy")).choose("auto")


def test_an_absent_device_index_lists_those_there_are(module: types.ModuleType) -> None:
    with pytest.raises(BackendError, match="has no device 3; it has 0"):
        load(module, Fake()).choose("fake", 3)
