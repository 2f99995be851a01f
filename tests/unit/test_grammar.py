"""The engines for grammars behind their protocol, on a vocabulary of bytes and a few words: random walks through what
the masks allow end in what was asked for.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import jsonschema
import numpy as np
import pytest

from mainspring.core.errors import RequestError
from mainspring.core.grammar.checking import Checker
from mainspring.core.grammar.guides import Guides
from mainspring.core.grammar.messages import AUTO, Check, GrammarSpec
from mainspring.core.grammar.protocol import GrammarError, Matcher
from mainspring.core.grammar.store import ENGINES, Grammars, installed
from mainspring.core.grammar.waiting import GrammarQueue
from mainspring.core.request import Cancel, Grammar, RequestId, SamplingParams, Submit, Vocabulary

WORDS = (
    b"",
    b"",
    b"<end>",
    *(bytes([byte]) for byte in range(256)),
    b'{"',
    b'": ',
    b"true",
    b"null",
    b'"]',
    b"12",
    b"</",
)
END, CALL_MARK = 2, 1
VOCABULARY = Vocabulary((b"<unk>", b"[CALL]", *WORDS[2:]), (0, CALL_MARK, END), (END,))
SIZE = len(WORDS) + 700
"""Larger than the vocabulary, as models' are."""

OBJECT = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Paris"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 20},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "an object": OBJECT,
    "an enum": {"enum": ["red", "green", 3, None]},
    "an array": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    "a choice of shapes": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"const": "none"}]},
    "a pattern": {"type": "string", "pattern": "^[a-c]{2}-[0-9]$"},
    "a reference": {
        "$ref": "#/$defs/pair",
        "$defs": {
            "pair": {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "items": False, "minItems": 2}
        },
    },
}
REGEXES = [r"[a-c]{2}/[0-9]+", r"(yes|no)( sir)?", r"[0-9]{4}-[0-9]{2}", r"[^x]{3}", r"^ab$"]


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker(VOCABULARY, SIZE)


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(SIZE)
    grammars.learn(VOCABULARY)
    yield grammars
    grammars.close()


def checked(checker: Checker, engine: str, kind: Any, text: Any) -> Grammar:
    found = checker.check(Check(engine, GrammarSpec(kind, text if isinstance(text, str) else json.dumps(text))))
    assert found.grammar is not None, found.error
    assert found.warnings == ()
    return found.grammar


def allowed(matcher: Matcher) -> list[int]:
    mask = np.zeros(-(-SIZE // 32), dtype=np.int32)
    matcher.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(WORDS)]
    return [int(token) for token in np.flatnonzero(bits)]


def walk(matcher: Matcher, seed: int) -> bytes:
    """What a model of noise would say, that ends where it may."""
    draws, said = random.Random(seed), b""
    for _ in range(400):
        tokens = allowed(matcher)
        assert tokens
        token = END if END in tokens and draws.random() < 0.5 else draws.choice(tokens)
        assert matcher.accept(token)
        if token == END:
            return said
        said += VOCABULARY.tokens[token]
    raise AssertionError(f"it never ended: {said!r}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_the_masks_allow_satisfies_the_schema(
    engine: str, name: str, checker: Checker, grammars: Grammars
) -> None:
    grammar = checked(checker, engine, "json_schema", SCHEMAS[name])
    for seed in range(20):
        jsonschema.validate(json.loads(walk(grammars.matcher(grammar), seed)), SCHEMAS[name])


def test_a_string_of_bounded_length_holds_no_control_characters(checker: Checker, grammars: Grammars) -> None:
    # XGrammar 0.2.8 lets them in, which is why it is not the first choice.
    schema = {"type": "string", "maxLength": 4}
    grammar = checked(checker, "llguidance", "json_schema", schema)
    for seed in range(20):
        jsonschema.validate(json.loads(walk(grammars.matcher(grammar), seed)), schema)


@pytest.mark.parametrize("pattern", REGEXES)
def test_what_the_masks_allow_matches_the_whole_expression(
    engine: str, pattern: str, checker: Checker, grammars: Grammars
) -> None:
    grammar = checked(checker, engine, "regex", pattern)
    for seed in range(20):
        said = walk(grammars.matcher(grammar), seed).decode()
        assert re.fullmatch(pattern, said), said


def test_one_of_some_texts(engine: str, checker: Checker, grammars: Grammars) -> None:
    texts = ["yes", 'no "x"', "日本"]
    grammar = checked(checker, engine, "choice", texts)
    assert {walk(grammars.matcher(grammar), seed).decode() for seed in range(40)} == set(texts)


def test_a_grammar_of_the_sender_s_own(engine: str, checker: Checker, grammars: Grammars) -> None:
    grammar = checked(checker, engine, "ebnf", 'root ::= "a" digits "b"\ndigits ::= [0-9]+')
    assert re.fullmatch(r"a\d+b", walk(grammars.matcher(grammar), 1).decode())


def test_a_call_between_marks_and_words_around_it(engine: str, checker: Checker, grammars: Grammars) -> None:
    tag = {"type": "tag", "begin": "<f>", "content": {"type": "json_schema", "json_schema": OBJECT}, "end": "</f>"}
    many = {"type": "tags_with_separator", "tags": [tag], "separator": ";", "at_least_one": True}
    once = checked(checker, engine, "structural_tag", {"type": "structural_tag", "format": many})
    for seed in range(5):
        for call in walk(grammars.matcher(once), seed).decode().split("</f>")[:-1]:
            jsonschema.validate(json.loads(call.removeprefix(";").removeprefix("<f>")), OBJECT)
    free = {"type": "triggered_tags", "triggers": ["<f>"], "tags": [tag], "stop_after_first": False}
    matcher = grammars.matcher(checked(checker, engine, "structural_tag", {"type": "structural_tag", "format": free}))
    for byte in b"words <f>":
        assert matcher.accept(3 + byte)
    assert {VOCABULARY.tokens[token][:1] for token in allowed(matcher)} - {b" ", b"\n", b"\t", b"\r"} == {b"{"}


def test_a_mark_that_is_a_special_token_is_named_by_its_id(engine: str, checker: Checker, grammars: Grammars) -> None:
    mark = {"type": "token", "token": CALL_MARK}
    whole = {"type": "sequence", "elements": [mark, {"type": "json_schema", "json_schema": {"const": 1}}]}
    matcher = grammars.matcher(checked(checker, engine, "structural_tag", {"type": "structural_tag", "format": whole}))
    assert allowed(matcher) == [CALL_MARK]


def test_a_draft_that_is_not_taken_is_rolled_back(engine: str, checker: Checker, grammars: Grammars) -> None:
    matcher = grammars.matcher(checked(checker, engine, "regex", "ab(c|d)"))
    before = allowed(matcher)
    assert [matcher.accept(3 + byte) for byte in b"abc"] == [True] * 3
    assert matcher.accept(END)
    assert not matcher.accept(3 + ord("a"))
    matcher.rollback(2)
    assert {VOCABULARY.tokens[token] for token in allowed(matcher)} == {b"c", b"d"}
    matcher.rollback(2)
    assert allowed(matcher) == before


def test_a_copy_goes_its_own_way(engine: str, checker: Checker, grammars: Grammars) -> None:
    one = grammars.matcher(checked(checker, engine, "regex", "ab"))
    other = one.copy()
    assert one.accept(3 + ord("a"))
    assert {VOCABULARY.tokens[token] for token in allowed(other)} == {b"a"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "(a"),
        ("json_schema", '{"type": "no such type"}'),
        ("json_schema", '{"$ref": "#/nowhere"}'),
        ("ebnf", 'root ::= "a'),
        ("structural_tag", '{"type": "structural_tag", "format": {"type": "nonsense"}}'),
    ],
)
def test_what_cannot_be_read_is_said(engine: str, kind: Any, text: str, checker: Checker) -> None:
    found = checker.check(Check(engine, GrammarSpec(kind, text)))
    assert found.grammar is None
    assert 0 < len(found.error) <= 300


def test_a_keyword_that_is_not_enforced_is_said(checker: Checker) -> None:
    spec = GrammarSpec("json_schema", '{"type": "array", "items": {"type": "integer"}, "uniqueItems": true}')
    assert "uniqueItems" in checker.check(Check("llguidance", spec)).error
    assert "uniqueItems" in checker.check(Check("xgrammar", spec)).warnings[0]


def test_an_engine_that_is_not_there_is_said(checker: Checker) -> None:
    assert "`outlines` is not installed" in checker.check(Check("outlines", GrammarSpec("regex", "a"))).error
    assert (
        checker.check(Check(AUTO, GrammarSpec("regex", "a"))).grammar
        == checker.check(Check(installed()[0], GrammarSpec("regex", "a"))).grammar
    )


def test_a_step_s_tokens_are_taken_when_the_next_step_asks(checker: Checker, grammars: Grammars) -> None:
    grammar, guides = checked(checker, AUTO, "regex", "ab"), Guides(grammars)
    guides.admit(4, grammar, said=[3 + ord("a")])
    guides.admit(5, grammar, said=[])
    guides.admit(6, None, said=[])
    first = guides.masks([4, 5, 6])
    assert [_only(mask) for mask in first] == [3 + ord("b"), 3 + ord("a"), None]
    guides.expect([4, 5], [0, 2], lambda: [3 + ord("b"), 7, 3 + ord("a")])
    guides.catch_up()
    assert [_only(mask) for mask in guides.masks([4, 5])] == [END, 3 + ord("b")]
    assert guides.lost([4, 5, 6]) == [False, False, False]


def test_masks_behind_guesses_and_what_holds_of_them(checker: Checker, grammars: Grammars) -> None:
    a, b, c, z = (3 + ord(letter) for letter in "abcz")
    guides = Guides(grammars)
    for row, text in ((0, "abc"), (1, "aba"), (2, "abc")):
        guides.admit(row, checked(checker, AUTO, "regex", text), said=[])
    guesses = {0: [a, b], 1: [a, z]}
    rows, places = [0, 0, 0, 1, 1, 1, 2], [0, 1, 2, 3, 4, 5, 6]
    for _ in range(2):  # making masks moves nobody
        # Behind what the grammar rules out anything may come: it is not kept.
        assert [_only(mask) for mask in guides.masks(rows, guesses)] == [a, b, c, a, b, None, a]
    # Row 0 goes on by two guesses and a choice, row 1 to the choice in the place of its wrong guess.
    guides.expect(rows, places, lambda: [a, b, c, a, b, z, a], guesses)
    guides.catch_up()
    assert [_only(mask) for mask in guides.masks([0, 1, 2])] == [END, a, b]
    assert guides.lost([0, 1, 2]) == [False] * 3


def test_a_choice_astray_behind_right_guesses_loses_its_sequence(checker: Checker, grammars: Grammars) -> None:
    a, z = 3 + ord("a"), 3 + ord("z")
    guides = Guides(grammars)
    guides.admit(0, checked(checker, AUTO, "regex", "ab"), said=[])
    guides.expect([0, 0], [0, 1], lambda: [a, z], {0: [a]})
    guides.catch_up()
    assert guides.lost([0]) == [True]


def test_a_sequence_that_leaves_its_grammar_is_lost(checker: Checker, grammars: Grammars) -> None:
    grammar, guides = checked(checker, AUTO, "regex", "ab"), Guides(grammars)
    guides.admit(0, grammar, said=[])
    guides.expect([0], [0], lambda: [3 + ord("z")])
    guides.catch_up()
    assert guides.lost([0]) == [True]
    assert (guides.masks([0]) == -1).all()
    guides.admit(0, grammar, said=[])
    assert guides.lost([0]) == [False]


def _only(mask: Any) -> int | None:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(WORDS)]
    return int(np.flatnonzero(bits)[0]) if bits.sum() == 1 else None


class _Slow(Grammars):
    """Reads when it is told to."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.followed = True
        self.reading: list[Future[None]] = []

    def prepare(self, grammar: Grammar) -> Future[None]:
        self.reading.append(Future())
        return self.reading[-1]


def _submit(number: int, grammar: Grammar | None) -> Submit:
    return Submit(RequestId(number), [1], SamplingParams(grammar=grammar))


def test_requests_wait_for_their_grammar_and_for_no_other() -> None:
    slow, grammar = _Slow(), Grammar("llguidance", "x")
    waiting = GrammarQueue(slow)
    assert not waiting.add(_submit(0, None))
    assert waiting.add(_submit(1, grammar))
    assert waiting.add(_submit(2, grammar))
    assert not waiting.cancel(Cancel(RequestId(9)))
    assert waiting.cancel(Cancel(RequestId(2)))
    slow.reading[1].set_result(None)
    ((submit, problem, cancels),) = waiting.ready()
    assert (submit.request_id, problem, len(cancels)) == (2, None, 1)
    slow.reading[0].set_exception(GrammarError("it is no grammar"))
    ((submit, problem, cancels),) = waiting.ready()
    assert problem is not None
    assert "it is no grammar" in problem.message
    assert len(waiting) == 0


def test_an_engine_that_follows_no_grammars_refuses_them() -> None:
    with pytest.raises(RequestError, match="follows no grammars"):
        GrammarQueue(Grammars(SIZE)).add(_submit(1, Grammar("llguidance", "x")))
