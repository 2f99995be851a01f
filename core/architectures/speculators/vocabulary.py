"""Whether two models mean the same by their tokens: a draft model of another vocabulary would never be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


def other_words(draft: Path, target: Path) -> str:
    """A sentence with the first token that means something else; empty when none does, or nobody can tell.

    It compares the vocabularies of both directories' `tokenizer.json`. Tokens that were added later may differ: models
    of one family name their special tokens as they like.
    """
    own, theirs = _words(draft), _words(target)
    for token in sorted(own.keys() & theirs.keys()):
        if own[token] != theirs[token]:
            return f"its token {token} is {own[token]!r} and the model's {theirs[token]!r}; use one of the same family"
    return ""


def _words(directory: Path) -> dict[int, str]:
    try:
        found = msgspec.json.decode((directory / "tokenizer.json").read_bytes(), type=_Tokenizer).model.vocab
    except (OSError, msgspec.MsgspecError):
        return {}  # whoever serves the model says what is wrong with its tokenizer
    if isinstance(found, dict):
        return {token: word for word, token in found.items()}
    return {token: str(entry[0]) for token, entry in enumerate(found) if entry}


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[list[Any]]
    """Pieces by number, or with their scores in order (Unigram)."""


class _Tokenizer(msgspec.Struct):
    model: _Model
