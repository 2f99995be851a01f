"""Tools and reasoning over HTTP, with the openai package: whole and streamed answers say the same.

The simulated model says what its prompt quotes, so each test chooses the model's words.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from mainspring.server.answer_formats import AnswerFormats
from tests.server.conftest import RunningServer, options_for
from tests.support.tgi_rows import tgi

QUOTE = "<unk>"
"""Token 0 of the tests' tokenizer: between two of them a prompt says what the model answers."""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
PARIS = '{"city": "Paris"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>'


class City(BaseModel):
    """The weather's arguments as a client's own type."""

    city: str


@pytest.fixture(scope="module")
def client(model_directory: Path) -> Iterator[openai.OpenAI]:
    """Of a server whose model speaks Hermes and thinks aloud."""
    options = replace(options_for(model_directory, quote="0"), formats=AnswerFormats("hermes", "think"))
    with RunningServer(options) as running:
        running.wait_until_ready()
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="-", max_retries=0) as sdk:
            yield sdk


def saying(text: str) -> list[Any]:
    return [{"role": "user", "content": f"Say {QUOTE}{text}{QUOTE}"}]


def ask(client: openai.OpenAI, text: str, *, streams: bool, **fields: Any) -> ChatCompletion:
    """The whole answer; where it streams, as the SDK puts it together."""
    fields = {"model": "tgi", "messages": saying(text), "tools": [WEATHER, TIME], **fields}
    if not streams:
        return client.chat.completions.create(**fields)
    with client.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
        return stream.get_final_completion()


streamed = pytest.mark.parametrize("streams", [False, True])


@tgi("1.5 tools")
@streamed
def test_a_call_with_words_before_it(client: openai.OpenAI, streams: bool) -> None:
    answer = ask(client, f"I look it up.\n{CALL}", streams=streams)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look it up.")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "weather", PARIS)
    assert call.id.startswith("call_")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(f"I look it up.\n{CALL}") + 1


@streamed
def test_calls_alone_have_no_content(client: openai.OpenAI, streams: bool) -> None:
    answer = ask(client, f'{CALL}\n<tool_call>{{"name": "time"}}</tool_call>', streams=streams)
    message = answer.choices[0].message
    assert not message.content
    calls = message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", PARIS), ("time", "{}")]
    assert len({call.id for call in calls}) == 2


@streamed
def test_one_call_at_a_time(client: openai.OpenAI, streams: bool) -> None:
    answer = ask(client, f"{CALL}{CALL}", streams=streams, parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls or ()) == 1


@tgi("1.5 tool_choice")
@streamed
@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}])
def test_without_tools_a_call_is_text(client: openai.OpenAI, streams: bool, fields: dict[str, Any]) -> None:
    answer = ask(client, CALL, streams=streams, **fields)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (CALL, "stop")


@streamed
def test_a_call_that_was_cut_short(client: openai.OpenAI, streams: bool) -> None:
    cut = len(CALL) - len('aris"}}\n</tool_call>')
    try:
        answer = ask(client, CALL, streams=streams, max_tokens=cut)
    except openai.LengthFinishReasonError as error:  # the SDK's way to say it, in streams
        answer = error.completion
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert (choice.message.tool_calls or [])[0].function.arguments == '{"city": "P'


@streamed
def test_thoughts_are_told_from_words(client: openai.OpenAI, streams: bool) -> None:
    answer = ask(client, f"<think>\nParis?\n</think>\n\nYes.{CALL}", streams=streams)
    message = answer.choices[0].message
    assert (message.content, len(message.tool_calls or ())) == ("Yes.", 1)
    assert message.model_dump()["reasoning_content"] == "Paris?"


def test_the_deltas_of_a_stream(client: openai.OpenAI) -> None:
    """OpenAI's order: role; then for each call its id and name once, and its arguments bit by bit."""
    chunks = list(
        client.chat.completions.create(
            model="tgi", messages=saying(f"<think>a b</think>So:{CALL}"), tools=[WEATHER], stream=True, logprobs=True
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert {call.index for call in calls} == {0}
    assert [call.type for call in calls] == ["function"] + [None] * (len(calls) - 1)
    assert [bool(call.id) for call in calls] == [True] + [False] * (len(calls) - 1)
    assert [call.function.name for call in calls] == ["weather"] + [None] * (len(calls) - 1)
    assert "".join(call.function.arguments for call in calls) == PARIS
    assert "".join(delta.model_extra.get("reasoning_content", "") for delta in deltas) == "a b"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]
    assert sum(len(chunk.choices[0].logprobs.content) for chunk in chunks) == len(f"<think>a b</think>So:{CALL}") + 1


@streamed
def test_pydantic_tools(client: openai.OpenAI, streams: bool) -> None:
    """The SDK makes the schema from the type, and the type from the arguments."""
    fields: dict[str, Any] = {
        "model": "tgi",
        "messages": saying(CALL),
        "tools": [openai.pydantic_function_tool(City, name="weather")],
    }
    if streams:
        with client.chat.completions.stream(**fields) as stream:
            kinds = [event.type for event in stream]
            answer = stream.get_final_completion()
        assert kinds.count("tool_calls.function.arguments.done") == 1
    else:
        answer = client.chat.completions.parse(**fields)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == City(city="Paris")


def test_several_choices_have_their_own_calls(client: openai.OpenAI) -> None:
    answer = ask(client, CALL, streams=False, n=2)
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls or ()]
    assert len(set(ids)) == 2


def test_a_conversation_with_results(client: openai.OpenAI) -> None:
    """Messages as the SDK makes them: a call, its result, and the answer to it."""
    first = ask(client, CALL, streams=False).choices[0].message
    (call,) = first.tool_calls or ()
    messages = [
        *saying("x"),
        first.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": f"{QUOTE}It rains.{QUOTE}"},
    ]
    answer = client.chat.completions.create(model="tgi", messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "It rains."


@tgi("1.9 tool_error")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "wether"}}}, "did you mean 'weather'"),
        ({"tool_choice": "wether"}, "did you mean 'weather'"),
        ({"tool_choice": "required", "tools": []}, "`tools` has none"),
        ({"tools": [WEATHER, WEATHER]}, "for the second time"),
        ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools.0.type"),
        ({"chat_template_kwargs": {"messages": []}}, "is the server's to set"),
    ],
)
def test_refused_tools(client: openai.OpenAI, fields: dict[str, Any], message: str) -> None:
    body = {key: fields.pop(key) for key in list(fields) if key == "chat_template_kwargs"}
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, "x", streams=False, extra_body=body, **fields)


def test_the_pages_example_runs(client: openai.OpenAI) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
    code = re.findall(r"```python\n(from openai.*?)```", page, flags=re.DOTALL)[0]
    assert "http://127.0.0.1:3000/v1" in code
    code = code.replace("http://127.0.0.1:3000/v1", str(client.base_url))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@tgi("1.5 tool_prompt")
def test_tools_stand_in_the_text_where_the_template_has_no_place(client: openai.OpenAI) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [TIME], "tool_prompt": "Use these:"}
    shown = client.post("../chat_tokenize", body=body, cast_to=dict[str, Any])["templated_text"]
    assert shown.startswith("<s>[user]hi\n---\nUse these:\n[")
    assert json.loads(shown.removeprefix("<s>[user]hi\n---\nUse these:\n").removesuffix("[assistant]"))[0] == TIME
