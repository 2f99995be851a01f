"""litellm with the OpenAI-compatible provider, the text-completion provider and the Hugging Face provider."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import litellm
import pytest

from tests.clients.conftest import BUSY_KEY

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def complete(server: str, model_id: str) -> Callable[..., Any]:
    """A chat completion, whole or streamed."""

    def call(**fields: Any) -> Any:
        where = {"model": f"openai/{model_id}", "api_base": f"{server}/v1", "api_key": "none"}
        return litellm.completion(messages=MESSAGES, **where, **{"max_tokens": 6, "temperature": 0} | fields)

    return call


def test_chat_streamed_and_whole(complete: Callable[..., Any]) -> None:
    whole = complete()
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 6
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    rebuilt = litellm.stream_chunk_builder(chunks)
    assert (rebuilt.usage.completion_tokens, rebuilt.choices[0].message.content) == (6, text)


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0.5, "presence_penalty": -0.5},
        {"logit_bias": {"400": 1}},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2},
        {"seed": 7, "temperature": 0.7, "top_p": 0.9},
        {"stop": ["never"]},
        {"extra_body": {"top_k": 3, "repetition_penalty": 1.1}},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_parameters(complete: Callable[..., Any], fields: dict[str, Any]) -> None:
    answer = complete(**fields)
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * fields.get("n", 1)
    if "logprobs" in fields:
        assert [len(token.top_logprobs) for token in answer.choices[0].logprobs.content] == [2] * 6


def test_asynchronous_call(server: str, model_id: str, complete: Callable[..., Any]) -> None:
    where = {"model": f"openai/{model_id}", "api_base": f"{server}/v1", "api_key": "none"}
    answer = asyncio.run(litellm.acompletion(messages=MESSAGES, max_tokens=6, temperature=0, **where))
    assert answer.choices[0].message.content == complete().choices[0].message.content


def test_text_completion(server: str, model_id: str) -> None:
    where = {"model": f"text-completion-openai/{model_id}", "api_base": f"{server}/v1", "api_key": "none"}
    answer = litellm.text_completion(prompt="hi", max_tokens=6, temperature=0, **where)
    assert len(answer.choices[0].text.split()) == 6


def test_errors_are_litellm_s_own(complete: Callable[..., Any]) -> None:
    with pytest.raises(litellm.BadRequestError, match="context"):
        complete(max_tokens=10**6, num_retries=0)
    with pytest.raises(litellm.BadRequestError, match="response_format"):
        complete(response_format={"type": "json_schema", "json_schema": {"name": "x"}}, num_retries=0)


def test_other_models_are_not_found(server: str) -> None:
    with pytest.raises(litellm.NotFoundError, match="does not exist"):
        litellm.completion(model="openai/other", messages=MESSAGES, api_base=f"{server}/v1", api_key="none")


def test_overload_is_a_rate_limit(busy_server: str, model_id: str) -> None:
    where = {"model": f"openai/{model_id}", "api_base": f"{busy_server}/v1", "api_key": BUSY_KEY}
    with pytest.raises(litellm.RateLimitError):
        litellm.completion(messages=MESSAGES, num_retries=0, max_retries=0, **where)


def test_a_wrong_key_is_an_authentication_error(busy_server: str, model_id: str) -> None:
    where = {"model": f"openai/{model_id}", "api_base": f"{busy_server}/v1", "api_key": "guessed"}
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(messages=MESSAGES, num_retries=0, max_retries=0, **where)


def test_text_of_a_model(text_server: str) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    where = {"model": "openai/tgi", "api_base": f"{text_server}/v1", "api_key": "none"}
    answer = litellm.completion(messages=question, max_tokens=24, temperature=0, **where)
    assert "Paris" in answer.choices[0].message.content
