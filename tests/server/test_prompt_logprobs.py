"""Log-probabilities of prompts on every route that has them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.sse_client import events
from tests.support.tgi_rows import tgi

PROMPT = "hi there you"
"""A token a character."""


def complete(client: httpx.Client, **fields: Any) -> Any:
    response = client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 4, "temperature": 0} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def generate(client: httpx.Client, **parameters: Any) -> Any:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4} | parameters}
    response = client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response.json()


# --- TGI


@tgi("1.2 decoder_input_details", "1.3 prefill")
def test_decoder_input_details_fill_prefill(client: httpx.Client) -> None:
    details = generate(client, decoder_input_details=True)["details"]
    assert [token["text"] for token in details["prefill"]] == list(PROMPT)
    assert all(token.keys() == {"id", "text", "logprob"} for token in details["prefill"])
    first, *others = details["prefill"]
    assert first["logprob"] is None
    assert all(token["logprob"] < 0 for token in others)
    assert len(details["tokens"]) == 4
    plain = generate(client, details=True)["details"]
    assert plain["prefill"] == []
    assert plain["tokens"] == details["tokens"]


def test_prefill_of_a_truncated_prompt(client: httpx.Client) -> None:
    prefill = generate(client, decoder_input_details=True, truncate=5)["details"]["prefill"]
    assert [token["text"] for token in prefill] == list(PROMPT[-5:])
    assert prefill[0]["logprob"] is None


def test_prefill_of_every_best_of_sequence(client: httpx.Client) -> None:
    details = generate(client, decoder_input_details=True, do_sample=True, best_of=2)["details"]
    (other,) = details["best_of_sequences"]
    assert len(details["prefill"]) == len(PROMPT)
    assert details["prefill"] == other["prefill"]


def test_decoder_input_details_need_one_answer(client: httpx.Client) -> None:
    body = {"inputs": PROMPT, "parameters": {"decoder_input_details": True}}
    message = "`decoder_input_details` == true is not supported when streaming tokens"
    refused = {"error": f"Input validation error: {message}", "error_type": "validation"}
    for response in (
        client.post("/generate_stream", json=body),
        client.post("/", json=body | {"stream": True}),
    ):
        assert (response.status_code, response.json()) == (422, refused)
    (answer,) = client.post("/", json=body).json()
    assert len(answer["details"]["prefill"]) == len(PROMPT)


# --- OpenAI's echo


def test_echo_with_logprobs_is_of_the_whole_text(client: httpx.Client) -> None:
    (choice,) = complete(client, echo=True, logprobs=2)["choices"]
    (alone,) = complete(client, logprobs=2)["choices"]
    found, generated = choice["logprobs"], alone["logprobs"]
    assert choice["text"] == PROMPT + alone["text"]
    assert found["tokens"] == list(PROMPT) + generated["tokens"]
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert all(logprob < 0 for logprob in found["token_logprobs"][1:])
    assert all(len(top) == 2 for top in found["top_logprobs"][1:])
    assert found["token_logprobs"][-4:] == generated["token_logprobs"]
    assert found["top_logprobs"][-4:] == generated["top_logprobs"]
    offsets = found["text_offset"]
    assert len(offsets) == len(found["tokens"])
    for token, begin, end in zip(found["tokens"], offsets, [*offsets[1:], len(choice["text"])], strict=True):
        assert choice["text"][begin:end] == token


@pytest.mark.parametrize("logprobs", [0, 3])
def test_a_prompt_is_scored_and_nothing_generated(client: httpx.Client, logprobs: int) -> None:
    answer = complete(client, echo=True, logprobs=logprobs, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert choice["logprobs"]["tokens"] == list(PROMPT)
    assert (choice["logprobs"]["top_logprobs"] is None) == (logprobs == 0)
    assert answer["usage"].items() >= {"prompt_tokens": len(PROMPT), "completion_tokens": 0}.items()
    more = complete(client, echo=True, logprobs=logprobs, max_tokens=1)["choices"][0]["logprobs"]
    assert more["token_logprobs"][:-1] == choice["logprobs"]["token_logprobs"]


def test_an_echo_without_logprobs_of_nothing_is_the_prompt(client: httpx.Client) -> None:
    assert complete(client, echo=True, max_tokens=0)["choices"][0]["text"] == PROMPT


def test_an_echo_is_the_same_in_a_stream(client: httpx.Client) -> None:
    for fields in ({"max_tokens": 4}, {"max_tokens": 0}, {"n": 2, "max_tokens": 3}):
        asked = {"echo": True, "logprobs": 1, **fields}
        body = {"prompt": PROMPT, "temperature": 0, "stream": True, **asked}
        chunks = events(client.post("/v1/completions", json=body))[:-1]
        for choice in complete(client, **asked)["choices"]:
            parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
            assert "".join(part["text"] for part in parts) == choice["text"]
            for name, values in choice["logprobs"].items():
                assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values


def test_every_choice_of_every_prompt_is_echoed(client: httpx.Client) -> None:
    prompts = [PROMPT, "ho"]
    choices = complete(client, prompt=prompts, n=2, echo=True, logprobs=1)["choices"]
    for index, choice in enumerate(choices):
        prompt = prompts[index // 2]
        assert choice["text"].startswith(prompt)
        assert choice["logprobs"]["tokens"][: len(prompt)] == list(prompt)
        assert choice["logprobs"]["token_logprobs"].count(None) == 1


def test_evaluation_harnesses_score_continuations_by_token_ids(client: httpx.Client) -> None:
    """What lm-eval's local-completions sends, and what it reads: the context's tokens and the last one cut off."""
    context, continuation = [ord(letter) + 3 for letter in "hi the"], [ord(letter) + 3 for letter in "re"]
    answer = complete(client, prompt=[context + continuation], max_tokens=1, logprobs=1, seed=1234, echo=True)
    (choice,) = answer["choices"]
    found = choice["logprobs"]["token_logprobs"][len(context) : -1]
    assert len(found) == len(continuation)
    assert all(isinstance(logprob, float) for logprob in found)
    for logprob, top in zip(found, choice["logprobs"]["top_logprobs"][len(context) : -1], strict=True):
        assert max(top.values()) >= logprob


# --- vLLM's extra


def test_prompt_logprobs_of_a_completion(client: httpx.Client) -> None:
    (choice,) = complete(client, prompt_logprobs=2)["choices"]
    assert choice["text"] == complete(client)["choices"][0]["text"]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    assert len(others) == len(PROMPT) - 1
    echoed = complete(client, echo=True, logprobs=2, max_tokens=0)["choices"][0]["logprobs"]["token_logprobs"]
    for letter, entries, logprob in zip(PROMPT[1:], others, echoed[1:], strict=True):
        assert 2 <= len(entries) <= 3
        assert [entry["rank"] for entry in entries.values()][:2] == [1, 2]
        own = entries[str(ord(letter) + 3)]
        assert (own["decoded_token"], own["logprob"]) == (letter, logprob)


def test_prompt_logprobs_of_a_chat(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "prompt_logprobs": 0}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert all(len(entries) == 1 for entries in answer["prompt_logprobs"][1:])


def test_prompt_logprobs_without_a_token(client: httpx.Client) -> None:
    (choice,) = complete(client, prompt_logprobs=0, max_tokens=0)["choices"]
    assert (choice["text"], len(choice["prompt_logprobs"])) == ("", len(PROMPT))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ],
)
def test_refusals(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = client.post("/v1/completions", json={"prompt": PROMPT} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
