"""{{cookiecutter.title}} as Mainspring sees it. What is not said here falls back to the reference in Mainspring's core."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psutil

from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, KVSpec, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    from mainspring.core.ops.attention import PagedKV


class {{cookiecutter.title}}Backend(Backend):
    """Answers questions about the machine without touching it."""

    name = "{{cookiecutter.name}}"
    contract_version = 1  # a literal: the version this file was written for
    preference = 1

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """What can be opened here, or why nothing can and what to do about it."""
        if importlib.util.find_spec("torch") is None:
            return Unavailable("torch is not installed", "pip install 'mainspring[cpu]'")
        return [DeviceInfo(0, "{{cookiecutter.title}}", "beads", psutil.virtual_memory().total)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """Declared before anything is loaded; the core asks this and never a name."""
        return Capabilities(
            compute_dtypes=("float32",),
            kv_dtypes=("float32",),
            block_sizes=(16, 32),
            attention=frozenset({"sliding_window", "softcap", "sinks"}),
            default_memory_fraction=0.25,
            verified="L5",
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Opens the device; `--backend-option` keys that it does not know are refused."""
        if options.backend_options:
            raise BackendError([unknown("backend option", key, ()) for key in options.backend_options])
        return {{cookiecutter.title}}Device()


class {{cookiecutter.title}}Device(Device):
    """One opened device, which torch reaches as `cpu`."""

    torch_device = "cpu"

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        host = psutil.virtual_memory()
        return host.available, host.total

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        """The reference's layout, which the reference's attention reads."""
        from mainspring.core.ops.attention import PagedKV

        return PagedKV.allocate(spec, num_blocks, self.torch_device)

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """By name, those that it does in its own way."""
        return {}
