"""Small things that both protocols' routes share: the service of a request, JSON answers, TGI's timing headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mainspring.server.lifecycle import Lifecycle
from mainspring.server.service import Service, Timing

CLIENT_GONE = 499
"""Status of an answer that nobody reads (nginx's number)."""


def service_of(request: Request) -> Service:
    """The serving model. Raises NotReadyError while it loads or drains."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    return lifecycle.serving()


def json_response(value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Any value that msgspec encodes."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def stream_headers(service: Service, prompt_characters: int) -> dict[str, str]:
    """What is known before the first token."""
    return {"x-compute-type": service.model.compute_type, "x-compute-characters": str(prompt_characters)}


def timing_headers(service: Service, prompt_characters: int, timing: Timing) -> dict[str, str]:
    """TGI's account of a finished request: seconds for x-compute-time, whole milliseconds for the others."""
    per_token = timing.inference_seconds / max(timing.generated_tokens, 1)
    milliseconds = {
        "x-total-time": timing.total_seconds,
        "x-validation-time": timing.validation_seconds,
        "x-queue-time": timing.queue_seconds,
        "x-inference-time": timing.inference_seconds,
        "x-time-per-token": per_token,
    }
    return {
        **stream_headers(service, prompt_characters),
        "x-compute-time": f"{timing.total_seconds:.6f}",
        "x-prompt-tokens": str(timing.prompt_tokens),
        "x-generated-tokens": str(timing.generated_tokens),
        **{name: str(round(seconds * 1000)) for name, seconds in milliseconds.items()},
    }
