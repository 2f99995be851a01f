"""The clients that people use, unchanged, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from huggingface_hub import InferenceClient

from tests.server.conftest import MODEL_ID, RunningServer

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def openai_client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def hub_client(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> InferenceClient:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # would forbid the loopback interface too
    return InferenceClient(server.url, timeout=30)


def test_openai_chat(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=MODEL_ID, messages=MESSAGES, max_completion_tokens=5, temperature=0, logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].logprobs.content) == 5
    assert answer.usage.completion_tokens == 5
    with openai_client.chat.completions.create(
        model=MODEL_ID,
        messages=MESSAGES,
        max_completion_tokens=5,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 5


def test_openai_accumulating_stream(openai_client: openai.OpenAI) -> None:
    whole = openai_client.chat.completions.create(
        model=MODEL_ID, messages=MESSAGES, max_completion_tokens=5, temperature=0
    )
    words = (whole.choices[0].message.content or "").split(" ")
    with openai_client.chat.completions.stream(
        model=MODEL_ID, messages=MESSAGES, max_completion_tokens=5, temperature=0, stop=words[3]
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content == " ".join(words[:3]) + " "


def test_openai_completions(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model=MODEL_ID, prompt=["a", "b"], max_tokens=3, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.tokens) == 3


def test_openai_models(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == [MODEL_ID]
    assert openai_client.models.retrieve(MODEL_ID).id == MODEL_ID


def test_openai_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        openai_client.completions.create(model=MODEL_ID, prompt="a", max_tokens=10**6, stream=True)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        openai_client.completions.create(model="other", prompt="a")


def test_hub_text_generation(hub_client: InferenceClient) -> None:
    text = hub_client.text_generation("hi", max_new_tokens=5, return_full_text=False)
    assert len(text.split()) == 5
    answer = hub_client.text_generation(
        "hi", max_new_tokens=5, details=True, top_n_tokens=2, best_of=2, do_sample=True, return_full_text=True
    )
    assert answer.generated_text.startswith("hi")
    assert answer.details.finish_reason == "length"
    assert len(answer.details.tokens) == 5
    assert len(answer.details.best_of_sequences) == 1


def test_hub_text_generation_stream(hub_client: InferenceClient) -> None:
    text = hub_client.text_generation("hi", max_new_tokens=5, return_full_text=False)
    assert "".join(hub_client.text_generation("hi", max_new_tokens=5, stream=True)) == text
    events = list(hub_client.text_generation("hi", max_new_tokens=5, stream=True, details=True, return_full_text=False))
    assert events[-1].generated_text == text
    assert events[-1].details.generated_tokens == 5


def test_hub_chat(hub_client: InferenceClient) -> None:
    answer = hub_client.chat_completion(MESSAGES, max_tokens=5, temperature=0.0)
    chunks = list(hub_client.chat_completion(MESSAGES, max_tokens=5, temperature=0.0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content


def test_hub_errors(hub_client: InferenceClient) -> None:
    with pytest.raises(Exception, match="max_new_tokens") as caught:
        hub_client.text_generation("hi", max_new_tokens=10**6)
    assert "422" in str(caught.value) or "validation" in type(caught.value).__name__.lower()
