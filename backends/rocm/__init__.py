"""The ROCm backend: AMD GPUs through torch and Triton.

Here is the hook and nothing else; torch is imported when a device is opened.
"""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.backends.rocm.device import RocmBackend
from mainspring.core.backend import Backend
from mainspring.core.plugins import hookimpl

__all__ = ["RocmBackend", "mainspring_backends"]


@hookimpl
def mainspring_backends() -> Iterable[Backend]:
    """The one backend of this plugin."""
    return (RocmBackend(),)
