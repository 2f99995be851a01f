"""XGrammar (Dong et al. 2024, https://github.com/mlc-ai/xgrammar): a pushdown automaton, compiled with masks for all
tokens that are right or wrong whatever came before. It leaves out schema keywords that it does not know, which is told.
"""

from __future__ import annotations

import json
from typing import Any

import xgrammar

from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.grammar.protocol import GrammarError, Mask, Matcher
from mainspring.core.request import Vocabulary

UNENFORCED = frozenset(
    {
        "uniqueItems", "contains", "minContains", "maxContains", "not", "if", "then", "else", "dependentRequired",
        "dependentSchemas", "multipleOf",
    }
)  # fmt: skip
"""Keywords of JSON Schema 2020-12 that compile and have no effect on what comes."""
CACHE_BYTES = 256 << 20
MOST_WHITESPACE = 2
"""Between two parts of a JSON text: models left free write blanks for ever."""


class XGrammar:
    """A `GrammarEngine`. A source is JSON: `{"kind": ..., "text": ...}`, the kind one of a `GrammarSpec`."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        special = frozenset(vocabulary.special)
        # No text spells a special token; a structural tag may name it by its id all the same.
        words = [b"\xff" + word if number in special else word for number, word in enumerate(vocabulary.tokens)]
        information = xgrammar.TokenizerInfo(
            words, xgrammar.VocabType.RAW, vocab_size=vocab_size, stop_token_ids=list(vocabulary.ends)
        )
        self._compiler = xgrammar.GrammarCompiler(information, max_threads=1, cache_limit_bytes=CACHE_BYTES)

    def source(self, spec: GrammarSpec) -> str:
        """The same, choices as EBNF."""
        if spec.kind == "lark":
            raise GrammarError("XGrammar reads no Lark; ask for llguidance")
        if spec.kind == "choice":
            rule = "root ::= " + " | ".join(map(json.dumps, json.loads(spec.text)))
            return json.dumps({"kind": "ebnf", "text": rule})
        return json.dumps({"kind": spec.kind, "text": spec.text})

    def matcher(self, source: str) -> Matcher:
        """A new one of a grammar that is compiled now, unless it was."""
        return XGrammarMatcher(xgrammar.GrammarMatcher(self._compiled(source)))

    def warnings(self, source: str) -> tuple[str, ...]:
        """The keywords of `UNENFORCED` that a schema has."""
        self._compiled(source)
        given = json.loads(source)
        if given["kind"] == "regex":
            return ()
        found = sorted(_keywords(json.loads(given["text"]))) if given["kind"] != "ebnf" else ()
        return tuple(f"the schema's keyword `{keyword}` is not enforced" for keyword in found)

    def _compiled(self, source: str) -> xgrammar.CompiledGrammar:
        given = json.loads(source)
        compilers = {
            "json_schema": lambda text: self._compiler.compile_json_schema(
                text, strict_mode=False, max_whitespace_cnt=MOST_WHITESPACE
            ),
            "regex": self._compiler.compile_regex,
            "ebnf": self._compiler.compile_grammar,
            "structural_tag": self._compiler.compile_structural_tag,
        }
        try:
            return compilers[given["kind"]](given["text"])
        except (RuntimeError, ValueError, TypeError) as error:
            raise GrammarError(str(error).strip().splitlines()[-1][:300]) from error


class XGrammarMatcher:
    """A `Matcher`."""

    def __init__(self, matcher: xgrammar.GrammarMatcher) -> None:
        self._matcher = matcher

    def fill(self, mask_W: Mask) -> None:
        """A grammar that has ended allows anything: what comes is dropped."""
        if self._matcher.is_terminated():
            mask_W.fill(-1)
        else:
            self._matcher.fill_next_token_bitmask(mask_W.reshape(1, -1))

    def accept(self, token: int) -> bool:
        """Nothing comes after the end."""
        return not self._matcher.is_terminated() and bool(self._matcher.accept_token(token))

    def rollback(self, count: int) -> None:
        """As far back as one likes."""
        self._matcher.rollback(count)

    def copy(self) -> XGrammarMatcher:
        """Shares the compiled grammar."""
        return XGrammarMatcher(self._matcher.fork())


def _keywords(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_keywords, schema))
    if not isinstance(schema, dict):
        return set()
    return set(UNENFORCED & schema.keys()).union(*map(_keywords, schema.values()))
