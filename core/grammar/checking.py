"""A process that reads grammars which nobody trusts: `python -m mainspring.core.grammar.checking`.

Reading one may take minutes and gigabytes if it was made to, so it happens where both are bounded, and where whoever
waits can end it. Steps and answers come first where processors are few. What passes is read again by the engine
process, whose engines have limits of their own for each step.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mainspring.core import lifeline
from mainspring.core.errors import ChannelClosed
from mainspring.core.frames import pack_frame, read_frame
from mainspring.core.grammar.messages import AUTO, Check, Checked, CheckStart, GrammarSpec
from mainspring.core.grammar.protocol import GrammarEngine, GrammarError
from mainspring.core.grammar.store import installed, open_engine
from mainspring.core.request import Grammar, Vocabulary

NICENESS = 5
"""A third of the share of who is not nice: what takes milliseconds still does, where steps need all processors."""


class Checker:
    """Turns what a request asks for into what an engine takes."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._engines: dict[str, GrammarEngine] = {}

    def open(self, name: str) -> None:
        """Loads an engine, so that no request waits for that."""
        with contextlib.suppress(GrammarError):
            self._open(self._engine_for(name))

    def check(self, asked: Check) -> Checked:
        """Never raises for what a request says."""
        try:
            return self._read(self._engine_for(asked.engine), asked.spec)
        except MemoryError:
            return Checked(error="reading it takes too much memory; simplify it")
        except GrammarError as error:
            return Checked(error=str(error))

    def _open(self, name: str) -> GrammarEngine:
        if name not in self._engines:
            self._engines[name] = open_engine(name, self._vocabulary, self._vocab_size)
        return self._engines[name]

    def _engine_for(self, name: str) -> str:
        there = installed()
        if name != AUTO:
            return name
        if not there:
            raise GrammarError("no grammar engine is installed; pip install llguidance")
        return there[0]

    def _read(self, name: str, spec: GrammarSpec) -> Checked:
        engine = self._open(name)
        source = engine.source(spec)
        engine.matcher(source)
        return Checked(Grammar(name, source), engine.warnings(source))


def main() -> int:
    """Answers frame by frame until standard input ends."""
    lifeline.tie_to_parent(os.getppid())
    _step_back()
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print
    with contextlib.suppress(ChannelClosed), os.fdopen(answers, "wb") as out:
        start = msgspec.msgpack.decode(read_frame(_read), type=CheckStart)
        checker = Checker(start.vocabulary, start.vocab_size)
        checker.open(start.engine)
        _limit_memory(start.memory_bytes)
        for answer in _answers(checker):
            out.write(pack_frame(msgspec.msgpack.encode(answer)))
            out.flush()
    return 0


def _answers(checker: Checker) -> Iterator[Checked]:
    yield Checked()
    decoder = msgspec.msgpack.Decoder(Check)
    while True:
        yield checker.check(decoder.decode(read_frame(_read)))


def _read(size: int) -> bytes:
    return os.read(sys.stdin.fileno(), size)


def _step_back() -> None:
    """As the thread of `store.py` does, for a whole process."""
    os.nice(NICENESS)
    # Linux may share processors among sessions first, and this process has one of its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def _limit_memory(more: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[5]) if Path("/proc/self/statm").exists() else 0
    if pages:
        bound = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


if __name__ == "__main__":
    sys.exit(main())
