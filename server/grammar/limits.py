"""Bounds on a grammar that can be told from its text, before anything reads it."""

from __future__ import annotations

import json
from typing import Any

from mainspring.core.grammar.messages import GrammarSpec
from mainspring.server.errors import FieldError, invalid

MAX_BYTES = 64 << 10
MAX_DEPTH = 32


def check_limits(spec: GrammarSpec) -> None:
    """Raises `FieldError`."""
    size = len(spec.text.encode(errors="replace"))
    if size > MAX_BYTES:
        raise _refusal(f"it has {size} bytes; at most {MAX_BYTES} are read")
    if spec.kind in ("json_schema", "choice", "structural_tag") and _depth(json.loads(spec.text)) > MAX_DEPTH:
        raise _refusal(f"it is nested more than {MAX_DEPTH} deep")


def _refusal(reason: str) -> FieldError:
    return invalid(f"the grammar cannot be used: {reason}", "grammar")


def _depth(value: Any) -> int:
    """Levels of lists and objects. The body's own bound (64) keeps this from running deep."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0
