"""TGI's own Python client, text-generation 0.7: both classes, every parameter, the documented errors."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from text_generation import AsyncClient, Client
from text_generation.errors import BadRequestError, OverloadedError, ValidationError
from text_generation.types import Grammar, GrammarType, Message, Tool

from tests.clients.conftest import BUSY_KEY, saying

TAKEN: dict[str, Any] = {
    "best_of": 2,
    "do_sample": True,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.2,
    "return_full_text": True,
    "seed": 7,
    "stop_sequences": ["never"],
    "temperature": 0.7,
    "top_k": 5,
    "top_n_tokens": 2,
    "top_p": 0.9,
    "truncate": 1,
    "typical_p": 0.9,
}
REFUSED: dict[str, Any] = {"grammar": Grammar(type=GrammarType.Regex, value="a" * 70_000), "watermark": True}
CHAT_TAKEN: dict[str, Any] = {
    "frequency_penalty": 0.5,
    "logprobs": True,
    "n": 2,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.2,
    "seed": 7,
    "temperature": 0.7,
    "tool_choice": "auto",
    "tools": [Tool(type="function", function={"name": "f"})],
    "top_p": 0.9,
}
CHAT_REFUSED: dict[str, Any] = {"logit_bias": [1.0]}
MESSAGES = [Message(role="user", content="hi")]


class InLine:
    """The asynchronous client with synchronous methods, so that one test holds for both."""

    def __init__(self, url: str, timeout: int, headers: dict[str, str] | None = None) -> None:
        self._client = AsyncClient(url, headers=headers, timeout=timeout)

    def generate(self, *arguments: Any, **fields: Any) -> Any:
        return asyncio.run(self._client.generate(*arguments, **fields))

    def generate_stream(self, *arguments: Any, **fields: Any) -> list[Any]:
        return asyncio.run(_all(self._client.generate_stream(*arguments, **fields)))

    def chat(self, *arguments: Any, **fields: Any) -> Any:
        return asyncio.run(_whole(self._client.chat(*arguments, **fields)))


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


async def _whole(call: Awaitable[Any]) -> Any:
    return await call


@pytest.fixture(params=[Client, InLine], ids=["Client", "AsyncClient"])
def client_class(request: pytest.FixtureRequest) -> Callable[..., Any]:
    chosen: Callable[..., Any] = request.param
    return chosen


@pytest.fixture
def client(client_class: Callable[..., Any], server: str) -> Any:
    return client_class(server, timeout=30)


def test_every_parameter_is_tried() -> None:
    others = {"self", "prompt", "max_new_tokens", "decoder_input_details"}
    assert set(inspect.signature(Client.generate).parameters) == {*TAKEN, *REFUSED, *others}
    others = {"self", "messages", "max_tokens", "stream", "top_logprobs"}
    assert set(inspect.signature(Client.chat).parameters) == {*CHAT_TAKEN, *CHAT_REFUSED, *others}


@pytest.mark.parametrize("name", TAKEN)
def test_generate_parameter(client: Any, name: str) -> None:
    fields = {"do_sample": name == "best_of"} | {name: TAKEN[name]}
    details = client.generate("hi", max_new_tokens=6, **fields).details
    assert (details.finish_reason, details.generated_tokens, len(details.tokens)) == ("length", 6, 6)


@pytest.mark.parametrize("name", TAKEN.keys() - {"best_of"})
def test_generate_stream_parameter(client: Any, name: str) -> None:
    events = list(client.generate_stream("hi", max_new_tokens=6, **{name: TAKEN[name]}))
    assert [event.details is None for event in events] == [True] * 5 + [False]
    assert (events[-1].details.finish_reason, events[-1].details.generated_tokens) == ("length", 6)


@pytest.mark.parametrize("method", ["generate", "generate_stream"])
@pytest.mark.parametrize("name", REFUSED)
def test_refusal_is_the_client_s_validation_error(client: Any, name: str, method: str) -> None:
    with pytest.raises(ValidationError, match=name):
        list(getattr(client, method)("hi", **{name: REFUSED[name]}))


@pytest.mark.parametrize("method", ["generate", "generate_stream"])
def test_invalid_value_has_tgi_s_text(client: Any, method: str) -> None:
    with pytest.raises(ValidationError, match=r"must be <= 2048\. Given: 2 `inputs` tokens and 5000 `max_new_tokens`"):
        list(getattr(client, method)("hi", max_new_tokens=5000))


def test_answer_streamed_and_whole(client: Any) -> None:
    whole = client.generate("hi", max_new_tokens=6, top_n_tokens=2)
    events = list(client.generate_stream("hi", max_new_tokens=6, top_n_tokens=2))
    assert "".join(event.token.text for event in events) == whole.generated_text == events[-1].generated_text
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert [len(top) for top in whole.details.top_tokens] == [2] * 6
    stopped = client.generate("hi", max_new_tokens=6, stop_sequences=[whole.generated_text.split()[2]])
    assert (stopped.details.finish_reason, stopped.details.generated_tokens) == ("stop_sequence", 3)


def test_decoder_input_details_tell_the_prompt(client: Any) -> None:
    prefill = client.generate("hi", max_new_tokens=1, decoder_input_details=True).details.prefill
    assert [token.text for token in prefill] == ["h", "i"]
    assert prefill[0].logprob is None
    assert prefill[1].logprob < 0


def test_best_of_shows_the_other(client: Any) -> None:
    details = client.generate("hi", max_new_tokens=6, do_sample=True, best_of=2).details
    assert len(details.best_of_sequences) == 1


@pytest.mark.parametrize("name", CHAT_TAKEN)
def test_chat_parameter(client: Any, name: str) -> None:
    answer = client.chat(MESSAGES, max_tokens=6, **{name: CHAT_TAKEN[name]})
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * (2 if name == "n" else 1)
    assert answer.choices[0].message.role == "assistant"


def test_chat_tools(client: Any) -> None:
    asked = [Message(role="user", content=saying('{"name": "f", "parameters": {"a": 1}}'))]
    message = client.chat(asked, tools=CHAT_TAKEN["tools"]).choices[0].message
    (call,) = message.tool_calls
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_chat_top_logprobs(client: Any) -> None:
    answer = client.chat(MESSAGES, max_tokens=6, logprobs=True, top_logprobs=2)
    assert [len(entry["top_logprobs"]) for entry in answer.choices[0].logprobs["content"]] == [2] * 6


@pytest.mark.parametrize("name", CHAT_REFUSED)
def test_chat_refusal_is_a_bad_request(client: Any, name: str) -> None:
    with pytest.raises(BadRequestError, match=name):
        client.chat(MESSAGES, **{name: CHAT_REFUSED[name]})


def test_overload_is_its_own_error(busy_server: str, client_class: Callable[..., Any]) -> None:
    with pytest.raises(OverloadedError, match="overloaded"):
        client_class(busy_server, headers={"Authorization": f"Bearer {BUSY_KEY}"}, timeout=30).generate(
            "hi", max_new_tokens=2
        )


def test_text_of_a_model(text_server: str) -> None:
    assert "Paris" in Client(text_server).generate("The capital of France is", max_new_tokens=8).generated_text
