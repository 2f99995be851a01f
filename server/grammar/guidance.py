"""Has grammars checked, one by one, by a process that is ended when it takes too long, and remembers what passed.

A request waits here for its grammar, and nobody waits for the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.frames import pack_frame
from mainspring.core.grammar.messages import AUTO, Check, Checked, CheckStart, GrammarSpec
from mainspring.core.request import Grammar, Ready, Vocabulary
from mainspring.server.engine.client import EngineClient
from mainspring.server.grammar.limits import check_limits
from mainspring.server.text.tokenizer import Tokenizer

COMMAND = (sys.executable, "-P", "-m", "mainspring.core.grammar.checking")
CHECK_SECONDS = 2.0
START_SECONDS = 30.0
MEMORY_BYTES = 512 << 20
"""What the process may take for a grammar."""
KEPT_BYTES = 64 << 20
"""Of grammars that passed, to answer for again."""
MOST_WAITING = 64
"""Grammars that wait for the process, however many requests have the same; more are told to come again."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Guidance:
    """Belongs to the event loop. Nothing is started before the first request with a grammar comes."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        ready: Ready,
        *,
        grammar_engine: str = AUTO,
        command: Sequence[str] = COMMAND,
        seconds: float = CHECK_SECONDS,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._ready = ready
        self._grammar_engine = grammar_engine
        self._command = command
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._vocabulary: Vocabulary | None = None
        self._turn = asyncio.Lock()
        self._waiting: Counter[GrammarSpec] = Counter()
        self._kept: OrderedDict[GrammarSpec, Checked] = OrderedDict()
        self._kept_bytes = 0

    async def grammar(self, spec: GrammarSpec) -> Grammar:
        """What the engine takes. Raises RequestError, also for what would not be enforced."""
        check_limits(spec)
        if (kept := self._kept.get(spec)) is None:
            if spec not in self._waiting and len(self._waiting) >= MOST_WAITING:
                message = "too many grammars wait to be read; try again later"
                raise RequestError(ErrorKind.OVERLOADED, message, retry_after=self._seconds)
            self._waiting[spec] += 1
            try:
                async with self._turn:
                    kept = self._kept.get(spec) or await self._check(spec)
            finally:
                self._waiting[spec] -= 1
                if not self._waiting[spec]:
                    del self._waiting[spec]
        if spec in self._kept:
            self._kept.move_to_end(spec)
        if kept.grammar is None:
            raise RequestError(ErrorKind.INVALID, f"the grammar cannot be used: {kept.error}")
        if kept.warnings:
            raise RequestError(ErrorKind.INVALID, f"{'; '.join(kept.warnings)}; leave it out and check the answer")
        return kept.grammar

    async def aclose(self) -> None:
        """Ends the process. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _check(self, spec: GrammarSpec) -> Checked:
        process = self._process if self._process is not None else await self._start()
        done = False
        try:
            async with asyncio.timeout(self._seconds):
                found = await _ask(process, Check(self._grammar_engine, spec), Checked)
            done = True
        except TimeoutError:
            found = Checked(error=f"reading it takes more than {self._seconds:g} seconds; simplify it")
        except (asyncio.IncompleteReadError, ConnectionError):
            found = Checked(error=f"reading it takes more than {MEMORY_BYTES >> 20} MiB of memory; simplify it")
        finally:
            if not done:  # it may be at work still, also for a request that was cancelled
                await asyncio.shield(self.aclose())
        self._keep(spec, found)
        return found

    async def _start(self) -> asyncio.subprocess.Process:
        """A new process, and at the first time the engine learns the vocabulary."""
        first = self._vocabulary is None
        if self._vocabulary is None:
            self._vocabulary = await asyncio.to_thread(vocabulary_of, self._tokenizer, self._ready)
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                start = CheckStart(self._vocabulary, self._ready.vocab_size, self._grammar_engine, MEMORY_BYTES)
                await _ask(process, start, Checked)
        except BaseException as error:
            await asyncio.shield(self.aclose())
            if isinstance(error, TimeoutError | asyncio.IncompleteReadError | ConnectionError):
                _log.error("the process that reads grammars does not start: %s", type(error).__name__)
                raise RequestError(ErrorKind.INTERNAL, "grammars cannot be read now") from error
            raise
        if first:
            self._engine.teach(self._vocabulary)
        return process

    def _keep(self, spec: GrammarSpec, found: Checked) -> None:
        self._kept[spec] = found
        self._kept_bytes += _size(spec, found)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= _size(*self._kept.popitem(last=False))


def vocabulary_of(tokenizer: Tokenizer, ready: Ready) -> Vocabulary:
    """Every token's bytes; a special token never stands in a text."""
    ids = range(min(tokenizer.vocab_size, ready.vocab_size))
    special = tuple(token for token in ids if tokenizer.is_special(token))
    words = tuple(tokenizer.token_bytes(token) for token in ids)
    return Vocabulary(words, special, ready.eos_token_ids)


async def _ask(process: asyncio.subprocess.Process, message: msgspec.Struct, kind: type[T]) -> T:
    if process.stdin is None or process.stdout is None:
        raise ConnectionError("the process has no pipes")
    process.stdin.write(pack_frame(msgspec.msgpack.encode(message)))
    await process.stdin.drain()
    size = int.from_bytes(await process.stdout.readexactly(4), "big")
    return msgspec.msgpack.decode(await process.stdout.readexactly(size), type=kind)


def _size(spec: GrammarSpec, found: Checked) -> int:
    return 500 + len(spec.text) + (0 if found.grammar is None else len(found.grammar.source))
