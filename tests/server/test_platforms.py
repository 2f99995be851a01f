"""`/invocations`, `/vertex`, `/tokenize` and `/chat_tokenize`: other routes' bodies by other names."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL_ID
from tests.server.sse_client import events
from tests.support.tgi_rows import tgi

GREEDY = {"max_new_tokens": 6}
NATIVE = {"inputs": "hello", "parameters": GREEDY}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
PROMPT = {"prompt": "hi", "max_tokens": 6, "temperature": 0}
PAIRS = [("/", NATIVE), ("/v1/chat/completions", CHAT), ("/v1/completions", PROMPT)]
OWN = {"id", "created", "usage"}


def lasting(answer: Any) -> Any:
    return {key: value for key, value in answer.items() if key not in OWN} if isinstance(answer, dict) else answer


@tgi("1.1 POST /invocations", "1.7 invocations")
@pytest.mark.parametrize(("route", "body"), PAIRS)
def test_invocations_answer_as_the_route_of_their_body(client: httpx.Client, route: str, body: dict[str, Any]) -> None:
    invoked, direct = client.post("/invocations", json=body), client.post(route, json=body)
    assert invoked.status_code == direct.status_code == 200
    assert lasting(invoked.json()) == lasting(direct.json())
    assert invoked.headers["x-prompt-tokens"] == direct.headers["x-prompt-tokens"]


@tgi("1.1 POST /invocations", "1.7 invocations stream")
@pytest.mark.parametrize(("route", "body"), PAIRS)
def test_invocations_stream(client: httpx.Client, route: str, body: dict[str, Any]) -> None:
    body = body | {"stream": True}
    invoked, direct = events(client.post("/invocations", json=body)), events(client.post(route, json=body))
    assert (text_of(invoked), invoked[0].keys()) == (text_of(direct), direct[0].keys())
    assert (invoked[-1] == "[DONE]") == (direct[-1] == "[DONE]") == (route != "/")


def text_of(shown: list[Any]) -> str:
    """The text of a stream of either protocol, however it was cut into events."""
    if "token" in shown[0]:
        return "".join(event["token"]["text"] for event in shown)
    choices = [event["choices"][0] for event in shown if event != "[DONE]"]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


@tgi("1.7 invocations")
@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 422), ([], 422), ({"input": "x"}, 422), (CHAT | {"n": 99}, 400), (NATIVE | {"inputs": ""}, 422)],
)
def test_invocations_refuse_in_the_shape_of_their_body(client: httpx.Client, body: Any, status: int) -> None:
    refused = client.post("/invocations", json=body)
    assert refused.status_code == status
    assert ("error_type" in refused.json()) == (status == 422)


@tgi("1.1 POST /vertex", "1.7 vertex")
def test_vertex(client: httpx.Client) -> None:
    answered = client.post("/vertex", json={"instances": [NATIVE, CHAT, NATIVE | {"inputs": "other"}]})
    native = client.post("/generate", json=NATIVE).json()["generated_text"]
    chat = client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"]
    assert answered.status_code == 200
    assert answered.json().keys() == {"predictions"}
    assert answered.json()["predictions"][:2] == [native, chat]
    assert len(answered.json()["predictions"]) == 3


@tgi("1.7 vertex")
@pytest.mark.parametrize(
    "instances",
    [[], [{}], [NATIVE] * 5, [NATIVE | {"inputs": ""}], [CHAT | {"n": 2}], [CHAT | {"max_tokens": 5000}]],
)
def test_vertex_refuses_the_whole(client: httpx.Client, instances: list[Any]) -> None:
    refused = client.post("/vertex", json={"instances": instances})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")


@tgi("1.1 POST /tokenize")
@pytest.mark.parametrize("text", ["hello", "naïve 日本", "a\n b  c"])
def test_tokenize_tells_ids_and_characters(client: httpx.Client, text: str) -> None:
    tokens = client.post("/tokenize", json={"inputs": text}).json()
    assert all(token.keys() == {"id", "text", "start", "stop"} for token in tokens)
    assert [text[token["start"] : token["stop"]] for token in tokens] == [token["text"] for token in tokens]
    assert len(tokens) == int(client.post("/generate", json=NATIVE | {"inputs": text}).headers["x-prompt-tokens"])


@tgi("1.1 POST /tokenize")
def test_tokenize_truncates_from_the_left(client: httpx.Client) -> None:
    tokens = client.post("/tokenize", json={"inputs": "hello", "parameters": {"truncate": 2}}).json()
    assert [(token["text"], token["start"]) for token in tokens] == [("l", 3), ("o", 4)]


@tgi("1.1 POST /tokenize")
@pytest.mark.parametrize("body", [{}, {"inputs": ""}, {"inputs": "x", "parameters": {"truncate": 0}}, {"inputs": 5}])
def test_tokenize_refuses_as_generate_does(client: httpx.Client, body: dict[str, Any]) -> None:
    refused = client.post("/tokenize", json=body)
    assert (refused.status_code, refused.json()["error_type"]) == (422, "validation")
    assert refused.json() == client.post("/generate", json=body).json()


@tgi("1.1 POST /chat_tokenize")
def test_chat_tokenize(client: httpx.Client) -> None:
    answer = client.post("/chat_tokenize", json=CHAT | {"model": MODEL_ID}).json()
    assert answer.keys() == {"tokenize_response", "templated_text"}
    assert answer["templated_text"] == "<s>[user]hi[assistant]"
    tokens = answer["tokenize_response"]
    assert [token["text"] for token in tokens[:4]] == ["<s>", "[", "u", "s"]
    usage = client.post("/v1/chat/completions", json=CHAT).json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)


@tgi("1.1 POST /chat_tokenize", "1.9 template_error")
def test_chat_tokenize_refuses(client: httpx.Client) -> None:
    tools = client.post("/chat_tokenize", json=CHAT | {"tools": [{"type": "function"}]})
    assert (tools.status_code, tools.json()["error_type"]) == (422, "validation")
    assert client.post("/chat_tokenize", json={"messages": []}).status_code == 422
