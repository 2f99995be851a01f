"""The CPU backend: torch on the host's cores. Also what the other backends are compared with.

Here is the hook and nothing else; torch is imported when a device is opened.
"""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.backends.cpu.device import CpuBackend
from mainspring.core.backend import Backend
from mainspring.core.plugins import hookimpl

__all__ = ["CpuBackend", "mainspring_backends"]


@hookimpl
def mainspring_backends() -> Iterable[Backend]:
    """The one backend of this plugin."""
    return (CpuBackend(),)
