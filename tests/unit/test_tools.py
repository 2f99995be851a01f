"""Parsers of tool calls: what each format's texts mean, and that no cut of a text changes it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.core.errors import StartupError
from mainspring.server.text.machine import Arguments, CallStart, Event, Reasoning, Text, TextMachine, joined
from mainspring.server.tools.formats import TOOL_FORMATS, choose_tool_format
from mainspring.server.tools.special_tokens import by_token
from mainspring.server.tools.structure import forced_format, required_calls, strict_calls
from mainspring.server.tools.tool import Offer, Tool

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = (Tool("weather", CITY, "Tells the weather"), Tool("time", {"type": "object", "properties": {}}))


def call(name: str, arguments: str) -> list[Event]:
    return [CallStart(name), Arguments(arguments)]


PARIS = call("weather", '{"city": "Paris", "days": 3}')
TIME = call("time", "{}")
WEATHER_JSON = '{"name": "weather", "arguments": {"city": "Paris", "days": 3}}'
DEEPSEEK_V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"

# Of each format: an answer, and what it means.
ANSWERS: list[tuple[str, str, list[Event]]] = [
    ("hermes", f"<tool_call>\n{WEATHER_JSON}\n</tool_call>", PARIS),
    ("hermes", f"Let me look.\n\n<tool_call>{WEATHER_JSON}</tool_call>\n", [Text("Let me look."), *PARIS]),
    (
        "hermes",
        f'<tool_call>{WEATHER_JSON}</tool_call>\n<tool_call>{{"name": "time"}}</tool_call> Done.',
        [*PARIS, *TIME, Text(" Done.")],
    ),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "other"}</tool_call>', call("other", '{"a": 1}')),
    ("hermes", '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>', call("time", '{"a": 1}')),
    ("hermes", '<tool_call>{"name": "time", "arguments": null}</tool_call>', TIME),
    ("hermes", '<tool_call>{"name": "time", "arguments": {"a": "}\\"</tool_', call("time", '{"a": "}\\"</tool_')),
    ("hermes", f"<tool_call>{WEATHER_JSON}}}</tool_call>", PARIS),
    ("hermes", "<tool_call>not JSON</tool_call> x", [Text("<tool_call>not JSON</tool_call> x")]),
    ("hermes", '<tool_call>{"city": "Paris"}</tool_call>', [Text('<tool_call>{"city": "Paris"}</tool_call>')]),
    ("hermes", "a < b <tool", [Text("a < b <tool")]),
    ("hermes", "Hello \n", [Text("Hello \n")]),
    ("mistral", f'[TOOL_CALLS][{WEATHER_JSON}, {{"name": "time", "arguments": {{}}}}]', [*PARIS, *TIME]),
    ("mistral", f"[TOOL_CALLS] {WEATHER_JSON}", PARIS),
    (
        "mistral",
        'So. [TOOL_CALLS]weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]time[CALL_ID]123456789[ARGS]{}',
        [Text("So."), *PARIS, *TIME],
    ),
    ("mistral", "[TOOL_CALLS] oh no\n", [Text("[TOOL_CALLS] oh no\n")]),
    (
        "deepseek",
        "Hm.<｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Paris", "days": 3}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [Text("Hm."), *PARIS, *TIME],
    ),
    (
        "deepseek_v3",
        "<｜tool▁calls▁begin｜>"
        + "\n".join([DEEPSEEK_V3.format("weather", '{"city": "Paris", "days": 3}'), DEEPSEEK_V3.format("time", "{}")])
        + "<｜tool▁calls▁end｜>",
        [*PARIS, *TIME],
    ),
    ("deepseek", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}<｜tool▁call▁end｜>", call("function", "{}")),
    ("llama3_json", '{"name": "weather", "parameters": {"city": "Paris", "days": 3}}', PARIS),
    ("llama3_json", f'<|python_tag|>{WEATHER_JSON}; {{"name": "time", "parameters": {{}}}}', [*PARIS, *TIME]),
    ("llama3_json", '{"type": "function", "function": {"name": "time", "parameters": {}}}', TIME),
    ("llama3_json", '{"name": "other", "parameters": {}}', [Text('{"name": "other", "parameters": {}}')]),
    ("json", f"```json\n[{WEATHER_JSON}]\n```", PARIS),
    ("json", f"Here: {WEATHER_JSON}\nDone", [Text("Here:"), *PARIS, Text("\nDone")]),
    ("json", '{"city": "Paris"} is JSON', [Text('{"city": "Paris"} is JSON')]),
    ("json", "[1, 2] and ```code```", [Text("[1, 2] and ```code```")]),
    ("json", '{"function": "time", "arguments": {}}', TIME),
    ("pythonic", "[weather(city='Paris', days=3), time()]", [*PARIS, *TIME]),
    (
        "pythonic",
        '<|python_start|>[time(a=[1, -2.5, (True, None)], b={"k": "\\u00e9\\n\'"}, c="""x"y""")]<|python_end|>',
        call("time", '{"a": [1, -2.5, [true, null]], "b": {"k": "é\\n\'"}, "c": "x\\"y"}'),
    ),
    ("pythonic", "```tool_code\nweather(city='Paris', days=3)\n```", PARIS),
    ("pythonic", "[print('x')]", [Text("[print('x')]")]),
    ("pythonic", "time flies", [Text("time flies")]),
    ("pythonic", "[time(a=open('x'))]", [Text("[time(a=open('x'))]")]),
    (
        "functiongemma",
        "<start_function_call>call:weather{city:<escape>Paris<escape>,days:3}<end_function_call>",
        PARIS,
    ),
    (
        "functiongemma",
        '<start_function_call>call:time{a:<escape>{x}, "y"<escape>,b:[true,{c:null}]}<end_function_call>',
        call("time", '{"a": "{x}, \\"y\\"", "b": [true, {"c": null}]}'),
    ),
    ("functiongemma", "<start_function_call>tell me", [Text("<start_function_call>tell me")]),
    ("gemma4", 'Yes <|tool_call>call:weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>', [Text("Yes"), *PARIS]),
    (
        "qwen_xml",
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call><function=time></function></tool_call>",
        [*PARIS, *TIME],
    ),
    (
        "qwen_xml",
        '<function=weather><parameter=city>12</parameter><parameter=more>{"a": [1]}</parameter></function>',
        call("weather", '{"city": "12", "more": {"a": [1]}}'),
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>They want weather.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}<|call|>',
        [Reasoning("They want weather."), *PARIS],
    ),
    (
        "harmony",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.time<|channel|>commentary"
        "<|message|>{}",
        [Text("I look."), *TIME],
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>thinking<|end|><|start|>assistant to=functions.time<|channel|>commentary "
        "<|constrain|>json<|message|>{}<|call|>",
        [Reasoning("thinking"), *TIME],
    ),
    ("harmony", "<|channel|>final<|message|>Hello<|return|>", [Text("Hello")]),
    ("harmony", "<|channel|>analysis to=python<|message|>1+1<|call|>", [Reasoning("1+1")]),
    ("harmony", "<|channel|>analysis", []),
]


def read(machine: TextMachine, pieces: Sequence[str]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += machine.push(piece)
    return joined([*events, *machine.finish()])


def cut(text: str, places: set[int]) -> list[str]:
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


@pytest.mark.parametrize(("name", "text", "meaning"), ANSWERS)
def test_what_an_answer_means(name: str, text: str, meaning: list[Event]) -> None:
    assert read(TOOL_FORMATS[name](TOOLS), [text]) == meaning
    assert read(TOOL_FORMATS[name](TOOLS), list(text)) == meaning


def test_every_format_has_an_answer() -> None:
    assert {name for name, _, _ in ANSWERS} == set(TOOL_FORMATS) - {"mistral_args"}


@pytest.mark.parametrize("name", TOOL_FORMATS)
@given(data=st.data(), places=st.sets(st.integers(0, 10_000), max_size=12))
def test_no_cut_changes_what_an_answer_means(name: str, data: st.DataObject, places: set[int]) -> None:
    """Of texts that are put together from all that any format knows, sensible or not."""
    texts = [text for own, text, _ in ANSWERS if own == name]
    words = sorted({word for text in texts for word in re.findall(r"<[^>]*>|\[[A-Z_]+\]|\w+|\s+|.", text)})
    text = data.draw(st.one_of(st.sampled_from(texts or ["x"]), st.lists(st.sampled_from(words or ["x"])).map("".join)))
    whole = read(TOOL_FORMATS[name](TOOLS), [text])
    assert read(TOOL_FORMATS[name](TOOLS), cut(text, places)) == whole
    assert all(event.text for event in whole if isinstance(event, (Text, Reasoning)))


@given(
    text=st.text(alphabet=st.sampled_from("{}[]()<>|\":,='\\ \nantimew"), max_size=60),
    name=st.sampled_from([*TOOL_FORMATS]),
)
def test_without_a_call_nothing_of_the_text_is_lost(text: str, name: str) -> None:
    events = read(TOOL_FORMATS[name](TOOLS), [text])
    if events and all(isinstance(event, Text) for event in events):
        assert events == [Text(text)]


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_depth_and_length_do_no_harm(name: str) -> None:
    starts = [text[: len(text) // 2] for own, text, _ in ANSWERS if own == name]
    for start in [*starts, ""]:
        for filler in ("[", "{", "(", '"', "\\", '{"a":', '{"function":'):
            read(TOOL_FORMATS[name](TOOLS), [start, filler * 3000])


def test_text_is_held_back_no_longer_than_it_may_become_a_call() -> None:
    machine = TOOL_FORMATS["hermes"](TOOLS)
    assert machine.push("The answer is <") == [Text("The answer is")]
    assert machine.push("b>, and") == [Text(" <b>, and")]
    assert machine.push(" <tool_call>") == []
    assert machine.push('{"name": "time", "arguments": {"a') == call("time", '{"a')
    assert machine.push('": 1') == [Arguments('": 1')]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("<tool_call> <function=", "qwen_xml"),
        ("[TOOL_CALLS]", "mistral"),
        ("[TOOL_CALLS] [ARGS]", "mistral_args"),
        ("<｜tool▁calls▁begin｜> ```json", "deepseek_v3"),
        ("<｜tool▁calls▁begin｜>", "deepseek"),
        ("<|python_tag|>", "llama3_json"),
        ("<|python_start|>", "pythonic"),
        ("<start_function_call>", "functiongemma"),
        ("<|tool_call>", "gemma4"),
        ("<|channel|> <|message|>", "harmony"),
        ("{{ messages }}", "json"),
        (None, "json"),
    ],
)
def test_the_template_shows_the_format(template: str | None, name: str) -> None:
    assert choose_tool_format(None, template, {}) is TOOL_FORMATS[name]


def test_a_format_can_be_named() -> None:
    assert choose_tool_format("mistral", "<tool_call>", {}) is TOOL_FORMATS["mistral"]
    assert choose_tool_format("own", None, {"own": TOOL_FORMATS["json"]}) is TOOL_FORMATS["json"]
    with pytest.raises(StartupError, match="did you mean 'hermes'"):
        choose_tool_format("herms", None, {})


@pytest.mark.parametrize("name", TOOL_FORMATS)
@pytest.mark.parametrize("parallel", [False, True])
def test_what_is_forced_is_what_is_read(name: str, parallel: bool) -> None:
    """Text as the structure wants it, put together by hand, is read as the calls that it forces."""
    offer = Offer(TOOLS, required=True, parallel=parallel)
    format_ = forced_format(TOOL_FORMATS[name], offer)
    structure = required_calls(format_, offer)
    text, count = written(structure["format"])
    meaning = read(format_(TOOLS), [text])
    assert [without_spaces(event) for event in meaning] == [*FORCED, *TIME][: 4 if parallel else 2]
    assert count == (2 if parallel else 1)


FORCED = call("weather", '{"city":"Paris","days":3}')


def without_spaces(event: Event) -> Event:
    return Arguments(event.text.replace(" ", "")) if isinstance(event, Arguments) else event


def written(element: dict[str, Any]) -> tuple[str, int]:
    """A text that the structure allows, and how many calls are in it."""
    match element:
        case {"type": "const_string", "value": value}:
            return value, 0
        case {"type": "optional", "content": content}:
            return written(content)
        case {"type": "sequence", "elements": elements}:
            parts = [written(part) for part in elements]
            return "".join(text for text, _ in parts), sum(count for _, count in parts)
        case {"type": "tag", "begin": begin, "content": content, "end": end}:
            return begin + written(content)[0] + end, 1
        case {"type": "any_text"}:
            return "Paris", 0
        case {"type": "json_schema", "json_schema": {"properties": {"city": _}}, "style": "qwen_xml"}:
            return "<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>", 0
        case {"type": "json_schema", "json_schema": schema}:
            values = {"string": '"Paris"', "integer": "3", "object": "{}"}
            text = "" if "style" in element else values[schema["type"]]
            return '{"city": "Paris", "days": 3}' if schema.get("properties") else text, 0
        case {"type": "tags_with_separator", "tags": tags, "separator": separator, "at_least_one": True}:
            calls = [written(tag)[0] for tag in tags][: 1 if element["stop_after_first"] else None]
            return separator.join(calls), len(calls)
    raise ValueError(json.dumps(element))


def test_thoughts_that_have_begun_may_end_before_a_forced_call() -> None:
    structure = required_calls(TOOL_FORMATS["hermes"], Offer(TOOLS, required=True), "</think>")
    first, calls = structure["format"]["elements"]
    assert (first["content"], first["end"], calls["type"]) == ({"type": "any_text"}, "</think>", "tags_with_separator")


def test_ids_are_unique_and_mistrals_are_as_its_templates_want_them() -> None:
    assert len({TOOL_FORMATS["hermes"].new_id() for _ in range(100)}) == 100
    assert re.fullmatch("[A-Za-z0-9]{9}", TOOL_FORMATS["mistral"].new_id())


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_of_strict_tools_are_right_among_words(name: str) -> None:
    weather, time = TOOLS
    format_ = TOOL_FORMATS[name]
    assert strict_calls(format_, Offer(TOOLS)) is None
    structure = strict_calls(format_, Offer((replace(weather, strict=True), time), parallel=False))
    if name in ("json", "llama3_json", "pythonic", "harmony"):  # nothing marks a call, or every message alike
        assert structure is None
        return
    assert structure is not None
    free = structure["format"]
    assert (free["type"], free["stop_after_first"]) == ("triggered_tags", True)
    assert all(tag["begin"].startswith(free["triggers"][0]) for tag in free["tags"])
    assert "city" in json.dumps(free["tags"])


def test_thoughts_come_before_words_and_strict_calls() -> None:
    structure = strict_calls(TOOL_FORMATS["hermes"], Offer((replace(TOOLS[0], strict=True),)), "</think>")
    assert structure is not None
    assert [part["type"] for part in structure["format"]["elements"]] == ["tag", "triggered_tags"]


IDS = {"[TOOL_CALLS]": 7, "[ARGS]": 8, "<escape>": 9, "[/THINK]": 10}


def test_special_tokens_are_named_by_id() -> None:
    required = required_calls(TOOL_FORMATS["mistral_args"], Offer(TOOLS[:1], required=True), "[/THINK]")
    thoughts, calls = by_token(required["format"], IDS)["elements"]
    assert thoughts["end"] == {"type": "token", "token": 10}
    assert thoughts["content"] == {"type": "any_tokens", "exclude_tokens": [10]}
    (tag,) = calls["tags"]
    name, args, schema = tag["content"]["elements"]
    assert (tag["begin"], tag["end"]) == ({"type": "token", "token": 7}, "")
    assert (name["value"], args, schema["json_schema"]) == ("weather", {"type": "token", "token": 8}, CITY)


def test_special_tokens_begin_and_quote() -> None:
    offer = Offer((replace(TOOLS[0], strict=True),), required=True)
    strict = strict_calls(TOOL_FORMATS["mistral"], offer)
    assert strict is not None
    free = by_token(strict["format"], IDS)
    assert (free["type"], free["trigger_tokens"]) == ("token_triggered_tags", [7])
    assert free["tags"][0]["content"]["elements"][0] == {"type": "const_string", "value": "["}
    gemma = json.dumps(by_token(required_calls(TOOL_FORMATS["functiongemma"], offer)["format"], IDS))
    assert '"begin": {"type": "token", "token": 9}' in gemma


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_without_special_tokens_nothing_changes(name: str) -> None:
    offer = Offer(TOOLS, required=True)
    structure = required_calls(forced_format(TOOL_FORMATS[name], offer), offer, "</think>")
    assert by_token(structure["format"], {}) == by_token(structure["format"], {"<other>": 1}) == structure["format"]
