"""Parsers of reasoning: where thoughts end, and that no cut of a text moves it; and both machines in a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.core.errors import StartupError
from mainspring.server.reasoning.formats import REASONING_FORMATS, choose_reasoning_format
from mainspring.server.text.answer import AnswerReader
from mainspring.server.text.machine import Arguments, CallStart, Event, Reasoning, Text, joined
from mainspring.server.tools.formats import TOOL_FORMATS
from tests.unit.test_tools import TOOLS, cut, read

Think = REASONING_FORMATS["think"]


@pytest.mark.parametrize(
    ("text", "begun", "meaning"),
    [
        ("<think>\nHm. So.\n</think>\n\nYes.", False, [Reasoning("Hm. So."), Text("Yes.")]),
        ("Hm.\n\nSo.\n</think>\n\nYes.", True, [Reasoning("Hm.\n\nSo."), Text("Yes.")]),
        ("<think>Hm.</think>Yes.", True, [Reasoning("Hm."), Text("Yes.")]),
        ("<think>\n\n</think>\n\nYes.", False, [Text("Yes.")]),
        ("Yes, 1 <think> 2.\n", False, [Text("Yes, 1 <think> 2.\n")]),
        ("<think>Hm, </thin", False, [Reasoning("Hm, </thin")]),
        ("  <thin", False, [Text("  <thin")]),
        ("", True, []),
    ],
)
def test_where_thoughts_end(text: str, begun: bool, meaning: list[Event]) -> None:
    assert read(Think(begun), [text]) == meaning
    assert read(Think(begun), list(text)) == meaning


@pytest.mark.parametrize("name", REASONING_FORMATS)
def test_every_format_reads_its_own_marks(name: str) -> None:
    format_ = REASONING_FORMATS[name]
    assert choose_reasoning_format(None, f"... {' '.join(format_.signs[0])} ...", {}) is format_
    assert choose_reasoning_format(name, None, {}) is format_
    opening = format_.start
    assert read(format_(False), [f"{opening}\nA\n{format_.end}B"]) == [Reasoning("A"), Text("B")]
    assert format_.begins(f"<assistant>{opening}\n")
    assert not format_.begins(f"{opening}\n\n{format_.end}\n\n")


def test_which_format_a_model_has() -> None:
    assert choose_reasoning_format(None, "{{ messages }}", {}) is None
    assert choose_reasoning_format(None, None, {}) is None
    assert choose_reasoning_format("none", "</think>", {}) is None
    with pytest.raises(StartupError, match="did you mean 'think'"):
        choose_reasoning_format("thnk", None, {})


PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "time", "arguments": {"a": 1}}',
    " ",
    "\n",
    "x",
    "<",
]


@given(
    text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    places=st.sets(st.integers(0, 500), max_size=8),
    begun=st.booleans(),
    parallel=st.booleans(),
)
def test_no_cut_changes_what_two_machines_read(text: str, places: set[int], begun: bool, parallel: bool) -> None:
    def through(pieces: list[str]) -> list[Event]:
        reader = AnswerReader((Think(begun), TOOL_FORMATS["hermes"](TOOLS)), parallel=parallel)
        events: list[Event] = []
        for piece in pieces:
            events += reader.push(piece)
        return joined([*events, *reader.finish()])

    whole = through([text])
    assert through(cut(text, places)) == whole
    assert parallel or sum(isinstance(event, CallStart) for event in whole) <= 1


def test_a_call_among_thoughts_is_a_thought() -> None:
    reader = AnswerReader((Think(True), TOOL_FORMATS["hermes"](TOOLS)))
    call = '<tool_call>{"name": "time"}</tool_call>'
    events = joined([*reader.push(f"{call}</think>{call}"), *reader.finish()])
    assert events == [Reasoning(call), CallStart("time"), Arguments("{}")]
