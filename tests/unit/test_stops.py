"""Stop strings against the plainest definition: cut the whole text, character by character."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mainspring.server.text.stops import StopMatcher

letters = st.text(alphabet="abc", max_size=40)
stop_lists = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4)


def expected(text: str, stops: list[str], keep: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            longest = max(completed, key=len)
            return (text[:end] if keep else text[: end - len(longest)]), longest
    return text, None


def feed(matcher: StopMatcher, deltas: list[str]) -> tuple[list[str], str | None]:
    shown = []
    for delta in deltas:
        found = matcher.push(delta)
        shown.append(found.text)
        if found.stop is not None:
            return shown, found.stop
    return [*shown, matcher.flush()], None


def split(text: str, cuts: list[int]) -> list[str]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


@given(text=letters, stops=stop_lists, cuts=st.lists(st.integers(0, 40)), keep=st.booleans())
def test_any_split_gives_the_text_up_to_the_first_stop(
    text: str, stops: list[str], cuts: list[int], keep: bool
) -> None:
    shown, stop = feed(StopMatcher(stops, keep), split(text, cuts))
    assert ("".join(shown), stop) == expected(text, stops, keep)


@given(text=letters, stops=stop_lists)
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for end, character in enumerate(text, start=1):
        found = matcher.push(character)
        shown += found.text
        if found.stop is not None:
            return
        held = text[len(shown) : end]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_keeping_holds_nothing_back() -> None:
    matcher = StopMatcher(["stop"], keep=True)
    assert [matcher.push(text).text for text in ("a st", "o", "p it")] == ["a st", "o", "p"]


def test_without_stops_text_passes() -> None:
    found = StopMatcher([]).push("anything")
    assert (found.text, found.stop) == ("anything", None)
