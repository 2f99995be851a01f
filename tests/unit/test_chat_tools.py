"""Chats with tools to prompts, as different templates want them; and special tokens as marks in what comes back."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken

from mainspring.core.errors import RequestError
from mainspring.core.request import Delta, FinishReason, RequestId, SamplingParams, Start
from mainspring.server.model import Limits, ServedModel
from mainspring.server.openai.answers import MessageStream, reading_of
from mainspring.server.openai.parse import chat_call, chat_prompt
from mainspring.server.openai.tools import DEFAULT_TOOL_PROMPT, offer_of
from mainspring.server.openai.types import ChatRequest
from mainspring.server.reasoning.think import Think
from mainspring.server.text.generation import Generation, SequenceText
from mainspring.server.text.template import ChatTemplate
from mainspring.server.text.tokenizer import SpecialTokens, Tokenizer
from mainspring.server.tools.harmony import Harmony
from mainspring.server.tools.parser import ToolParser
from mainspring.server.tools.plain_json import PlainJson
from mainspring.server.tools.pythonic import Pythonic
from mainspring.server.tools.tagged import Hermes, Mistral
from tests.support.tiny_tokenizers import byte_level

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time", "arguments": {"type": "object", "required": ["zone"]}}}
PARIS = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CALLED = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [PARIS]},
    {"role": "tool", "tool_call_id": "a1", "content": "Yes"},
]
QWEN = """{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}{% for message in messages %}<{{ message.role }}>{{ message.content }}{% if message.tool_calls %}
{% for call in message.tool_calls %}{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}
{% endif %}{% if message.role == "tool" %}[{{ message.name }} {{ message.tool_call_id }}]{% endif %}{% endfor %}
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{{ reasoning_effort }}"""
DEEPSEEK = """{% for message in messages %}{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}
{{- call['function']['name'] + ' ' + call['function']['arguments'] }}{% endfor %}{% endif %}{% endfor %}"""


def model_of(template: str, format_: type[ToolParser] = Hermes, reasoning: type[Think] | None = None) -> ServedModel:
    limits = Limits(max_input_tokens=4000, max_total_tokens=5000, max_concurrent_requests=1, max_request_tokens=9000)
    tokenizer = Tokenizer(byte_level(), SpecialTokens())
    return ServedModel(
        id="m",
        created=0,
        revision=None,
        tokenizer=tokenizer,
        template=ChatTemplate(template, SpecialTokens()),
        limits=limits,
        vocab_size=400,
        compute_type="",
        tool_format=format_,
        reasoning_format=reasoning,
    )


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields})


def test_a_native_template_gets_tools_calls_and_results() -> None:
    prompt = chat_prompt(request(messages=CALLED, tools=[WEATHER, TIME]), model_of(QWEN))
    tools, time, *chat = prompt.split("\n")
    assert '"name": "weather"' in tools
    assert '"parameters": {"type": "object", "required": ["zone"]}' in time
    assert "<user>Rain?<assistant>" in chat[0]
    assert 'weather {"city": "Paris"}' in prompt
    assert "<tool>Yes[weather a1]" in prompt


def test_a_template_that_joins_arguments_gets_the_text_that_was_sent() -> None:
    assert chat_prompt(request(messages=CALLED), model_of(DEEPSEEK)) == 'weather {"city": "Paris"}'


def test_arguments_that_are_no_object_go_through_as_they_are() -> None:
    called = [
        CALLED[0],
        {**CALLED[1], "tool_calls": [{"function": {"name": "weather", "arguments": "{oops"}}]},
        CALLED[2],
    ]
    assert 'weather "{oops"' in chat_prompt(request(messages=called), model_of(QWEN))


def test_no_tools_are_shown_where_none_may_be_called() -> None:
    assert "weather" not in chat_prompt(request(tools=[WEATHER], tool_choice="none"), model_of(QWEN))


def test_variables_of_the_template() -> None:
    fields = {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}
    assert chat_prompt(request(**fields), model_of(QWEN)).endswith("<think></think>high")


def test_tools_behind_the_last_message() -> None:
    prompt = chat_prompt(request(tools=[WEATHER]), model_of("{{ messages[-1].content }}"))
    assert prompt.startswith(f"hi\n---\n{DEFAULT_TOOL_PROMPT}\n[")


@pytest.mark.parametrize(
    ("choice", "names", "required", "parallel"),
    [
        (None, ["weather", "time"], False, True),
        ("auto", ["weather", "time"], False, True),
        ("none", [], False, True),
        ("required", ["weather", "time"], True, True),
        ("time", ["time"], True, False),
        ({"type": "function", "function": {"name": "time"}}, ["time"], True, False),
        ({"function": {"name": "time"}}, ["time"], True, False),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}},
            ["weather"],
            True,
            True,
        ),
    ],
)
def test_what_is_offered(choice: Any, names: list[str], required: bool, parallel: bool) -> None:
    offer = offer_of(request(tools=[WEATHER, TIME], tool_choice=choice))
    assert ([tool.name for tool in offer.tools], offer.required, offer.parallel) == (names, required, parallel)


def test_an_unknown_tool_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'weather'"):
        offer_of(request(tools=[WEATHER], tool_choice="wether"))


def test_a_required_call_is_forced_in_the_models_format_or_in_json() -> None:
    asked = offer_of(request(tools=[TIME], tool_choice="required"))
    own = reading_of(model_of(QWEN), asked, "")
    assert own.structure is not None
    assert own.structure["format"]["tags"][0]["begin"].startswith("<tool_call>")
    either = {"name": "time", "parameters": {"anyOf": [{"type": "object"}]}}
    vague = offer_of(request(tools=[{"function": either}], tool_choice="required"))
    plain = reading_of(model_of(QWEN, Pythonic), vague, "")
    assert plain.structure is not None
    assert plain.structure["format"]["tags"][0]["begin"].startswith("{")
    assert isinstance(plain.form.machines()[-1], PlainJson)
    begun = reading_of(model_of(QWEN, Hermes, Think), asked, "<assistant><think>\n")
    assert begun.structure is not None
    assert begun.structure["format"]["elements"][0]["end"] == "</think>"
    assert reading_of(model_of(QWEN), offer_of(request(tools=[TIME])), "").structure is None


def test_special_tokens_are_marks_for_the_machine_and_not_shown() -> None:
    encoder = byte_level()
    encoder.add_special_tokens(
        [AddedToken("[TOOL_CALLS]", special=True, normalized=False), AddedToken("[X]", special=True)]
    )
    tokenizer = Tokenizer(encoder, SpecialTokens())
    call = chat_call(request(tools=[WEATHER]), model_of(QWEN, Mistral))
    ids = encoder.encode('So[X].[TOOL_CALLS][{"name": "weather", "arguments": {"a": 1}}]</s>').ids
    for markers, expected in ((call.generations[0].markers, True), (frozenset[str](), False)):
        generation = Generation(tokens=[1], params=SamplingParams(), markers=markers)
        text = SequenceText(tokenizer, generation)
        stream = MessageStream(call.form)
        deltas = []
        for token_id in ids:
            finish = FinishReason.EOS if token_id == 2 else None
            piece = text.fold(Delta(RequestId(1), 0, [token_id], finish, start=Start(0, 0, 0.0)))
            deltas.append(stream.push(piece.text, ended=finish is not None))
        shown = "".join(delta.content or "" for delta in deltas)
        calls = [part for delta in deltas for part in delta.tool_calls or ()]
        assert bool(calls) == expected
        assert shown == ("So." if expected else 'So.[{"name": "weather", "arguments": {"a": 1}}]')
        assert stream.finish_word(FinishReason.EOS) == ("tool_calls" if expected else "stop")
        assert stream.finish_word(FinishReason.LENGTH) == "length"


def test_harmony_is_read_without_tools_too() -> None:
    reading = reading_of(model_of(QWEN, Harmony, Think), offer_of(request()), "")
    stream = MessageStream(reading.form)
    delta = stream.push(
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Hi", ended=True
    )
    assert (delta.reasoning_content, delta.content) == ("Hm", "Hi")
    assert "<|channel|>" in reading.markers


def test_a_chat_without_tools_and_thoughts_is_text() -> None:
    reading = reading_of(model_of(QWEN), offer_of(request()), "")
    assert (reading.markers, reading.structure, tuple(reading.form.machines())) == (frozenset(), None, ())
