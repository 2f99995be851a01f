"""TGI's table of errors: the status, the word and the text of each kind."""

from __future__ import annotations

import json

import pytest

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.server.errors import BodyError, TemplateError, invalid
from mainspring.server.tgi.errors import describe, error_event, error_response
from mainspring.server.tgi.types import ErrorResponse
from tests.support.tgi_rows import tgi


@pytest.mark.parametrize(
    ("error", "status", "error_type", "text"),
    [
        pytest.param(invalid("x"), 422, "validation", "Input validation error: x", marks=tgi("1.9 validation")),
        pytest.param(TemplateError("x"), 422, "template_error", "Template error: x", marks=tgi("1.9 template_error")),
        pytest.param(
            RequestError(ErrorKind.NUMERICAL, "x"),
            424,
            "generation",
            "Request failed during generation: x",
            marks=tgi("1.9 generation"),
        ),
        pytest.param(
            RequestError(ErrorKind.OVERLOADED, "x"),
            429,
            "overloaded",
            "Model is overloaded",
            marks=tgi("1.9 overloaded"),
        ),
        pytest.param(
            RequestError(ErrorKind.INTERNAL, "x"),
            500,
            "incomplete_generation",
            "Incomplete generation",
            marks=tgi("1.9 incomplete_generation"),
        ),
        pytest.param(RequestError(ErrorKind.ENGINE_DEAD, "x"), 503, "healthcheck", "x", marks=tgi("1.9 healthcheck")),
        pytest.param(BodyError(413, "x"), 413, "validation", "x", marks=tgi("1.9 413")),
    ],
)
def test_plain_answers(error: RequestError, status: int, error_type: str, text: str) -> None:
    assert describe(error) == (status, ErrorResponse(text, error_type))


@pytest.mark.parametrize("kind", ErrorKind)
def test_whoever_may_come_again_is_told_when(kind: ErrorKind) -> None:
    response = error_response(RequestError(kind, "x"))
    assert ("retry-after" in response.headers) == (response.status_code in (429, 503))


@tgi("1.9 incomplete_generation_stream", "1.4 errors in the stream")
def test_a_stream_that_lost_its_end() -> None:
    event = error_event(RequestError(ErrorKind.INTERNAL, "x")).decode()
    assert event.endswith("\n\n")
    assert json.loads(event.removeprefix("data: ")) == {
        "error": "Incomplete generation stream",
        "error_type": "incomplete_generation_stream",
    }
