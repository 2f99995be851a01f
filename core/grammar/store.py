"""The grammars of an engine process: read once each, on a thread, and copied for every sequence."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from threading import Lock, get_native_id
from types import MappingProxyType

from mainspring.core.grammar.protocol import GrammarEngine, GrammarError, Matcher
from mainspring.core.request import Grammar, Vocabulary

ENGINES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "llguidance": ("mainspring.core.grammar.llguidance", "LLGuidance"),
        "xgrammar": ("mainspring.core.grammar.xgrammar", "XGrammar"),
    }
)
"""Module and class of each engine, by the name that a `Grammar` has. Those come first that are preferred."""
NICENESS = 10
"""Of the thread that reads them: a tenth of the share of one that is not nice."""
MOST_GRAMMARS = 256
"""Kept for further requests. Each is a megabyte or so, bounded by its engine's limits."""


def installed() -> tuple[str, ...]:
    """Engines whose package is there."""
    return tuple(name for name in ENGINES if find_spec(name) is not None)


def open_engine(name: str, vocabulary: Vocabulary, vocab_size: int) -> GrammarEngine:
    """Raises `GrammarError` for an engine that is not installed."""
    if name not in ENGINES or find_spec(name) is None:
        raise GrammarError(
            f"the grammar engine `{name}` is not installed; there are {', '.join(installed()) or 'none'}"
        )
    module, kind = ENGINES[name]
    make: Callable[[Vocabulary, int], GrammarEngine] = getattr(import_module(module), kind)
    return make(vocabulary, vocab_size)


def _step_back() -> None:
    """Where processors are few, this thread's share goes to those that compute steps: Linux has threads be nice."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICENESS)


class Grammars:
    """Gives matchers. Safe to use from several threads."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.followed = False
        """Whether an executor holds sequences to them."""
        self._vocabulary: Vocabulary | None = None
        self._engines: dict[str, GrammarEngine] = {}
        self._read: OrderedDict[Grammar, Matcher] = OrderedDict()
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, "grammar", initializer=_step_back)

    def learn(self, vocabulary: Vocabulary) -> None:
        """Takes the model's vocabulary, without which no grammar can be read."""
        with self._lock:
            self._vocabulary = vocabulary
            self._engines.clear()
            self._read.clear()

    def prepare(self, grammar: Grammar) -> Future[None]:
        """Reads a grammar on a thread. The future raises `GrammarError`."""
        return self._thread.submit(self._prepare, grammar)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning; at once for a grammar that was prepared lately. Raises `GrammarError`."""
        self._prepare(grammar)
        with self._lock:
            return self._read[grammar].copy()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, grammar: Grammar) -> None:
        with self._lock:
            if grammar in self._read:
                self._read.move_to_end(grammar)
                return
            engine = self._engine(grammar.engine)
        matcher = engine.matcher(grammar.source)
        with self._lock:
            self._read[grammar] = matcher
            while len(self._read) > MOST_GRAMMARS:
                self._read.popitem(last=False)

    def _engine(self, name: str) -> GrammarEngine:
        if self._vocabulary is None:
            raise GrammarError("the model's vocabulary is not known, so no grammar can be followed")
        if name not in self._engines:
            self._engines[name] = open_engine(name, self._vocabulary, self.vocab_size)
        return self._engines[name]
