"""Errors as TGI answers them: one table, one body."""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.server.errors import BodyError, TemplateError
from mainspring.server.http import sse
from mainspring.server.tgi.types import ErrorResponse

_TABLE = {
    ErrorKind.INVALID: (422, "validation", "Input validation error: {}"),
    ErrorKind.OVERLOADED: (429, "overloaded", "Model is overloaded"),
    ErrorKind.DEADLINE: (504, "generation", "Request failed during generation: {}"),
    ErrorKind.OUT_OF_MEMORY: (424, "generation", "Request failed during generation: {}"),
    ErrorKind.NUMERICAL: (424, "generation", "Request failed during generation: {}"),
    ErrorKind.ENGINE_DEAD: (503, "healthcheck", "{}"),
    ErrorKind.SHUTTING_DOWN: (503, "healthcheck", "{}"),
    ErrorKind.INTERNAL: (500, "incomplete_generation", "Incomplete generation"),
}


def describe(error: RequestError) -> tuple[int, ErrorResponse]:
    """Status and body of an error."""
    if isinstance(error, BodyError):
        return error.status, ErrorResponse(error.message, "validation")
    if isinstance(error, TemplateError):
        return 422, ErrorResponse(f"Template error: {error.message}", "template_error")
    status, error_type, text = _TABLE[error.kind]
    return status, ErrorResponse(text.format(error.message), error_type)


def error_response(error: RequestError) -> Response:
    """The plain answer, when nothing has been sent yet."""
    status, body = describe(error)
    headers = {"retry-after": str(math.ceil(error.retry_after or 1))} if status in (429, 503) else None
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def error_event(error: RequestError) -> bytes:
    """The one event that ends a stream which had begun."""
    _, body = describe(error)
    if error.kind is ErrorKind.INTERNAL:
        body = ErrorResponse("Incomplete generation stream", "incomplete_generation_stream")
    return sse.event(body)
