"""Bodies that no client means: every field of every route with every kind of wrong value, and bodies that are no JSON.

The fields come from the wire types themselves, so a new field is attacked as soon as it exists.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mainspring.server.openai.types import ChatRequest, CompletionRequest, SamplingFields
from mainspring.server.tgi.types import GenerateParameters, GenerateRequest

GOOD: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "hello", "parameters": {"max_new_tokens": 2}},
    "/generate_stream": {"inputs": "hello", "parameters": {"max_new_tokens": 2}},
    "/": {"inputs": "hello", "parameters": {"max_new_tokens": 2}},
    "/v1/completions": {"prompt": "hello", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2},
}


@dataclass(frozen=True)
class Raw:
    """JSON text that no Python value stands for."""

    text: str


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    7.5,
    -0.0,
    5e-324,
    1e308,
    2**31,
    2**32,
    2**63,
    2**64 + 1,
    -(2**63) - 1,
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("1e400"),
    Raw("1" + "0" * 5000),
    Raw('"\\ud800"'),
    Raw('{"a": 1, "a": 2}'),
    "",
    "5",
    "nan",
    "\x00",
    "\u202e\u0000\U0010ffff",
    "{{ 7 * 7 }}{% raise %}",
    "a" * 10_000,
    "../../etc/passwd",
    [],
    [None],
    [-1],
    [2**40],
    [10**30],
    [1, "a", [2]],
    [[]],
    [[[1]]],
    ["a"] * 5000,
    [999] * 5000,
    [999_999],
    {},
    {"": ""},
    {"-1": 1},
    {"999999": 1},
    {"1": 1e300},
    {str(number): -100 for number in range(5000)},
    {"type": "regex", "value": "(a+)+$"},
    {"type": "json_schema", "json_schema": {"$ref": "#"}},
    {"__class__": "os.system", "$where": "1"},
    [{"role": "user", "content": "x"}] * 5000,
    [{"role": "x" * 10_000, "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    [{"role": "user", "content": None, "tool_calls": [{"function": {"arguments": {"a": []}}}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
]

BROKEN = [
    b"",
    b"null",
    b"[]",
    b"0",
    b'"',
    b"{",
    b'{"inputs"',
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"\x00" * 1000,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 500_000 + b"]" * 500_000,
    b'{"inputs": "x"}{"inputs": "y"}',
    b"{'inputs': 'x'}",
    b'{"inputs": "\xc3\x28"}',
    b'{"inputs": "x", "inputs": 1}',
    b'{"inputs":"' + b"\\u0000" * 1000 + b'"}',
    b'{"prompt":' + b"[" * 60 + b"]" * 60 + b"}",
    b"(" * 10_000,
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x04\x95\x00",
]


def encode(value: Any) -> bytes:
    """JSON, with `Raw` pieces as they are."""
    if isinstance(value, Raw):
        return value.text.encode()
    if isinstance(value, dict):
        return b"{" + b",".join(json.dumps(key).encode() + b":" + encode(entry) for key, entry in value.items()) + b"}"
    return json.dumps(value).encode()


def corpus() -> Iterator[tuple[str, bytes]]:
    """Route and body: each field of each route with each value."""
    for route, good in GOOD.items():
        for body in BROKEN:
            yield route, body
        for field in fields_of(route):
            for value in VALUES:
                yield route, encode({**good, field: value})
    for field in GenerateParameters.model_fields:
        for value in VALUES:
            parameters = {"max_new_tokens": 2, "details": True, field: value}
            yield "/generate", encode({"inputs": "x", "parameters": parameters})


def fields_of(route: str) -> list[str]:
    """The names that a route reads."""
    if route == "/v1/chat/completions":
        # What it shares with completions is attacked there.
        return [field for field in ChatRequest.model_fields if field not in SamplingFields.model_fields]
    return [*(CompletionRequest if route == "/v1/completions" else GenerateRequest).model_fields]


def mutations(count: int, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """Good bodies with some bytes changed, cut out or doubled."""
    routes = list(GOOD)
    for _ in range(count):
        route = dice.choice(routes)
        body = bytearray(encode(GOOD[route]))
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(body))
            match dice.randrange(3):
                case 0:
                    body[at] = dice.randrange(256)
                case 1:
                    del body[at : at + dice.randrange(1, 5)]
                case _:
                    body[at:at] = body[at : at + dice.randrange(1, 9)]
        yield route, bytes(body)


REQUESTS = [
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
    b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: x/livez?\r\nconnection: close\r\n\r\n",
    b"GET //etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET /%00%ff HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"DELETE /generate HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 60_000 + b"\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: " + b"\xff" * 40 + b"\r\nconnection: close\r\n\r\n",
    b"A" * 200_000,
    b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 1_000_000 + b"\r\n\r\n",
]
"""What is no HTTP, or HTTP that two parsers read in two ways."""
