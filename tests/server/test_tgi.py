"""TGI's routes: the shapes of its OpenAPI document, its statuses and texts, and its rules."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.sse_client import events
from tests.support.tgi_rows import tgi

GREEDY = {"max_new_tokens": 6}


def generate(client: httpx.Client, inputs: str = "hello", **parameters: Any) -> httpx.Response:
    return client.post("/generate", json={"inputs": inputs, "parameters": GREEDY | parameters})


def stream(client: httpx.Client, inputs: str = "hello", **parameters: Any) -> list[Any]:
    return events(client.post("/generate_stream", json={"inputs": inputs, "parameters": GREEDY | parameters}))


@tgi("1.1 POST /generate", "1.3 body", "1.2 max_new_tokens")
def test_generate_without_details(client: httpx.Client) -> None:
    answer = generate(client).json()
    assert answer.keys() == {"generated_text"}
    assert len(answer["generated_text"].split()) == 6


@tgi("1.2 details", "1.3 details", "1.3 finish_reason")
def test_details_have_the_documented_fields(client: httpx.Client) -> None:
    details = generate(client, details=True).json()["details"]
    assert details.keys() == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert (details["finish_reason"], details["generated_tokens"], details["prefill"]) == ("length", 6, [])
    assert details["seed"] is None
    for token in details["tokens"]:
        assert token.keys() == {"id", "text", "logprob", "special"}
        assert isinstance(token["id"], int)
        assert token["logprob"] < 0
        assert token["special"] is False


@tgi("1.3 tokens")
def test_text_is_the_tokens_text(client: httpx.Client) -> None:
    answer = generate(client, details=True).json()
    assert "".join(token["text"] for token in answer["details"]["tokens"]) == answer["generated_text"]


@tgi("1.2 top_n_tokens", "1.3 top_tokens")
def test_top_tokens(client: httpx.Client) -> None:
    details = generate(client, details=True, top_n_tokens=3).json()["details"]
    assert [len(top) for top in details["top_tokens"]] == [3] * 6
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert top[0] == token
        assert [entry["logprob"] for entry in top] == sorted((entry["logprob"] for entry in top), reverse=True)


@tgi("1.2 seed")
def test_seed_is_reported_and_repeats(client: httpx.Client) -> None:
    first = generate(client, do_sample=True, seed=2**64 - 1, details=True).json()
    again = generate(client, do_sample=True, seed=2**64 - 1, details=True).json()
    assert first == again
    assert first["details"]["seed"] == 2**64 - 1


@tgi("1.2 do_sample")
def test_missing_parameters_sample_and_an_empty_object_does_not(client: httpx.Client) -> None:
    shown = client.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 1, "details": True}})
    assert shown.json()["details"]["seed"] is None
    sampled = generate(client, temperature=0.5, details=True).json()
    assert sampled["details"]["seed"] is not None


@tgi("1.2 best_of", "1.3 best_of_sequences")
def test_best_of_ranks_by_mean_logprob(client: httpx.Client) -> None:
    details = generate(client, do_sample=True, best_of=2, details=True).json()["details"]
    (other,) = details["best_of_sequences"]
    assert other.keys() == {"generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    means = [sum(t["logprob"] for t in part["tokens"]) / len(part["tokens"]) for part in (details, other)]
    assert means[0] >= means[1]


@tgi("1.2 return_full_text")
def test_return_full_text(client: httpx.Client) -> None:
    assert generate(client, return_full_text=True).json()["generated_text"].startswith("hello")
    assert stream(client, return_full_text=True)[-1]["generated_text"].startswith("hello")


@tgi("1.2 truncate")
def test_truncate_keeps_the_end(client: httpx.Client) -> None:
    whole = generate(client, "bcd").json()["generated_text"]
    assert generate(client, "aaaabcd", truncate=3).json()["generated_text"] == whole
    assert generate(client, "aaaabcd").json()["generated_text"] != whole


@tgi("1.2 stop")
def test_stop_string_stays_and_ends_the_text(client: httpx.Client) -> None:
    words = generate(client).json()["generated_text"].split(" ")
    stop = f"{words[2]} {words[3][:2]}"  # across two tokens, and inside the second
    answer = generate(client, stop=["nothing", stop], details=True).json()
    assert answer["generated_text"] == " ".join(words[:3]) + f" {words[3][:2]}"
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["details"]["generated_tokens"] == 3
    shown = stream(client, stop=["nothing", stop], details=True)
    assert "".join(event["token"]["text"] for event in shown) == answer["generated_text"]
    assert shown[-1]["generated_text"] == answer["generated_text"]


@tgi("1.1 POST /generate_stream", "1.4 events", "1.4 last event", "1.4 details")
def test_stream_events(client: httpx.Client) -> None:
    shown = stream(client, details=True, top_n_tokens=2)
    assert [event["index"] for event in shown] == [1, 2, 3, 4, 5, 6]
    for event in shown:
        assert event.keys() == {"index", "token", "top_tokens", "generated_text", "details"}
    assert all(event["generated_text"] is None and event["details"] is None for event in shown[:-1])
    assert shown[-1]["details"] == {"finish_reason": "length", "generated_tokens": 6, "seed": None, "input_length": 5}
    assert shown[-1]["generated_text"] == generate(client).json()["generated_text"]
    assert stream(client)[-1]["details"] is None


@tgi("1.1 POST /", "1.7 compat", "1.7 compat stream")
def test_compat_route(client: httpx.Client) -> None:
    (answer,) = client.post("/", json={"inputs": "hello", "parameters": GREEDY}).json()
    assert answer["generated_text"].startswith("hello ")
    body = {"inputs": "hello", "parameters": GREEDY, "stream": True}
    assert len(events(client.post("/", json=body))) == 6


@tgi(
    "2.3 x-compute-type",
    "2.3 x-compute-time",
    "2.3 x-compute-characters",
    "2.3 x-total-time",
    "2.3 x-validation-time",
    "2.3 x-queue-time",
    "2.3 x-inference-time",
    "2.3 x-time-per-token",
    "2.3 x-prompt-tokens",
    "2.3 x-generated-tokens",
    "1.4 headers",
    "2.3 X-Accel-Buffering",
)
def test_headers(client: httpx.Client) -> None:
    headers = generate(client).headers
    assert headers["x-compute-type"] == "sim"
    assert headers["x-compute-characters"] == "5"
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == ("5", "6")
    assert float(headers["x-compute-time"]) > 0
    for name in ("total", "validation", "queue", "inference"):
        assert headers[f"x-{name}-time"].isdigit()
    assert headers["x-time-per-token"].isdigit()
    streamed = client.post("/generate_stream", json={"inputs": "hello", "parameters": GREEDY}).headers
    assert (streamed["x-compute-type"], streamed["x-accel-buffering"]) == ("sim", "no")


@tgi("1.8 info")
def test_info(client: httpx.Client) -> None:
    info = client.get("/info").json()
    documented = {
        "model_id": str,
        "max_concurrent_requests": int,
        "max_best_of": int,
        "max_stop_sequences": int,
        "max_input_tokens": int,
        "max_total_tokens": int,
        "validation_workers": int,
        "max_client_batch_size": int,
        "router": str,
        "version": str,
    }
    assert {name: type(info[name]) for name in documented} == documented
    assert {"model_sha", "model_pipeline_tag", "sha", "docker_label"} <= info.keys()
    assert info["max_input_tokens"] == info["max_total_tokens"] - 1 == 2047


REFUSED = [
    ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"temperature": 0.0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"top_p": 0.0}, "`top_p` must be > 0.0 and <= 1.0"),
    ({"typical_p": 1.5}, "`typical_p` must be > 0.0 and <= 1.0"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than 2047. Given: 0"),
    (
        {"max_new_tokens": 2044},
        "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 5 `inputs` tokens and 2044 `max_new_tokens`",
    ),
    ({"watermark": True}, "`watermark` is not supported by this server; leave it out"),
    ({"grammar": {"type": "regex", "value": "a"}}, "`grammar` is not supported by this server; leave it out"),
    ({"adapter_id": "x"}, "`adapter_id` is not supported by this server; leave it out"),
    ({"temperature": "hot"}, "`parameters.temperature`: input should be a valid number"),
    ({"max_new_tokens": True}, "`parameters.max_new_tokens`: input should be a valid integer"),
    ({"max_new_tokens": 5.0}, "`parameters.max_new_tokens`: input should be a valid integer"),
    ({"seed": 2**64}, f"`parameters.seed`: input should be less than or equal to {2**64 - 1}"),
]


@tgi(
    "1.2 temperature",
    "1.2 repetition_penalty",
    "1.2 frequency_penalty",
    "1.2 top_k",
    "1.2 top_p",
    "1.2 typical_p",
    "1.2 watermark",
    "1.2 grammar",
    "1.2 adapter_id",
    "1.4 refusals",
    "1.9 validation",
    "1.9 422",
)
@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(("parameters", "message"), REFUSED)
def test_refusals_have_true_statuses_on_both_routes(
    client: httpx.Client, route: str, parameters: dict[str, Any], message: str
) -> None:
    response = client.post(route, json={"inputs": "hello", "parameters": GREEDY | parameters})
    assert response.status_code == 422
    if route == "/generate_stream" and parameters == {"best_of": 2, "do_sample": True, "seed": 1}:
        message = "`best_of` != 1 is not supported when streaming tokens"
    assert response.json() == {"error": f"Input validation error: {message}", "error_type": "validation"}


# Each breaks a rule of its own; the first of them is the one that is told.
BROKEN = [
    ({"best_of": 3}, "`best_of` must be > 0"),
    ({"temperature": 0.0}, "`temperature`"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty`"),
    ({"frequency_penalty": 3.0}, "`frequency_penalty`"),
    ({"top_p": 0.0}, "`top_p`"),
    ({"typical_p": 0.0}, "`typical_p`"),
    ({"top_k": 0}, "`top_k`"),
    ({"max_new_tokens": 0}, "`max_new_tokens`"),
    ({"stop": ["a"] * 5}, "`stop`"),
    ({"top_n_tokens": 6}, "`top_n_tokens`"),
    ({"truncate": 0}, "`truncate`"),
]


@tgi("1.2 order of checks")
@pytest.mark.parametrize("first", range(len(BROKEN)))
def test_the_first_broken_rule_is_told(client: httpx.Client, first: int) -> None:
    parameters = {key: value for fields, _ in BROKEN[first:] for key, value in fields.items()}
    error = generate(client, **parameters).json()["error"]
    assert error.startswith(f"Input validation error: {BROKEN[first][1]}")


@tgi("1.2 inputs", "1.2 input length")
def test_inputs(client: httpx.Client) -> None:
    assert generate(client, "").json()["error"] == "Input validation error: `inputs` cannot be empty"
    long = client.post("/generate", json={"inputs": "x" * 3000})
    assert long.json()["error"] == "Input validation error: `inputs` must have less than 2047 tokens. Given: 3000"
    missing = client.post("/generate", json={"parameters": {}})
    assert (missing.status_code, missing.json()["error"]) == (422, "Input validation error: `inputs` is missing")


@tgi("1.2 max_new_tokens")
def test_context_is_filled_when_no_bound_is_given(client: httpx.Client) -> None:
    body = {"inputs": "x" * 2000, "parameters": {"details": True}}
    details = client.post("/generate", json=body).json()["details"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 48)


@tgi("1.1 malformed body", "1.1 payload limit", "1.9 400", "1.9 413", "1.9 415", "1.9 422")
@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b'{"inputs": "a", "parameters": {"temperature": NaN}}', "application/json", 400),
        (b'{"inputs": "a", "parameters": {"temperature": 1e400}}', "application/json", 400),
        (b"{", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"inputs": "\xff"}', "application/json", 400),
        (b'{"inputs": "\\ud800"}', "application/json", 400),
        (b"[]", "application/json", 422),
        (b'{"inputs": "a"}', "text/plain", 415),
        (b'{"inputs": "' + b"a" * 2_000_000 + b'"}', "application/json", 413),
    ],
)
def test_bodies_that_cannot_be_read(client: httpx.Client, content: bytes, content_type: str, status: int) -> None:
    for route in ("/generate", "/generate_stream"):
        response = client.post(route, content=content, headers={"content-type": content_type})
        assert response.status_code == status
        assert response.json().keys() == {"error", "error_type"}


@tgi("1.1 payload limit", "1.9 413")
def test_chunked_body_over_the_cap(client: httpx.Client) -> None:
    chunks = (b" " * 100_000 for _ in range(30))
    response = client.post("/generate", content=chunks, headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    assert client.get("/nothing").json() == {"error": "there is no such route", "error_type": "not_found"}
    assert client.get("/generate").status_code == 405
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_request_ids(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/livez", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    assert len(made) == 32
