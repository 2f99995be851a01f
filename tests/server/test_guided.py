"""Requests with a grammar over HTTP: the simulated model says anything that the masks allow, so that they alone make
its answers right. Its tokens are bytes.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import jsonschema
import openai
import psutil
import pytest
from pydantic import BaseModel

from mainspring.core.errors import RequestError
from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.request import Ready, Vocabulary
from mainspring.server.grammar.guidance import MOST_WAITING, Guidance
from mainspring.server.text.tokenizer import load_tokenizer
from tests.server.conftest import RunningServer, options_for
from tests.support.model_directory import write_tiny_model
from tests.support.tgi_rows import tgi
from tests.support.tiny_tokenizers import TINY_CHAT_TEMPLATE, byte_level

REGEX = {"type": "regex", "value": "a[ab]{0,3}"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}


class Weather(BaseModel):
    """The schema as a client's own type."""

    city: Literal["Rome", "Paris"]
    warm: bool


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_model(tmp_path_factory.mktemp("bytes"))
    byte_level().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TINY_CHAT_TEMPLATE, "eos_token": "</s>", "bos_token": "<s>"})
    )
    return directory


@pytest.fixture(scope="module")
def server(byte_model: Path) -> Iterator[RunningServer]:
    with RunningServer(options_for(byte_model, vocabulary="3-250")) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


@pytest.fixture
def sdk(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", timeout=60) as opened:
        yield opened


def generate(client: httpx.Client, grammar: Any) -> httpx.Response:
    return client.post("/generate", json={"inputs": "the", "parameters": {"grammar": grammar, "max_new_tokens": 99}})


@tgi("1.2 grammar")
def test_tgi_s_grammars(client: httpx.Client) -> None:
    assert re.fullmatch(REGEX["value"], generate(client, REGEX).json()["generated_text"])
    for kind, value in (("json", SCHEMA), ("json", json.dumps(SCHEMA)), ("json_schema", {"schema": SCHEMA})):
        said = generate(client, {"type": kind, "value": value}).json()["generated_text"]
        jsonschema.validate(json.loads(said), SCHEMA)


CHAT: dict[str, Any] = {"model": "tgi", "messages": [{"role": "user", "content": "the"}], "max_tokens": 99}


@tgi("1.5 response_format")
@pytest.mark.parametrize(
    "asked",
    [
        {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json", "value": SCHEMA},
    ],
)
def test_response_formats(client: httpx.Client, asked: Any) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, "response_format": asked}).json()
    jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), SCHEMA)


def test_any_json_object(client: httpx.Client) -> None:
    body = {**CHAT, "response_format": {"type": "json_object"}, "max_tokens": 20}
    assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("guided_choice", ["left", "right"], "left|right"),
        ("guided_regex", "x{2}", "xx"),
        ("guided_grammar", 'root ::= "ok" | "no"', "ok|no"),
        ("guided_grammar", 'start: "ok" /[0-9]/', "ok[0-9]"),
        ("structured_outputs", {"choice": ["up"]}, "up"),
        ("response_format", {"type": "regex", "value": "y"}, "y"),
    ],
)
def test_vllm_s_fields(client: httpx.Client, field: str, value: Any, expected: str) -> None:
    answer = client.post("/v1/completions", json={"prompt": "the", "max_tokens": 30, field: value}).json()
    assert re.fullmatch(expected, answer["choices"][0]["text"])


def test_the_openai_package_parses_what_it_asked_for(sdk: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "the"}]
    answer = sdk.chat.completions.parse(model="tgi", messages=messages, max_tokens=99, response_format=Weather)
    assert answer.choices[0].message.parsed is not None
    with sdk.chat.completions.stream(model="tgi", messages=messages, max_tokens=99, response_format=Weather) as stream:
        final = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(final, Weather)


def test_a_tool_that_must_be_called_is(sdk: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = sdk.chat.completions.create(
            model="tgi", messages=CHAT["messages"], max_tokens=150, tools=[tool], tool_choice=choice,
            parallel_tool_calls=False,
        )  # fmt: skip
        (call,) = answer.choices[0].message.tool_calls or []
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_what_cannot_be_read_is_refused_before_the_first_byte(client: httpx.Client) -> None:
    for route in ("/generate", "/generate_stream"):
        body = {"inputs": "the", "parameters": {"grammar": {"type": "regex", "value": "(a"}, "max_new_tokens": 4}}
        answer = client.post(route, json=body)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
        assert "regex" in answer.json()["error"]
    body = {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}}}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "uniqueItems" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("grammar", "field"),
    [
        ({"type": "yaml", "value": "x"}, "grammar.type"),
        ({"type": "regex", "value": 3}, "grammar.value"),
        ({"type": "json", "value": "{"}, "grammar.value"),
        ({"type": "json"}, "grammar"),
    ],
)
def test_what_is_no_grammar_is_refused_by_its_field(client: httpx.Client, grammar: Any, field: str) -> None:
    answer = generate(client, grammar)
    assert answer.status_code == 422
    assert f"`{field}`" in answer.json()["error"]


def test_a_grammar_has_a_size_and_a_depth(client: httpx.Client) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"items": deep}
    assert "nested more than 32 deep" in generate(client, {"type": "json", "value": deep}).json()["error"]
    assert "at most 65536" in generate(client, {"type": "regex", "value": "a" * 70_000}).json()["error"]


def test_two_grammars_are_one_too_many(client: httpx.Client) -> None:
    body = {**CHAT, "guided_regex": "a", "guided_choice": ["b"]}
    assert client.post("/v1/chat/completions", json=body).status_code == 400


@tgi("3 --disable-grammar-support")
def test_grammars_can_be_turned_off(byte_model: Path) -> None:
    options = replace(options_for(byte_model), grammar_engine=None)
    with RunningServer(options) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        server.wait_until_ready()
        answer = generate(client, REGEX)
    assert answer.status_code == 422
    assert "`grammar` is not supported by this server; leave it out" in answer.json()["error"]


READY = b"\x00\x00\x00\x04\x93\xc0\x90\xa0"
HANG = f"import sys, time; sys.stdout.buffer.write({READY!r}); sys.stdout.flush(); time.sleep(60)"
"""A process that reads grammars, says that it is ready, and nothing more."""


class _Engine:
    def __init__(self) -> None:
        self.learnt: list[Vocabulary] = []

    def teach(self, vocabulary: Vocabulary) -> None:
        self.learnt.append(vocabulary)


@pytest.mark.promise("F13", "P20")
def test_f13_p20_a_grammar_that_takes_too_long_costs_its_sender_alone(byte_model: Path) -> None:
    ready = Ready(64, 1000, 16, 9, 4, "sim", "sim", "float32", eos_token_ids=(2,), follows_grammars=True)
    hanging = (sys.executable, "-c", HANG)

    async def ask() -> None:
        engine: Any = _Engine()
        guidance = Guidance(engine, load_tokenizer(byte_model), ready, command=hanging, seconds=0.3)
        try:
            with pytest.raises(RequestError, match=r"takes more than 0.3 seconds"):
                await guidance.grammar(GrammarSpec("regex", "a"))
            assert not [child for child in psutil.Process().children() if "time.sleep(60)" in " ".join(child.cmdline())]
            with pytest.raises(RequestError, match=r"takes more than 0.3 seconds"):  # remembered: no process for it
                await asyncio.wait_for(guidance.grammar(GrammarSpec("regex", "a")), 0.1)
            assert len(engine.learnt) == 1
        finally:
            await guidance.aclose()

    asyncio.run(ask())


def test_many_requests_with_one_grammar_wait_as_one(byte_model: Path) -> None:
    ready = Ready(64, 1000, 16, 9, 4, "sim", "sim", "float32", eos_token_ids=(2,), follows_grammars=True)

    async def ask() -> None:
        engine: Any = _Engine()
        guidance = Guidance(engine, load_tokenizer(byte_model), ready)
        try:
            same = GrammarSpec("regex", "[ab]{3}")
            found = await asyncio.gather(*(guidance.grammar(same) for _ in range(2 * MOST_WAITING)))
            assert len(set(map(id, found))) == 1
            others = (GrammarSpec("regex", f"[cd]{{{count}}}") for count in range(1, 2 + MOST_WAITING))
            answers = await asyncio.gather(*map(guidance.grammar, others), return_exceptions=True)
            assert [type(answer) for answer in answers].count(RequestError) == 1
        finally:
            await guidance.aclose()

    asyncio.run(ask())


@pytest.mark.promise("F13", "P20")
@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "regex", "value": "(a{1,1000}){1,1000}"},
        {"type": "regex", "value": "(x+x+)+y" * 200},
        {"type": "json", "value": {"enum": [f"value {number}" for number in range(2500)]}},
        {
            "type": "json",
            "value": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        },
        {"type": "json", "value": {"allOf": [{"anyOf": [{"const": n}, {"const": -n}]} for n in range(40)]}},
        {"type": "regex", "value": ".*" * 500 + "z"},
    ],
)
def test_f13_p20_hostile_grammars_end_in_time_and_the_server_goes_on(client: httpx.Client, grammar: Any) -> None:
    answer = generate(client, grammar)
    assert answer.status_code in (200, 422), answer.text
    assert client.post("/generate", json={"inputs": "the", "parameters": {"max_new_tokens": 2}}).status_code == 200
