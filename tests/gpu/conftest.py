"""Tests that need an NVIDIA GPU. Without one they are not collected, and the summary says so and why.

No marks inside tests: a file here assumes the device, and this rule is the only place that knows whether there is one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.backends.cuda import CudaBackend
from mainspring.core.backend import Unavailable

FOUND = CudaBackend().devices()


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves the files of this folder alone where the backend says that it cannot run."""
    return True if isinstance(FOUND, Unavailable) and collection_path.name.startswith("test_") else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out."""
    if isinstance(FOUND, Unavailable):
        count = len(list(Path(__file__).parent.glob("test_*.py")))
        terminalreporter.write_line(f"tests/gpu: {count} files not collected: {FOUND.reason}; {FOUND.remedy}")
