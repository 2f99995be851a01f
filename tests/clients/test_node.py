"""The npm packages openai and @huggingface/inference, through the programs in `node/`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest


def run(program: str, *arguments: str) -> Any:
    """What the program printed, as JSON."""
    path = Path(__file__).parent / "node" / program
    ended = subprocess.run(["node", path, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def by_openai(server: str, model_id: str) -> Any:
    return run("openai.mjs", server, model_id)


@pytest.fixture(scope="module")
def by_huggingface(server: str) -> Any:
    return run("huggingface.mjs", server)


def test_openai_chat_streamed_and_whole(by_openai: Any, model_id: str) -> None:
    chat = by_openai["chat"]
    assert (chat["message"]["role"], chat["finish_reason"]) == ("assistant", "length")
    assert by_openai["streamed"] == chat["message"]["content"]
    assert by_openai["usage"]["completion_tokens"] == by_openai["streamedUsage"]["completion_tokens"] == 6
    assert by_openai["models"] == [model_id]


def test_openai_accumulating_stream(by_openai: Any) -> None:
    accumulated = by_openai["accumulated"]
    assert accumulated["finish_reason"] == "stop"
    whole = by_openai["chat"]["message"]["content"]
    assert whole.partition("9")[0] == accumulated["message"]["content"]


def test_openai_parameters(by_openai: Any) -> None:
    first, second = by_openai["sampled"]
    assert first != second
    assert "".join(entry["token"] for entry in by_openai["logprobs"]) == by_openai["chat"]["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in by_openai["logprobs"])
    assert by_openai["stopped"]["finish_reason"] == "stop"
    assert not set("89") & set(by_openai["stopped"]["text"])
    assert by_openai["biased"] == " w400 w400"


def test_openai_errors(by_openai: Any) -> None:
    bad = {"name": "BadRequestError", "status": 400}
    assert by_openai["errors"] == {
        "tooLong": {**bad, "param": "max_tokens", "code": "context_length_exceeded"},
        "tools": {**bad, "param": "tools.0.function.name", "code": None},
        "streamed": {**bad, "param": "temperature", "code": None},
        "otherModel": {"name": "NotFoundError", "status": 404, "param": "model", "code": "model_not_found"},
    }


def test_huggingface_text_generation(by_huggingface: Any) -> None:
    text = by_huggingface["generated"]["generated_text"]
    assert len(text.split()) == 6
    assert "".join(by_huggingface["tokens"]) == text
    assert by_huggingface["last"]["finish_reason"] == "length"


def test_huggingface_chat(by_huggingface: Any) -> None:
    assert by_huggingface["chat"]["finish_reason"] == "length"
    assert by_huggingface["streamed"] == by_huggingface["chat"]["message"]["content"]


def test_huggingface_errors(by_huggingface: Any) -> None:
    for call, param in (("temperature", "temperature"), ("chat", "max_tokens")):
        error = by_huggingface["errors"][call]
        assert (error["name"], error["status"]) == ("InferenceClientProviderApiError", 400)
        assert error["body"]["error"]["param"] == param
