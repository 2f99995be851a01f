"""The main job through real clients: curl, the openai SDK and huggingface_hub against SmolLM2 on the CPU."""

from __future__ import annotations

import json
import shutil
import subprocess

from huggingface_hub import InferenceClient
from openai import OpenAI

from tests.support.live_server import LiveServer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def openai(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_curl_generate(server: LiveServer) -> None:
    body = json.dumps({"inputs": "The capital of France is", "parameters": {"max_new_tokens": 8, "details": True}})
    curl = shutil.which("curl")
    assert curl is not None
    answer = subprocess.run(
        [curl, "-s", f"{server.url}/generate", "-H", "content-type: application/json", "-d", body],
        check=True,
        capture_output=True,
    )
    generated = json.loads(answer.stdout)
    assert "Paris" in generated["generated_text"]
    assert generated["details"]["generated_tokens"] == 8


def test_openai_chat(server: LiveServer) -> None:
    with openai(server) as client:
        answer = client.chat.completions.create(model="tgi", messages=QUESTION, max_tokens=24, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens > 0


def test_openai_chat_streamed_equals_collected(server: LiveServer) -> None:
    request = {"model": "tgi", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    with openai(server) as client:
        whole = client.chat.completions.create(**request).choices[0].message.content
        chunks = client.chat.completions.create(**request, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole


def test_openai_completion_with_logprobs_and_n(server: LiveServer) -> None:
    with openai(server) as client:
        answer = client.completions.create(
            model="tgi", prompt="One, two, three,", max_tokens=6, n=2, temperature=0.8, seed=7, logprobs=2
        )
        again = client.completions.create(
            model="tgi", prompt="One, two, three,", max_tokens=6, n=2, temperature=0.8, seed=7, logprobs=2
        )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.text for choice in answer.choices] == [choice.text for choice in again.choices]
    assert len(answer.choices[0].logprobs.token_logprobs) == 6


def test_huggingface_hub_text_generation_streams_details(server: LiveServer) -> None:
    client = InferenceClient(base_url=server.url)
    prompt = "The capital of France is"
    whole = client.text_generation(prompt, max_new_tokens=8, return_full_text=False)
    assert "Paris" in whole
    # The client posts to `/`, where TGI's default is the full text.
    assert client.text_generation(prompt, max_new_tokens=8) == prompt + whole
    events = list(client.text_generation(prompt, max_new_tokens=8, return_full_text=False, stream=True, details=True))
    assert "".join(event.token.text for event in events) == whole
    assert events[-1].generated_text == whole
    assert events[-1].details.generated_tokens == 8


def test_huggingface_hub_chat(server: LiveServer) -> None:
    answer = InferenceClient(base_url=server.url).chat_completion(QUESTION, max_tokens=24, temperature=0.0)
    assert "Paris" in answer.choices[0].message.content
