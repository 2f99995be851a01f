"""`--backend-option` of every shell, checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping

from mainspring.core.errors import BackendError, unknown

OPTIONS = {"graphs": ("on", "off")}
"""The values that each takes, the default first."""


def check_options(given: Mapping[str, str]) -> None:
    """Raises `BackendError` with every option or value that no shell knows."""
    wrong = [unknown("backend option", key, OPTIONS) for key in given if key not in OPTIONS]
    wrong += [
        f"--backend-option {key}={value} is not known; use one of {', '.join(OPTIONS[key])}"
        for key, value in given.items()
        if key in OPTIONS and value not in OPTIONS[key]
    ]
    if wrong:
        raise BackendError(wrong)
