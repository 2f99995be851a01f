"""Backends on stand-in devices. A process has one device of torch's Python kind, so each stand-in has its own process.

`test_processes.py` starts them, as `STANDIN=gaudi pytest tests/standins/gaudi` does by hand; the folders of the vendors
are collected by nobody else.
"""

from __future__ import annotations

import os
from pathlib import Path

ASKED = os.environ.get("STANDIN", "")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """A vendor's folder belongs to its own process, and so does the rest to the others."""
    vendor = collection_path.parent.name
    if collection_path.name == "test_processes.py":
        return True if ASKED else None
    if collection_path.name == "test_conformance.py":
        return True if vendor != ASKED else None
    if vendor in ("gaudi", "neuron") and collection_path.name.startswith("test_"):
        return True if ASKED.partition("-")[0] != vendor else None
    return None
