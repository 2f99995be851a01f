"""What servers are asked and how their streams are read: TGI's protocol and OpenAI's two, as clients see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mainspring.server.bench.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Reading:
    """What one event says. Numbers of tokens are None in events that do not tell them."""

    has_tokens: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One protocol."""

    path: str
    body: Callable[[Prompt, Mapping[str, Any]], dict[str, Any]]
    """The request for a prompt; the mapping holds the model's name and what the operator adds."""
    read: Callable[[Any], Reading]
    takes_ids: bool
    """Whether a prompt may be token ids; else it must be text."""


def read_event(dialect: Dialect, data: bytes) -> Reading:
    """One event of a stream. Raises `msgspec.DecodeError` for one that is no JSON."""
    if data == b"[DONE]":
        return Reading()
    value = msgspec.json.decode(data)
    if isinstance(value, dict) and value.get("error"):
        return Reading(error=error_text(value))
    return dialect.read(value)


def error_text(body: Any) -> str:
    """The message of an error in either protocol's shape."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def _tgi_body(prompt: Prompt, extra: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {key: value for key, value in extra.items() if key not in ("model", "ignore_eos", "temperature")}
    # TGI has no temperature of 0: greedy is what it does unasked.
    return {
        "inputs": prompt.text,
        "parameters": {"max_new_tokens": prompt.output_tokens, "details": True, **wanted},
    }


def _tgi_reading(value: Any) -> Reading:
    details = value.get("details") or {}
    return Reading("token" in value, details.get("input_length"), details.get("generated_tokens"))


def _openai_body(prompt: Prompt, extra: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "max_tokens": prompt.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }


def _chat_body(prompt: Prompt, extra: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt.text}], **_openai_body(prompt, extra)}


def _completion_body(prompt: Prompt, extra: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt.token_ids or prompt.text, **_openai_body(prompt, extra)}


def _openai_reading(value: Any) -> Reading:
    usage = value.get("usage") or {}
    text = [choice.get("text") or (choice.get("delta") or {}).get("content") for choice in value.get("choices") or ()]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Reading(any(text), usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0)


DIALECTS = {
    "chat": Dialect("/v1/chat/completions", _chat_body, _openai_reading, takes_ids=False),
    "completions": Dialect("/v1/completions", _completion_body, _openai_reading, takes_ids=True),
    "tgi": Dialect("/generate_stream", _tgi_body, _tgi_reading, takes_ids=False),
}
