"""huggingface_hub: both clients, and every parameter of text_generation and chat_completion."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError, OverloadedError, ValidationError

from tests.clients.conftest import BUSY_KEY, saying

MESSAGES = [{"role": "user", "content": "hi"}]
GREEDY = {"max_new_tokens": 6, "return_full_text": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}

GENERATION_TAKEN: dict[str, Any] = {
    "best_of": 2,
    "do_sample": True,
    "frequency_penalty": 0.5,
    "max_new_tokens": 6,
    "repetition_penalty": 1.2,
    "return_full_text": True,
    "seed": 7,
    "stop": ["never"],
    "temperature": 0.7,
    "top_k": 5,
    "top_n_tokens": 2,
    "top_p": 0.9,
    "truncate": 1,
    "typical_p": 0.9,
}
GENERATION_REFUSED: dict[str, Any] = {
    "adapter_id": "somebody/adapter",
    "grammar": {"type": "regex", "value": "a" * 70_000},
    "watermark": True,
}
CHAT_TAKEN: dict[str, Any] = {
    "extra_body": {"top_k": 5, "ignore_eos": True},
    "frequency_penalty": 0.5,
    "logprobs": True,
    "max_tokens": 6,
    "n": 2,
    "presence_penalty": -0.5,
    "seed": 7,
    "stop": ["never"],
    "temperature": 0.7,
    "tool_choice": "auto",
    "tools": [TOOL],
    "top_p": 0.9,
}
CHAT_REFUSED: dict[str, Any] = {
    "logit_bias": [1.0],
    "response_format": {"type": "json_object", "value": "{"},
}

Call = Callable[..., Any]


class InLine:
    """The asynchronous client with synchronous methods, so that one test holds for both."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url
        self._api_key = api_key

    def text_generation(self, *arguments: Any, **fields: Any) -> Any:
        return asyncio.run(self._whole(lambda client: client.text_generation(*arguments, **fields)))

    def chat_completion(self, *arguments: Any, **fields: Any) -> Any:
        return asyncio.run(self._whole(lambda client: client.chat_completion(*arguments, **fields)))

    async def _whole(self, call: Callable[[AsyncInferenceClient], Awaitable[Any]]) -> Any:
        async with AsyncInferenceClient(self._url, timeout=30, api_key=self._api_key) as client:
            answer = await call(client)
            return [item async for item in answer] if isinstance(answer, AsyncIterator) else answer


@pytest.fixture(params=["InferenceClient", "AsyncInferenceClient"])
def client_class(request: pytest.FixtureRequest) -> Call:
    return InLine if request.param == "AsyncInferenceClient" else InferenceClient


@pytest.fixture
def client(client_class: Call, server: str) -> Any:
    return client_class(server)


def parameters_of(method: Call) -> set[str]:
    return set(inspect.signature(method).parameters) - {"self", "prompt", "messages", "model", "stream"}


def test_every_parameter_is_tried() -> None:
    others = {"details", "decoder_input_details"}
    assert parameters_of(InferenceClient.text_generation) == {*GENERATION_TAKEN, *GENERATION_REFUSED, *others}
    others = {"top_logprobs", "stream_options", "tool_prompt"}
    assert parameters_of(InferenceClient.chat_completion) == {*CHAT_TAKEN, *CHAT_REFUSED, *others}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", GENERATION_TAKEN)
def test_text_generation_parameter(client: Any, name: str, stream: bool) -> None:
    fields = {"max_new_tokens": 6, "do_sample": name == "best_of"} | {name: GENERATION_TAKEN[name]}
    if (name, stream) == ("best_of", True):
        with pytest.raises((ValidationError, HfHubHTTPError), match="best_of"):
            list(client.text_generation("hi", details=True, stream=True, **fields))
        return
    answer = client.text_generation("hi", details=True, stream=stream, **fields)
    details = list(answer)[-1].details if stream else answer.details
    assert (details.finish_reason, details.generated_tokens) == ("length", 6)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", GENERATION_REFUSED)
def test_text_generation_refusal_says_the_parameter(client: Any, name: str, stream: bool) -> None:
    with pytest.raises((ValidationError, HfHubHTTPError), match=name) as caught:
        list(client.text_generation("hi", stream=stream, **{name: GENERATION_REFUSED[name]}))
    assert isinstance(caught.value, ValidationError) or caught.value.response.status_code == 422


def test_text_generation_answer_streamed_and_whole(client: Any) -> None:
    whole = client.text_generation("hi", details=True, top_n_tokens=2, **GREEDY)
    assert len(whole.details.tokens) == len(whole.details.top_tokens) == 6
    assert "".join(token.text for token in whole.details.tokens) == whole.generated_text
    events = list(client.text_generation("hi", details=True, stream=True, top_n_tokens=2, **GREEDY))
    assert [event.token.id for event in events] == [token.id for token in whole.details.tokens]
    assert [len(event.top_tokens) for event in events] == [2] * 6
    assert events[-1].generated_text == whole.generated_text
    assert list(client.text_generation("hi", stream=True, **GREEDY)) == [event.token.text for event in events]


def test_text_generation_tells_the_prompt(client: Any) -> None:
    details = client.text_generation("hi", details=True, decoder_input_details=True, **GREEDY).details
    assert [token.text for token in details.prefill] == ["h", "i"]
    assert details.prefill[0].logprob is None
    assert details.prefill[1].logprob < 0


def test_text_generation_means_what_it_says(client: Any) -> None:
    text = client.text_generation("hi", **GREEDY)
    assert client.text_generation("hi", max_new_tokens=6) == "hi" + text
    assert client.text_generation("away hi", **GREEDY, truncate=2) == text
    words = text.split(" ")
    assert client.text_generation("hi", **GREEDY, stop=[words[3]]) == " ".join(words[:4])
    sampled = [client.text_generation("hi", **GREEDY, seed=seed, do_sample=True) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CHAT_TAKEN)
def test_chat_parameter(client: Any, name: str, stream: bool) -> None:
    answer = client.chat_completion(MESSAGES, stream=stream, **{"max_tokens": 6, name: CHAT_TAKEN[name]})
    choices = [chunk.choices[0] for chunk in answer if chunk.choices] if stream else answer.choices
    assert choices[-1].finish_reason == "length"
    assert {choice.index for choice in choices} == set(range(2 if name == "n" else 1))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CHAT_REFUSED)
def test_chat_refusal_says_the_parameter(client: Any, name: str, stream: bool) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        list(client.chat_completion(MESSAGES, stream=stream, **{name: CHAT_REFUSED[name]}))
    assert caught.value.response.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_chat_tools(client: Any, stream: bool) -> None:
    """A call, its result, and the answer to it."""
    words = 'I look. {"name": "f", "parameters": {"city": "Paris"}}'
    asked = [{"role": "user", "content": saying(words)}]
    answer = client.chat_completion(asked, tools=[TOOL], tool_choice="auto", stream=stream)
    if stream:
        chunks = list(answer)
        deltas = [chunk.choices[0].delta for chunk in chunks]
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        content = "".join(delta.content or "" for delta in deltas)
        name, arguments = calls[0].function.name, "".join(call.function.arguments for call in calls)
        finish, call_id = chunks[-1].choices[0].finish_reason, calls[0].id
    else:
        (choice,) = answer.choices
        (call,) = choice.message.tool_calls
        content, name, arguments = choice.message.content, call.function.name, call.function.arguments
        finish, call_id = choice.finish_reason, call.id
    assert (content, name, arguments, finish) == ("I look.", "f", '{"city": "Paris"}', "tool_calls")
    called = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    results = [
        *asked,
        {"role": "assistant", "content": content, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call_id, "content": saying("Rain.")},
    ]
    assert client.chat_completion(results, tools=[TOOL]).choices[0].message.content == "Rain."


@pytest.mark.parametrize("choice", ["g", {"function": {"name": "g"}}])
def test_chat_refuses_an_unknown_tool(client: Any, choice: Any) -> None:
    with pytest.raises(HfHubHTTPError, match="unknown tool 'g'"):
        client.chat_completion(MESSAGES, tools=[TOOL], tool_choice=choice)


def test_chat_tool_prompt_without_tools_is_harmless(client: Any) -> None:
    assert client.chat_completion(MESSAGES, tool_prompt="Use a tool", max_tokens=2).usage.completion_tokens == 2


def test_chat_logprobs(client: Any) -> None:
    answer = client.chat_completion(MESSAGES, logprobs=True, top_logprobs=2, max_tokens=6, temperature=0.0)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert [len(token.top_logprobs) for token in tokens] == [2] * 6


def test_chat_stream_is_the_same_answer_and_counts(client: Any) -> None:
    whole = client.chat_completion(MESSAGES, max_tokens=6, temperature=0.0)
    options = {"include_usage": True}
    chunks = list(client.chat_completion(MESSAGES, max_tokens=6, temperature=0.0, stream=True, stream_options=options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 6


def test_overload_is_its_own_error(busy_server: str, client_class: Call) -> None:
    with pytest.raises((OverloadedError, HfHubHTTPError)) as caught:
        client_class(busy_server, api_key=BUSY_KEY).text_generation("hi", max_new_tokens=2)
    assert isinstance(caught.value, OverloadedError) or caught.value.response.status_code == 429


def test_a_wrong_key_is_401(busy_server: str, client_class: Call) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        client_class(busy_server, api_key="guessed").text_generation("hi")
    assert caught.value.response.status_code == 401


def test_text_of_a_model(text_server: str) -> None:
    client = InferenceClient(text_server)
    assert "Paris" in client.text_generation("The capital of France is", max_new_tokens=8)
