"""TGI's routes: the shapes of its OpenAPI document, its statuses and texts, and its rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.server.errors import TemplateError
from mainspring.server.http import sse
from mainspring.server.tgi import errors
from tests.server.conftest import RunningServer, options_for
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
    for temperature in (0.5, 1.0):
        sampled = generate(client, temperature=temperature, details=True).json()
        assert sampled["details"]["seed"] is not None

    def texts(**parameters: object) -> set[str]:
        return {client.post("/generate", json={"inputs": "x", **parameters}).json()["generated_text"] for _ in range(2)}

    assert len(texts()) == 2
    assert len(texts(parameters={})) == 1


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
    assert info["num_shard"] == 1
    assert info["speculate"] == 0


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
    (
        {"grammar": {"type": "xml", "value": "a"}},
        "`grammar.type` must be json, json_schema or regex. Given: 'xml'",
    ),
    ({"adapter_id": "x"}, "`adapter_id` is not supported by this server; leave it out"),
    ({"temperature": "hot"}, "`parameters.temperature`: input should be a valid number"),
    ({"max_new_tokens": True}, "`parameters.max_new_tokens`: input should be a valid integer"),
    ({"max_new_tokens": 5.0}, "`parameters.max_new_tokens`: input should be a valid integer"),
    ({"seed": 2**64}, f"`parameters.seed`: input should be less than or equal to {2**64 - 1}"),
]


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(
    ("parameters", "message"), [pytest.param(*row, marks=tgi(f"1.2 {next(iter(row[0]))}")) for row in REFUSED]
)
@tgi("1.9 validation", "1.4 refusals")
def test_refusals_have_true_statuses_on_both_routes(
    client: httpx.Client, route: str, parameters: dict[str, Any], message: str
) -> None:
    response = client.post(route, json={"inputs": "hello", "parameters": GREEDY | parameters})
    assert response.status_code == 422
    if route == "/generate_stream" and parameters == {"best_of": 2, "do_sample": True, "seed": 1}:
        message = "`best_of` != 1 is not supported when streaming tokens"
    assert response.json() == {"error": f"Input validation error: {message}", "error_type": "validation"}


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


@tgi("1.2 order of checks")
def test_of_several_mistakes_the_first_of_tgis_order_is_told(client: httpx.Client) -> None:
    wrong = [("best_of", 9), ("temperature", 0.0), ("repetition_penalty", 0.0), ("frequency_penalty", 9.0)]
    wrong += [("top_p", 0.0), ("typical_p", 0.0), ("top_k", 0), ("max_new_tokens", 0), ("stop", ["a"] * 9)]
    wrong += [("top_n_tokens", 9), ("truncate", 0)]
    for first, (name, _) in enumerate(wrong):
        assert f"`{name}`" in generate(client, **dict(wrong[first:])).json()["error"], name


@tgi("1.2 long generations")
def test_what_does_not_fit_the_context_is_refused_and_not_cut(client: httpx.Client) -> None:
    refused = generate(client, max_new_tokens=120_000)
    assert (refused.status_code, "must be <= 2048" in refused.json()["error"]) == (422, True)
    whole = generate(client, max_new_tokens=1500, details=True).json()["details"]
    assert (whole["generated_tokens"], whole["finish_reason"]) == (1500, "length")


@tgi("1.2 temperature", "1.2 repetition_penalty", "1.2 frequency_penalty", "1.2 top_k", "1.2 top_p", "1.2 typical_p")
@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.5},
        {"repetition_penalty": 1.2},
        {"frequency_penalty": -2.0},
        {"top_k": 5},
        {"top_p": 0.9},
        {"top_p": 1.0},
        {"typical_p": 0.9},
    ],
)
def test_sampling_parameters_are_taken(client: httpx.Client, parameters: dict[str, Any]) -> None:
    details = generate(client, details=True, **parameters).json()["details"]
    greedy = parameters.keys() <= {"repetition_penalty", "frequency_penalty"}
    assert (details["seed"] is None) == greedy


@tgi("1.4 headers", "2.3 X-Accel-Buffering")
def test_headers_of_a_stream(client: httpx.Client) -> None:
    headers = client.post("/generate_stream", json={"inputs": "hello", "parameters": GREEDY}).headers
    assert headers["content-type"].startswith("text/event-stream")
    shown = {name: headers[name] for name in ("x-compute-type", "x-compute-characters", "x-accel-buffering")}
    assert shown == {"x-compute-type": "sim", "x-compute-characters": "5", "x-accel-buffering": "no"}


@tgi("1.9 incomplete_generation", "1.9 incomplete_generation_stream", "1.9 generation", "1.9 overloaded")
@tgi("1.9 healthcheck", "1.9 template_error", "1.9 validation")
@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (RequestError(ErrorKind.INVALID, "x"), 422, ("Input validation error: x", "validation")),
        (TemplateError("x"), 422, ("Template error: x", "template_error")),
        (RequestError(ErrorKind.NUMERICAL, "x"), 424, ("Request failed during generation: x", "generation")),
        (RequestError(ErrorKind.OUT_OF_MEMORY, "x"), 424, ("Request failed during generation: x", "generation")),
        (RequestError(ErrorKind.OVERLOADED, "x"), 429, ("Model is overloaded", "overloaded")),
        (RequestError(ErrorKind.INTERNAL, "x"), 500, ("Incomplete generation", "incomplete_generation")),
        (RequestError(ErrorKind.ENGINE_DEAD, "x"), 503, ("x", "healthcheck")),
        (RequestError(ErrorKind.SHUTTING_DOWN, "x"), 503, ("x", "healthcheck")),
        (RequestError(ErrorKind.DEADLINE, "x"), 504, ("Request failed during generation: x", "generation")),
    ],
)
def test_the_table_of_errors(error: RequestError, status: int, body: tuple[str, str]) -> None:
    text, error_type = body
    answer = errors.error_response(error)
    assert (answer.status_code, json.loads(answer.body)) == (status, {"error": text, "error_type": error_type})
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    if error.kind is ErrorKind.INTERNAL:
        text, error_type = "Incomplete generation stream", "incomplete_generation_stream"
    event = json.loads(errors.error_event(error).removeprefix(b"data: "))
    assert event == {"error": text, "error_type": error_type}


@tgi("1.4 keep-alive")
def test_a_quiet_stream_says_that_it_lives(model_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    options = options_for(model_directory, speed="1", overhead="0.3")
    with RunningServer(options) as running:
        running.wait_until_ready()
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 2}}
        response = httpx.post(f"{running.url}/generate_stream", json=body, timeout=30)
    assert response.text.count(": keep-alive\n\n") >= 2
    assert len(events(response)) == 2
