"""XGrammar (Dong et al. 2024, https://github.com/mlc-ai/xgrammar): a pushdown automaton, compiled with masks for all
tokens that are right or wrong whatever came before. It leaves out schema keywords that it does not know, which is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

import xgrammar

from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.grammar.protocol import GrammarError, Mask, Matcher
from mainspring.core.request import Vocabulary

UNENFORCED = frozenset(
    {
        "uniqueItems", "contains", "minContains", "maxContains", "not", "if", "then", "else", "dependentRequired",
        "dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "contentSchema",
    }
)  # fmt: skip
"""Keywords of JSON Schema 2020-12 that compile and have no effect on what comes, or not theirs."""
FORMATS = frozenset(
    {
        "duration", "email", "hostname", "ipv4", "ipv6", "json-pointer", "relative-json-pointer", "time",
        "uri", "uri-reference", "uri-template", "uuid",
    }
)  # fmt: skip
"""Formats that it holds answers to. Of dates it does not know how long months are."""
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values are schemas by names that mean nothing here."""
DATA = ("enum", "const", "default", "examples")
"""Keywords whose values are no schemas."""
NOTES = frozenset({"$defs", "definitions", "title", "description", "default", "examples", "$comment", "$schema", "$id"})
"""Keywords that ask for nothing where they stand beside a `$ref` or alternatives."""
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
        """What `unenforced` finds in a schema."""
        self._compiled(source)
        given = json.loads(source)
        if given["kind"] in ("regex", "ebnf"):
            return ()
        return tuple(sorted({f"{what} is not enforced by XGrammar" for what in unenforced(json.loads(given["text"]))}))

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


def unenforced(schema: Any) -> Iterator[str]:
    """What a schema, or a structural tag with schemas in it, says without effect (XGrammar 0.2.8, found by trying)."""
    if isinstance(schema, list):
        yield from chain.from_iterable(map(unenforced, schema))
    if not isinstance(schema, dict):
        return
    yield from (f"the schema's keyword `{keyword}`" for keyword in schema if keyword in UNENFORCED)
    yield from _beside(schema)
    for keyword, value in schema.items():
        if keyword in SCHEMAS_BY_NAME and isinstance(value, dict):
            yield from chain.from_iterable(map(unenforced, value.values()))
        elif keyword not in DATA:
            yield from unenforced(value)


def _beside(schema: dict[str, Any]) -> Iterator[str]:
    """Keywords that it enforces, though not like this."""
    reference, named = schema.get("$ref"), schema.get("format")
    if isinstance(reference, str) and not (reference == "#" or reference.startswith("#/")):
        yield f"the schema's reference {reference[:64]!r}, which is no path,"
    for keyword in ("$ref", "anyOf", "oneOf"):
        if keyword in schema and (others := sorted(schema.keys() - NOTES - {keyword})):
            yield f"the schema's keyword `{others[0]}` beside `{keyword}`"
    if any(character in pattern for pattern in _patterns(schema) for character in ('"', "\\\\")):
        yield "the schema's pattern with a quote or a backslash, as a JSON text has it,"
    if "multipleOf" in schema and schema.get("type") != "integer":
        yield "the schema's keyword `multipleOf` of other numbers than integers"
    if isinstance(named, str) and named not in FORMATS:
        yield f"the schema's format {named[:64]!r}"
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1:
        yield "the schema's keyword `allOf` with more than one part"
    if isinstance(schema.get("oneOf"), list) and not _exclusive(schema["oneOf"]):
        yield "that only one part of the schema's `oneOf` fits"
    open_properties = schema.get("additionalProperties", True) is not False
    if open_properties and (
        missing := [name for name in _names(schema, "required") if name not in _names(schema, "properties")]
    ):
        yield f"the schema's required property {missing[0][:64]!r}, which is not in `properties`,"


def _patterns(schema: dict[str, Any]) -> Iterator[str]:
    own, by_name = schema.get("pattern"), schema.get("patternProperties")
    yield from (
        pattern for pattern in (own, *(by_name if isinstance(by_name, dict) else ())) if isinstance(pattern, str)
    )


def _names(schema: dict[str, Any], keyword: str) -> list[str]:
    return [name for name in schema.get(keyword) or () if isinstance(name, str)]


def _exclusive(parts: list[Any]) -> bool:
    """Whether no text fits two parts: constants, types, or constants in a property that all require tell them apart."""
    given = [part if isinstance(part, dict) else {} for part in parts]
    tags = set.intersection(*(set(_names(part, "required")) & set(_names(part, "properties")) for part in given))
    tagged = ([_constants(part["properties"][name]) for part in given] for name in sorted(tags))
    return any(map(_disjoint, ([*map(_constants, given)], [*map(_types, given)], *tagged)))


def _disjoint(ways: list[frozenset[str]]) -> bool:
    """Whether all are known and none has anything of another's."""
    return all(ways) and len(frozenset().union(*ways)) == sum(map(len, ways))


def _constants(part: Any) -> frozenset[str]:
    """What its texts are; nothing: unknown."""
    if not isinstance(part, dict):
        return frozenset()
    values = [part["const"]] if "const" in part else part.get("enum")
    return frozenset(map(json.dumps, values)) if isinstance(values, list) else frozenset()


def _types(part: dict[str, Any]) -> frozenset[str]:
    named = part.get("type", ())
    return frozenset("number" if name == "integer" else name for name in ([named] if isinstance(named, str) else named))
