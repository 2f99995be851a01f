"""llguidance (https://github.com/guidance-ai/llguidance): masks computed as they are needed, by derivatives of regular
expressions under an Earley parser. A schema keyword that it does not enforce is an error, unless it is a mere note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import llguidance
import llguidance.numpy
import numpy as np
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from mainspring.core.grammar import lark
from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.grammar.protocol import GrammarError, Mask, Matcher
from mainspring.core.request import Vocabulary

LIMITS: Mapping[str, Any] = {
    "initial_lexer_fuel": 2_000_000,  # 40 ms
    "step_lexer_fuel": 100_000,  # 7 ms
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,  # 100 MB
    "max_grammar_size": 200_000,
}
"""Of one grammar, and of one step in it: what a sequence costs others at worst. Times as llguidance gives them."""
WHITESPACE = r"[ \n]{0,2}"
"""Between two parts of a JSON text: models left free write blanks for ever."""
JSON_OPTIONS: Any = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}


class LLGuidance:
    """A `GrammarEngine`. Sources are Lark as llguidance extends it, or its own JSON."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        words = llguidance.TokenizerWrapper(_Words(vocabulary, vocab_size))
        self._tokenizer = llguidance.LLTokenizer(words, n_vocab=vocab_size, eos_token=list(vocabulary.ends))
        self._ends = frozenset(vocabulary.ends)
        self._limits = llguidance.LLParserLimits(**LIMITS)

    def source(self, spec: GrammarSpec) -> str:
        """In Lark, or in llguidance's JSON."""
        try:
            return self._source(spec)
        except (ValueError, KeyError, TypeError, GbnfToLarkError) as error:
            raise GrammarError(_brief(f"{spec.kind} cannot be read: {error}")) from error

    def _source(self, spec: GrammarSpec) -> str:
        match spec.kind:
            case "json_schema":
                return str(llguidance.LLMatcher.grammar_from_json_schema(spec.text, defaults=JSON_OPTIONS))
            case "regex":
                return str(llguidance.LLMatcher.grammar_from_regex(spec.text))
            case "choice":
                return lark.choice(json.loads(spec.text))
            case "lark":
                return spec.text
            case "ebnf":
                return gbnf_to_lark(spec.text)
            case "structural_tag":
                return lark.TagGrammar(json.loads(spec.text), WHITESPACE).text

    def matcher(self, source: str) -> Matcher:
        """A new one. The interpreter's lock is not held meanwhile."""
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        _check(matcher)
        return LLGuidanceMatcher(matcher, self._ends)

    def warnings(self, source: str) -> tuple[str, ...]:
        """Of `validate_grammar_with_warnings`."""
        failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            source, self._tokenizer, limits=self._limits
        )
        if failed:
            raise GrammarError(_brief(messages[0]))
        return tuple(map(_brief, messages))


class LLGuidanceMatcher:
    """A `Matcher`."""

    def __init__(self, matcher: llguidance.LLMatcher, ends: frozenset[int], ended: int = 0) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ended = ended
        """Ends that were accepted: llguidance knows none behind the grammar's own."""

    def fill(self, mask_W: Mask) -> None:
        """By one token mask, computed now."""
        try:
            llguidance.numpy.fill_next_token_bitmask(self._matcher, mask_W[np.newaxis, :])
        except ValueError as error:
            raise GrammarError(_brief(str(error))) from error
        _check(self._matcher)

    def accept(self, token: int) -> bool:
        """An end of the sequence is accepted where the grammar may end, and nothing behind it."""
        if token in self._ends:
            may_end = self._matcher.is_stopped() or self._matcher.is_accepting()
            self._ended += may_end
            return bool(may_end)
        return not self._ended and bool(self._matcher.try_consume_tokens([token]) == 1)

    def rollback(self, count: int) -> None:
        """As far back as one likes."""
        ends = min(count, self._ended)
        self._ended -= ends
        self._matcher.rollback(count - ends)

    def copy(self) -> LLGuidanceMatcher:
        """Shares what was computed for the grammar."""
        return LLGuidanceMatcher(self._matcher.deep_copy(), self._ends, self._ended)


class _Words:
    """A vocabulary as llguidance's wrapper reads it."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        # Ids without a token are there in the model's logits and its masks.
        self.tokens = [*vocabulary.tokens, *[b""] * (vocab_size - len(vocabulary.tokens))]
        self.special_token_ids = list(vocabulary.special)
        self.eos_token_id = vocabulary.ends[0]
        self.bos_token_id: int | None = None
        self._ids = {word: number for number, word in reversed(list(enumerate(self.tokens))) if word}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text, the longest word first: not the model's own way, but any ids with these bytes will do."""
        whole = text if isinstance(text, bytes) else text.encode()
        ids, at = [], 0
        while at < len(whole):
            for size in range(min(self._longest, len(whole) - at), 0, -1):
                if (found := self._ids.get(whole[at : at + size])) is not None:
                    ids.append(found)
                    break
            at += size
        return ids


def _check(matcher: llguidance.LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarError(_brief(matcher.get_error()))


def _brief(message: str) -> str:
    """The first line, which says what; the rest is a trace or the grammar."""
    return message.strip().splitlines()[0][:300] if message.strip() else "the grammar cannot be read"
