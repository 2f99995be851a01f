"""What the server and a process that checks grammars say to each other: frames of msgpack on its two pipes."""

from __future__ import annotations

from typing import Literal

import msgspec

from mainspring.core.request import Grammar, Vocabulary

GrammarKind = Literal["json_schema", "regex", "choice", "ebnf", "lark", "structural_tag"]

AUTO = "auto"
"""Instead of an engine's name: the first that is installed."""


class GrammarSpec(msgspec.Struct, frozen=True, array_like=True):
    """What an answer must be, in no engine's notation."""

    kind: GrammarKind
    text: str
    """A JSON schema, a regular expression for the whole answer, a JSON list of texts, a grammar in GBNF or Lark, or a
    structural tag in XGrammar's form (https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html)."""


class CheckStart(msgspec.Struct, frozen=True, array_like=True):
    """The first frame to the process."""

    vocabulary: Vocabulary
    vocab_size: int
    engine: str
    """Which one to load at once: a name of `store.ENGINES`, or `AUTO`."""
    memory_bytes: int
    """It may grow by so much over what it holds when it is ready."""


class Check(msgspec.Struct, frozen=True, array_like=True):
    """Every further one."""

    engine: str
    """A name of `store.ENGINES`, or `AUTO`."""
    spec: GrammarSpec


class Checked(msgspec.Struct, frozen=True, array_like=True):
    """The answer to each, the first included, which says that the process is ready."""

    grammar: Grammar | None = None
    """What the engine process takes; None with an `error`."""
    warnings: tuple[str, ...] = ()
    """What is not enforced."""
    error: str = ""
