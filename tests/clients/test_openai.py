"""The openai package: chat, completions, streams, every sampling parameter, and errors as its own classes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.clients.conftest import BUSY_KEY, saying

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
SIX: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


class City(BaseModel):
    """The arguments of the tool `weather`."""

    city: str


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI, model_id: str) -> None:
    answer = client.chat.completions.create(model=model_id, messages=MESSAGES, max_completion_tokens=6, temperature=0)
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert len(choice.message.content.split()) == 6
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_chat_stream_is_the_same_answer(client: openai.OpenAI, model_id: str) -> None:
    whole = client.chat.completions.create(model=model_id, messages=MESSAGES, **SIX)
    with client.chat.completions.create(
        model=model_id, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SIX
    ) as stream:
        *chunks, last = stream
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert (last.choices, last.usage.completion_tokens) == ([], 6)


def test_accumulating_stream(client: openai.OpenAI, model_id: str) -> None:
    fields: dict[str, Any] = {"n": 2, "seed": 5, "stop": "9"}
    whole = client.chat.completions.create(model=model_id, messages=MESSAGES, **fields)
    with client.chat.completions.stream(model=model_id, messages=MESSAGES, **fields) as stream:
        final = stream.get_final_completion()
    said = [[choice.message.content for choice in answer.choices] for answer in (whole, final)]
    assert said[0] == said[1]
    assert said[0][0] != said[0][1]


@pytest.mark.parametrize("as_list", [False, True])
def test_stop(client: openai.OpenAI, model_id: str, as_list: bool) -> None:
    whole = client.completions.create(model=model_id, prompt="hi", **SIX).choices[0].text
    word = whole.split()[2]
    stopped = client.completions.create(
        model=model_id, prompt="hi", stop=["never", word] if as_list else word, **SIX
    ).choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(word)], "stop")


def test_logit_bias_forces_and_bans(client: openai.OpenAI, model_id: str) -> None:
    def text(**bias: int) -> str:
        return client.completions.create(model=model_id, prompt="hi", logit_bias=bias, **SIX).choices[0].text

    assert text(**{"400": 100}) == " w400" * 6
    first = text().split()[0]
    assert first not in text(**{first.removeprefix("w"): -100}).split()[:1]


def test_seed_repeats(client: openai.OpenAI, model_id: str) -> None:
    texts = [
        client.completions.create(model=model_id, prompt="hi", seed=seed, max_tokens=6).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_chat_logprobs(client: openai.OpenAI, model_id: str) -> None:
    (choice,) = client.chat.completions.create(
        model=model_id, messages=MESSAGES, logprobs=True, top_logprobs=2, **SIX
    ).choices
    assert "".join(bytes(token.bytes).decode() for token in choice.logprobs.content) == choice.message.content
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2] * 6
    assert all(token.logprob == token.top_logprobs[0].logprob < 0 for token in choice.logprobs.content)


def test_completions_take_prompts_in_four_forms(client: openai.OpenAI, model_id: str) -> None:
    hi, ho = ([3 + byte for byte in text] for text in (b"hi", b"ho"))  # ids of the bytes in the tiny vocabulary
    alone = client.completions.create(model=model_id, prompt="hi", **SIX).choices[0].text
    forms: list[Any] = ["hi", hi, ["hi", "ho"], [hi, ho]]
    for form in forms:
        answer = client.completions.create(model=model_id, prompt=form, logprobs=2, echo=False, **SIX)
        assert answer.choices[0].text == alone
        assert [choice.index for choice in answer.choices] == [*range(len(answer.choices))]
        assert all(len(choice.logprobs.tokens) == 6 for choice in answer.choices)
    stream = client.completions.create(model=model_id, prompt=["hi", "ho"], stream=True, echo=True, **SIX)
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks if chunk.index == 0) == "hi" + alone


def test_penalties_and_extras_are_taken(client: openai.OpenAI, model_id: str) -> None:
    answer = client.chat.completions.create(
        model=model_id,
        messages=MESSAGES,
        max_tokens=6,
        frequency_penalty=1.5,
        presence_penalty=-1.5,
        top_p=0.5,
        user="somebody",
        metadata={"run": "1"},
        extra_body={"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 3, "ignore_eos": True},
    )
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize("stream", [False, True])
def test_tools(client: openai.OpenAI, model_id: str, stream: bool) -> None:
    """Two calls, with the arguments as the client's own type."""
    words = '{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "weather", "parameters": {"city": "Rome"}}'
    fields: dict[str, Any] = {
        "model": model_id,
        "messages": [{"role": "user", "content": saying(words)}],
        "tools": [openai.pydantic_function_tool(City, name="weather")],
    }
    if stream:
        with client.chat.completions.stream(**fields) as events:
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.parse(**fields)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert [call.function.parsed_arguments for call in choice.message.tool_calls] == [
        City(city="Paris"),
        City(city="Rome"),
    ]


def test_models(client: openai.OpenAI, model_id: str) -> None:
    assert [model.id for model in client.models.list()] == [model_id]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_bad_requests(
    client: openai.OpenAI, model_id: str, fields: dict[str, Any], param: str | None, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": model_id, "messages": MESSAGES, "stream": stream} | fields)
    assert caught.value.type == "invalid_request_error"
    assert param is None or caught.value.param == param


def test_suffix_is_refused(client: openai.OpenAI, model_id: str) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model=model_id, prompt="hi", suffix="ho")


def test_other_models_and_routes_are_not_found(client: openai.OpenAI, model_id: str) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="gpt-4", prompt="hi")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=model_id, input="hi")


def test_overload_is_a_rate_limit(busy_server: str, model_id: str) -> None:
    with openai.OpenAI(base_url=f"{busy_server}/v1", api_key=BUSY_KEY, max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(model=model_id, prompt="hi", stream=stream)
            assert caught.value.response.headers["retry-after"] == "1"


def test_a_wrong_key_is_an_authentication_error(busy_server: str, model_id: str) -> None:
    with openai.OpenAI(base_url=f"{busy_server}/v1", api_key="guessed", max_retries=0) as client:
        for call in (client.models.list, lambda: client.completions.create(model=model_id, prompt="hi")):
            with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
                call()


def test_asynchronous_client(server: str, model_id: str) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none") as client:
            whole = await client.chat.completions.create(model=model_id, messages=MESSAGES, **SIX)
            stream = await client.chat.completions.create(model=model_id, messages=MESSAGES, stream=True, **SIX)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return whole.choices[0].message.content, text

    whole, streamed = asyncio.run(both())
    assert whole == streamed


def test_text_of_a_model(text_server: str) -> None:
    with openai.OpenAI(base_url=f"{text_server}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="tgi", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
        )
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
