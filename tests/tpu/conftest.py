"""Tests that need torch_xla, JAX and libtpu: `make verify-tpu`. Without them they are not collected, and the summary
says so. XLA's host device stands in for a TPU; no TPU is needed, nor used.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

MISSING = [package for package in ("torch_xla", "jax", "libtpu") if importlib.util.find_spec(package) is None]
os.environ.setdefault("PJRT_DEVICE", "CPU")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves the files of this folder alone where the software is missing."""
    return True if MISSING and collection_path.name.startswith("test_") else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out."""
    if MISSING:
        count = len(list(Path(__file__).parent.glob("test_*.py")))
        terminalreporter.write_line(f"tests/tpu: {count} files not collected: no {', '.join(MISSING)}; make verify-tpu")


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    """What torch_xla and transformers warn of is theirs."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
