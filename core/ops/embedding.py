"""Embedding lookup."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def embedding(tokens_T: Tensor, weight_VE: Tensor) -> Tensor:
    """Rows of the table: [T] int -> [T, E]."""
    return F.embedding(tokens_T, weight_VE)
