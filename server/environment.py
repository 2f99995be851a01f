"""What `--env` prints: the versions that matter when something does not work. Nothing is imported to find them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version

import mainspring

_PACKAGES = ("torch", "triton", "safetensors", "tokenizers", "huggingface-hub", "starlette", "uvicorn", "pydantic")


def environment() -> Iterator[str]:
    """One `name: value` a line."""
    yield f"mainspring: {mainspring.__version__}"
    yield f"python: {platform.python_version()} ({sys.executable})"
    yield f"platform: {platform.platform()}"
    yield f"cores: {os.cpu_count()}"
    yield f"plugins: {', '.join(sorted({point.name for point in entry_points(group='mainspring')})) or 'none'}"
    for package in _PACKAGES:
        yield f"{package}: {_version(package)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
