"""Mainspring: one LLM inference server for any accelerator.

The public names. They load on first use, so that `import mainspring` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.core.plugins import hookimpl
    from mainspring.core.request import SamplingParams
    from mainspring.server.offline import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from mainspring.server.offline import LLM

        return LLM
    if name == "SamplingParams":
        from mainspring.core.request import SamplingParams

        return SamplingParams
    if name == "hookimpl":
        from mainspring.core.plugins import hookimpl

        return hookimpl
    raise AttributeError(f"module 'mainspring' has no attribute {name!r}")
