"""The policy of a beam search, and what requests may say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from mainspring.server.beams.form import BeamFields, beams_of
from mainspring.server.beams.search import Beams, BeamSearch
from mainspring.server.errors import FieldError


@dataclass(frozen=True)
class Beginning:
    name: str
    logprob: float
    length: int
    ended: bool = False


ROOT = Beginning("", 0.0, 0)


def search(beams: Beams) -> BeamSearch[Beginning]:
    return BeamSearch(beams, ROOT, max_tokens=10)


def names(found: BeamSearch[Beginning]) -> list[str]:
    return [answer.name for _, answer in found.answers()]


def test_an_end_that_is_not_among_the_best_is_no_answer() -> None:
    found = search(Beams(2))
    found.advance([Beginning("c", -3, 1, ended=True), Beginning("b", -2, 1), Beginning("a", -1, 1)])
    assert [beginning.name for beginning in found.running] == ["a", "b"]
    assert names(found) == []


def test_answers_are_ranked_by_their_length_too() -> None:
    for penalty, best in ((0.0, "short"), (2.0, "long")):
        found = search(Beams(2, length_penalty=penalty))
        found.advance([Beginning("short", -2, 1, ended=True), Beginning("a", -1, 1)])
        found.advance([Beginning("long", -3, 2, ended=True), Beginning("b", -4, 2)])
        assert names(found)[0] == best


def test_it_goes_on_while_a_beginning_may_become_better() -> None:
    answers = [Beginning("x", -2, 1, ended=True), Beginning("y", -2.5, 1, ended=True)]
    for stopping, penalty, done in ((True, 1.0, True), (False, 1.0, False), (False, -1.0, True), ("never", 0.0, False)):
        found = search(Beams(2, penalty, stopping))
        found.advance(answers)
        found.running = [Beginning("a", -2.4, 2)]
        assert found.done is done, (stopping, penalty)
    found = search(Beams(2, 0.0, "never"))
    found.advance(answers)
    found.running = [Beginning("a", -2.6, 2)]
    assert found.done


def test_nothing_to_extend_is_an_end() -> None:
    found = search(Beams(4))
    found.advance([Beginning("only", -1, 1, ended=True)])
    assert found.done
    assert names(found) == ["only"]


def asked(**fields: Any) -> BeamFields:
    names = [name for name in BeamFields.__slots__ if name not in ("drawing", "stream")]
    given: dict[str, Any] = dict.fromkeys(names) | {"drawing": (), "stream": False, "use_beam_search": True}
    return BeamFields(**given | fields)


@pytest.mark.parametrize(
    ("fields", "width"), [({"n": 3}, 3), ({"best_of": 5, "n": 2}, 5), ({"beam_width": 4, "best_of": 2}, 4)]
)
def test_width(fields: dict[str, Any], width: int) -> None:
    assert beams_of(asked(**fields)) == Beams(width)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "beam_width"),
        ({"n": 1}, "n"),
        ({"beam_width": 17}, "beam_width"),
        ({"beam_width": 2, "n": 3}, "beam_width"),
        ({"beam_width": 4, "temperature": 0.7}, "temperature"),
        ({"beam_width": 4, "drawing": ("top_p",)}, "top_p"),
        ({"beam_width": 4, "stream": True}, "stream"),
        ({"use_beam_search": False, "length_penalty": 2.0}, "length_penalty"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as refused:
        beams_of(asked(**fields))
    assert refused.value.field == field


def test_no_beams_unless_asked_for() -> None:
    assert beams_of(asked(use_beam_search=None, n=4)) is None
