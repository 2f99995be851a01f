"""OpenAI's routes: shapes, statuses, and what each parameter does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.server.openai import errors
from tests.server.conftest import MODEL_ID
from tests.server.sse_client import events
from tests.support.tgi_rows import ROWS, tgi

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 0}
PROMPT = {"prompt": "hi", "max_tokens": 6, "temperature": 0}


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json=CHAT | fields)


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json=PROMPT | fields)


@tgi("1.1 POST /v1/chat/completions", "1.5 body", "1.5 usage", "1.5 finish_reason")
def test_chat_shape(client: httpx.Client) -> None:
    answer = chat(client).json()
    assert answer.keys() == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL_ID)
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"].keys() == {"role", "content"}
    assert (choice["message"]["role"], choice["logprobs"], choice["finish_reason"]) == ("assistant", None, "length")
    prompt_length = len("<s>[user]hi[assistant]") - len("<s>") + 1
    usage = {"prompt_tokens": prompt_length, "completion_tokens": 6, "total_tokens": prompt_length + 6}
    assert answer["usage"].items() >= usage.items()


@tgi("1.5 id")
def test_ids_are_unique(client: httpx.Client) -> None:
    first, second = chat(client).json()["id"], chat(client).json()["id"]
    assert first != second
    assert first.startswith("chatcmpl-")


def test_cached_prompt_tokens_are_counted(client: httpx.Client) -> None:
    long = [{"role": "user", "content": "a long prompt that fills several blocks " * 4}]
    chat(client, messages=long)
    usage = chat(client, messages=long).json()["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]
    twice = chat(client, messages=long, n=2).json()["usage"]
    assert twice["prompt_tokens"] == usage["prompt_tokens"]
    assert twice["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


@tgi("1.5 stream", "1.5 max_tokens")
def test_chat_stream_is_the_same_answer(client: httpx.Client) -> None:
    whole = chat(client).json()["choices"][0]["message"]["content"]
    *chunks, done = events(chat(client, stream=True))
    assert done == "[DONE]"
    assert all(
        chunk.keys() == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
        for chunk in chunks
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.get("content", "") for delta in deltas) == whole
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1


@tgi("1.5 stream_options")
def test_usage_chunk_only_when_asked_for(client: httpx.Client) -> None:
    plain = events(chat(client, stream=True))
    assert all(chunk["usage"] is None for chunk in plain[:-1])
    *_, last, done = events(chat(client, stream=True, stream_options={"include_usage": True}))
    assert (last["choices"], last["usage"]["completion_tokens"], done) == ([], 6, "[DONE]")


@tgi("1.5 logprobs", "1.5 top_logprobs")
def test_chat_logprobs(client: httpx.Client) -> None:
    content = chat(client, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    for entry in content:
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert next(top["token"] for top in entry["top_logprobs"]) == entry["token"]
        assert len(entry["top_logprobs"]) == 2
    streamed = events(chat(client, stream=True, logprobs=True, top_logprobs=2))[:-1]
    assert [e for chunk in streamed for e in chunk["choices"][0]["logprobs"]["content"]] == content


@tgi("1.5 n", "1.5 temperature")
def test_n_sequences(client: httpx.Client) -> None:
    choices = chat(client, n=3, temperature=1).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in choices}) == 3


@tgi("1.5 prefix completion")
def test_last_assistant_message_is_continued(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]
    assert chat(client, messages=messages).json()["usage"]["prompt_tokens"] == 1 + len("[user]hi[assistant]well")


@tgi("1.5 messages")
def test_text_parts_are_joined(client: httpx.Client) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    whole = chat(client).json()["choices"][0]["message"]
    assert chat(client, messages=[{"role": "user", "content": parts}]).json()["choices"][0]["message"] == whole


@tgi("1.5 stop", "1.6 stop", "1.6 finish_reason")
@pytest.mark.parametrize("as_list", [False, True])
def test_stop_is_cut_off(client: httpx.Client, as_list: bool) -> None:
    words = complete(client).json()["choices"][0]["text"].split(" ")
    stop = f"{words[3][:3]}"
    answer = complete(client, stop=[stop, "never"] if as_list else stop).json()
    expected = " ".join(words)
    assert answer["choices"][0]["text"] == expected[: expected.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    chunks = events(complete(client, stop=stop, stream=True))[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_stop_token_ids(client: httpx.Client) -> None:
    tokens = complete(client, logprobs=0).json()["choices"][0]["logprobs"]["tokens"]
    stop_id = int(tokens[2].removeprefix(" w"))
    answer = complete(client, stop_token_ids=[stop_id]).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("".join(tokens[:2]), "stop")
    assert answer["usage"]["completion_tokens"] == 3


@tgi("1.1 POST /v1/completions", "1.6 body")
def test_completion_shape_and_logprobs(client: httpx.Client) -> None:
    answer = complete(client, logprobs=2).json()
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert [
        choice["text"][offset:][: len(token)]
        for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True)
    ] == logprobs["tokens"]
    assert all(len(top) == 2 for top in logprobs["top_logprobs"])
    streamed = events(complete(client, logprobs=2, stream=True))[:-1]
    offsets = [offset for chunk in streamed for offset in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == logprobs["text_offset"]


@tgi("1.6 prompt", "1.6 choices", "1.6 usage")
def test_prompts_in_all_four_forms(client: httpx.Client) -> None:
    alone = complete(client).json()["choices"][0]["text"]
    ids = [3 + byte for byte in b"hi"]  # the tiny vocabulary begins with three specials and the bytes in order
    assert complete(client, prompt=ids).json()["choices"][0]["text"] == alone
    for prompt in (["hi", "ho"], [ids, [3 + byte for byte in b"ho"]]):
        answer = complete(client, prompt=prompt, n=2, temperature=0).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["choices"][0]["text"] == alone
        assert answer["choices"][2]["text"] == complete(client, prompt="ho").json()["choices"][0]["text"]
        assert answer["usage"]["prompt_tokens"] == 4


@tgi("1.6 stream")
def test_several_prompts_in_a_stream(client: httpx.Client) -> None:
    chunks = events(complete(client, prompt=["hi", "ho"], stream=True))[:-1]
    for index, prompt in enumerate(["hi", "ho"]):
        text = "".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == index)
        assert text == complete(client, prompt=prompt).json()["choices"][0]["text"]


def test_echo(client: httpx.Client) -> None:
    text = complete(client).json()["choices"][0]["text"]
    assert complete(client, echo=True).json()["choices"][0]["text"] == "hi" + text
    chunks = events(complete(client, echo=True, stream=True))[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hi" + text


@tgi("1.5 seed", "1.6 seed")
@pytest.mark.parametrize("call", [chat, complete])
def test_seed_repeats(client: httpx.Client, call: Callable[..., httpx.Response]) -> None:
    answers = [call(client, temperature=1, seed=seed).json()["choices"] for seed in (-7, -7, 8)]
    assert answers[0] == answers[1] != answers[2]


@tgi(
    "1.5 unknown fields",
    "1.5 frequency_penalty",
    "1.5 presence_penalty",
    "1.5 logit_bias",
    "1.5 top_p",
    "1.6 repetition_penalty",
    "1.6 frequency_penalty",
)
@pytest.mark.parametrize("call", [chat, complete])
def test_extras_are_accepted(client: httpx.Client, call: Callable[..., httpx.Response]) -> None:
    extras = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "min_tokens": 2,
        "priority": 3,
        "presence_penalty": -1,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": -100},
        "user": "somebody",
        "top_p": 1.0,
        "response_format": {"type": "text"},
    }
    assert call(client, temperature=0.7, **extras).status_code == 200


@tgi("1.1 GET /v1/models", "1.8 models")
def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert (listed["object"], [entry["id"] for entry in listed["data"]]) == ("list", [MODEL_ID])
    assert listed["data"][0].keys() >= {"id", "object", "created", "owned_by"}
    assert client.get(f"/v1/models/{MODEL_ID}").json() == listed["data"][0]
    assert client.get("/v1/models/other").status_code == 404


@tgi("1.5 model")
@pytest.mark.parametrize("name", [None, "tgi", "http://127.0.0.1:3000", MODEL_ID])
def test_names_of_the_model(client: httpx.Client, name: str | None) -> None:
    assert chat(client, model=name).status_code == 200


@tgi("1.5 model")
def test_another_model_is_not_found(client: httpx.Client) -> None:
    response = chat(client, model="gpt-4", stream=True)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


REFUSED = [
    ({"max_tokens": 0}, "max_tokens", None),
    ({"max_tokens": True}, "max_tokens", None),
    ({"max_tokens": 5000}, "max_tokens", "context_length_exceeded"),
    ({"temperature": -1}, "temperature", None),
    ({"temperature": "1"}, "temperature", None),
    ({"top_p": 0}, "top_p", None),
    ({"top_p": 1.01}, "top_p", None),
    ({"n": 9}, "n", None),
    ({"seed": 2**63}, "seed", None),
    ({"presence_penalty": 2.1}, "presence_penalty", None),
    ({"stop": [""]}, "stop.0", None),
    ({"stop": ["a"] * 17}, "stop", None),
    ({"logit_bias": [1.0]}, "logit_bias", None),
    ({"logit_bias": {"1000": 1}}, "logit_bias", None),
    ({"logit_bias": {"-1": 1}}, "logit_bias", None),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", None),
    ({"stop_token_ids": [1000]}, "stop_token_ids", None),
    ({"min_tokens": 7}, "min_tokens", None),
    ({"stream_options": {"include_usage": True}}, "stream_options", None),
    ({"response_format": {"type": "xml"}}, "response_format.type", None),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", None),
    ({"guided_regex": "a", "min_tokens": 3}, "min_tokens", None),
    ({"guided_json": "{"}, "guided_json", None),
]
REFUSED_CHATS = [
    *REFUSED,
    ({"tools": [{"type": "function"}]}, "tools.0.function", None),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name", None),
    ({"tool_choice": "required"}, "tool_choice", None),
    ({"top_logprobs": 2}, "top_logprobs", None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
    ({"messages": []}, "messages", None),
    ({"messages": [{"content": "x"}]}, "messages.0.role", None),
    ({"messages": [{"role": "user"}]}, "messages.0.content", None),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0.image_url",
        "unsupported_parameter",
    ),
]
REFUSED_COMPLETIONS = [
    *REFUSED,
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"best_of": 2, "n": 3}, "best_of", None),
    ({"best_of": 9}, "best_of", None),
    ({"prompt": []}, "prompt", None),
    ({"prompt": ""}, "prompt", None),
    ({"prompt": ["a"] * 5}, "prompt", None),
    ({"prompt": [1000]}, "prompt", None),
]


def marked(section: str, cases: list[tuple[dict[str, Any], str, str | None]]) -> list[Any]:
    """Each case with the row of TGI's behaviour that its first field is."""
    rows = [f"{section} {next(iter(fields))}" for fields, _, _ in cases]
    return [pytest.param(*case, marks=tgi(row) if row in ROWS else ()) for case, row in zip(cases, rows, strict=True)]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("fields", "param", "code"), marked("1.5", REFUSED_CHATS))
def test_refused_chats(
    client: httpx.Client, fields: dict[str, Any], param: str, code: str | None, streams: bool
) -> None:
    if streams and param == "stream_options":
        fields = {"stream_options": {"include_usage": 1}}
        param = "stream_options.include_usage"
    check_refusal(chat(client, stream=streams, **fields), param, code)


@pytest.mark.parametrize(("fields", "param", "code"), marked("1.6", REFUSED_COMPLETIONS))
def test_refused_completions(client: httpx.Client, fields: dict[str, Any], param: str, code: str | None) -> None:
    check_refusal(complete(client, **fields), param, code)


def check_refusal(response: httpx.Response, param: str, code: str | None) -> None:
    assert response.status_code == 400
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert param.rpartition(".")[2] in error["message"] or param in error["message"]


def test_broken_json(client: httpx.Client) -> None:
    response = client.post("/v1/completions", content=b'{"a": NaN}', headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_timing_headers(client: httpx.Client) -> None:
    headers = chat(client).headers
    assert headers["x-compute-type"] == "sim"
    assert headers["x-generated-tokens"] == "6"


@tgi("1.6 batch size")
def test_so_many_prompts_and_no_more(client: httpx.Client) -> None:
    assert len(complete(client, prompt=["a"] * 4).json()["choices"]) == 4
    assert "at most 4 are allowed" in complete(client, prompt=["a"] * 5).json()["error"]["message"]


def test_best_of_answers_with_the_likeliest(client: httpx.Client) -> None:
    fields = {"temperature": 1, "seed": 5, "max_tokens": 4, "prompt": ["hi", "ho"], "logprobs": 0}
    every = complete(client, n=4, **fields).json()
    best = complete(client, n=2, best_of=4, **fields).json()
    for prompt in range(2):
        ranked = sorted(every["choices"][4 * prompt :][:4], key=mean_logprob, reverse=True)
        chosen = best["choices"][2 * prompt :][:2]
        assert [choice["text"] for choice in chosen] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert best["usage"]["completion_tokens"] == every["usage"]["completion_tokens"] == 32
    unasked = complete(client, **fields | {"best_of": 4, "logprobs": None, "echo": True}).json()["choices"]
    assert [(choice["logprobs"], choice["text"][:2]) for choice in unasked] == [(None, "hi"), (None, "ho")]


def mean_logprob(choice: dict[str, Any]) -> float:
    found = choice["logprobs"]["token_logprobs"]
    return float(sum(found)) / len(found)


def test_best_of_is_not_streamed(client: httpx.Client) -> None:
    refused = complete(client, stream=True, best_of=2)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")
    assert complete(client, stream=True, best_of=1).status_code == 200


@tgi("1.5 unknown fields")
def test_fields_without_effect_are_taken(client: httpx.Client) -> None:
    idle = {
        "user": "somebody",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "tool_prompt": "z",
        "tool_choice": "auto",
        "no_such_field": {"nested": [1]},
    }
    plain = chat(client).json()["choices"]
    assert chat(client, **idle).json()["choices"] == plain
    assert chat(client, **dict.fromkeys(idle)).json()["choices"] == plain


def test_several_sequences_in_a_stream(client: httpx.Client) -> None:
    fields = {"n": 3, "temperature": 1, "seed": 11}
    whole = [choice["message"]["content"] for choice in chat(client, **fields).json()["choices"]]
    *chunks, last, done = events(chat(client, stream=True, stream_options={"include_usage": True}, **fields))
    assert (last["choices"], last["usage"]["completion_tokens"], done) == ([], 18, "[DONE]")
    for index, text in enumerate(whole):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert [choice["delta"].get("role") for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
def test_no_usage_chunk_unless_asked_for(client: httpx.Client, options: dict[str, bool] | None) -> None:
    assert all(chunk["choices"] for chunk in events(chat(client, stream=True, stream_options=options))[:-1])


@tgi("1.6 repetition_penalty", "1.6 frequency_penalty")
def test_penalties_are_taken(client: httpx.Client) -> None:
    answered = complete(client, repetition_penalty=1.3, frequency_penalty=-1.5, presence_penalty=2)
    assert answered.status_code == 200
    for name in ("repetition_penalty", "frequency_penalty"):
        check_refusal(complete(client, **{name: -3}), name, None)


@tgi("1.5 errors in the stream")
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (ErrorKind.OVERLOADED, 429, "overloaded"),
        (ErrorKind.DEADLINE, 504, "deadline_exceeded"),
        (ErrorKind.OUT_OF_MEMORY, 500, "out_of_memory"),
        (ErrorKind.NUMERICAL, 500, "numerical_error"),
        (ErrorKind.ENGINE_DEAD, 503, "engine_dead"),
        (ErrorKind.SHUTTING_DOWN, 503, "unavailable"),
        (ErrorKind.INTERNAL, 500, "internal_error"),
    ],
)
def test_an_error_has_one_shape_before_and_in_the_stream(kind: ErrorKind, status: int, code: str) -> None:
    error = RequestError(kind, "it failed")
    answer, event = errors.error_response(error), errors.error_event(error)
    assert answer.status_code == status
    assert json.loads(event.removeprefix(b"data: ")) == json.loads(answer.body)
    shown = json.loads(answer.body)["error"]
    assert (shown["message"], shown["param"], shown["code"]) == ("it failed", None, code)
