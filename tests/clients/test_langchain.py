"""langchain-openai and langchain-huggingface: invoke, stream, batch, and the asynchronous calls."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from huggingface_hub.errors import HfHubHTTPError, ValidationError
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint
from langchain_openai import ChatOpenAI, OpenAI

from tests.clients.conftest import saying

SIX: dict[str, Any] = {"max_tokens": 6, "temperature": 0}


@pytest.fixture
def chat(server: str, model_id: str) -> ChatOpenAI:
    return ChatOpenAI(model=model_id, base_url=f"{server}/v1", api_key="none", max_retries=0, **SIX)


@pytest.fixture
def endpoint(server: str) -> HuggingFaceEndpoint:
    return HuggingFaceEndpoint(endpoint_url=server, max_new_tokens=6, seed=7, return_full_text=False)


def test_openai_chat(chat: ChatOpenAI) -> None:
    answer = chat.invoke("hi")
    assert len(answer.content.split()) == 6
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 6
    assert "".join(chunk.content for chunk in chat.stream("hi")) == answer.content
    assert [message.content for message in chat.batch(["hi", "hi"])] == [answer.content] * 2


def test_openai_chat_asynchronously(chat: ChatOpenAI) -> None:
    async def streamed() -> str:
        return "".join([chunk.content async for chunk in chat.astream("hi")])

    assert asyncio.run(streamed()) == chat.invoke("hi").content


def test_openai_chat_in_a_chain(chat: ChatOpenAI) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "Be {manner}."), ("user", "{question}")]) | chat
    assert chain.invoke({"manner": "brief", "question": "hi"}).content != chat.invoke("hi").content


def test_openai_chat_parameters(server: str, model_id: str) -> None:
    chat = ChatOpenAI(
        model=model_id,
        base_url=f"{server}/v1",
        api_key="none",
        max_tokens=6,
        temperature=0.7,
        top_p=0.9,
        seed=7,
        n=2,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        logprobs=True,
        top_logprobs=2,
        logit_bias={400: 1},
        stop=["never"],
        extra_body={"top_k": 3},
    )
    (generations,) = chat.generate([[HumanMessage("hi")]]).generations
    assert len(generations) == 2
    assert len(generations[0].message.response_metadata["logprobs"]["content"]) == 6


def test_openai_chat_stream_counts(server: str, model_id: str) -> None:
    chat = ChatOpenAI(model=model_id, base_url=f"{server}/v1", api_key="none", stream_usage=True, **SIX)
    total = None
    for chunk in chat.stream("hi"):
        total = chunk if total is None else total + chunk
    assert total.usage_metadata["output_tokens"] == 6


def test_openai_completions(server: str, model_id: str) -> None:
    model = OpenAI(model=model_id, base_url=f"{server}/v1", api_key="none", **SIX)
    text = model.invoke("hi")
    assert len(text.split()) == 6
    assert "".join(model.stream("hi")) == text
    assert model.batch(["hi", "hi"]) == [text, text]


def test_openai_tools(server: str, model_id: str) -> None:
    def add(first: int, second: int) -> int:
        """Adds two numbers."""
        return first + second

    chat = ChatOpenAI(model=model_id, base_url=f"{server}/v1", api_key="none").bind_tools([add])
    asked = HumanMessage(saying('{"name": "add", "parameters": {"first": 1, "second": 2}}'))
    answer = chat.invoke([asked])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("add", {"first": 1, "second": 2})
    streamed = [chunk for message in chat.stream([asked]) for chunk in message.tool_call_chunks]
    assert "".join(chunk["args"] or "" for chunk in streamed) == '{"first": 1, "second": 2}'
    result = ToolMessage(saying("3"), tool_call_id=call["id"])
    assert chat.invoke([asked, answer, result]).content == "3"


def test_openai_refusals(chat: ChatOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="functions"):
        chat.invoke("hi", functions=[{"name": "f", "parameters": {}}])


def test_huggingface_endpoint(endpoint: HuggingFaceEndpoint) -> None:
    text = endpoint.invoke("hi")
    assert len(text.split()) == 6
    assert "".join(endpoint.stream("hi")) == text


def test_huggingface_endpoint_asynchronously(endpoint: HuggingFaceEndpoint) -> None:
    assert asyncio.run(endpoint.ainvoke("hi")) == endpoint.invoke("hi")


def test_huggingface_endpoint_parameters(server: str) -> None:
    endpoint = HuggingFaceEndpoint(
        endpoint_url=server,
        max_new_tokens=6,
        do_sample=True,
        seed=7,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        typical_p=0.9,
        repetition_penalty=1.2,
        truncate=10,
        stop_sequences=["never"],
    )
    assert endpoint.invoke("hi") == endpoint.invoke("hi")


def test_huggingface_endpoint_refusal(server: str) -> None:
    endpoint = HuggingFaceEndpoint(endpoint_url=server, watermark=True)
    with pytest.raises((ValidationError, HfHubHTTPError), match="watermark"):
        endpoint.invoke("hi")


def test_huggingface_chat(endpoint: HuggingFaceEndpoint, model_id: str) -> None:
    chat = ChatHuggingFace(llm=endpoint, model_id="tgi", max_tokens=6)
    answer = chat.invoke("hi")
    assert len(answer.content.split()) == 6
    assert len("".join(chunk.content for chunk in chat.stream("hi")).split()) == 6  # it sends no seed with a stream


def test_text_of_a_model(text_server: str) -> None:
    chat = ChatOpenAI(model="tgi", base_url=f"{text_server}/v1", api_key="none", max_tokens=24, temperature=0)
    assert "Paris" in chat.invoke("What is the capital of France?").content
