"""Numerics of `backends/triton` on any host, in Triton's interpreter: `make verify-rocm`, or with Triton
`TRITON_INTERPRET=1 pytest tests/interpreted`.

Triton decides when a kernel is defined whether it will be interpreted, so one process cannot do both: without the
variable, or without Triton, the files here are not collected, and the summary says so.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

INTERPRETED = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """Triton's own way with arrays of one element, which numpy means to refuse one day."""
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves the files of this folder alone where kernels would not be interpreted."""
    return True if not INTERPRETED and collection_path.name.startswith("test_") else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out."""
    if not INTERPRETED:
        count = len(list(Path(__file__).parent.glob("test_*.py")))
        terminalreporter.write_line(
            f"tests/interpreted: {count} file not collected: Triton is not installed or TRITON_INTERPRET is not 1"
        )
