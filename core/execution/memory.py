"""How an error that is about memory is told from others."""

from __future__ import annotations

import torch

_PHRASES = ("out of memory", "not enough memory", "can't allocate memory", "resource_exhausted")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is about memory. torch has a type for it on accelerators only, and XLA says it in text."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return any(phrase in text for phrase in _PHRASES)
