"""Errors as OpenAI answers them: one table, one body."""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from mainspring.core.errors import ErrorKind, RequestError
from mainspring.server.errors import BodyError, FieldError, TemplateError, UnknownModelError, UnsupportedError
from mainspring.server.http import sse
from mainspring.server.openai.types import ErrorBody, ErrorResponse

_INVALID = "invalid_request_error"
_TABLE = {
    ErrorKind.INVALID: (400, _INVALID, None),
    ErrorKind.OVERLOADED: (429, "rate_limit_error", "overloaded"),
    ErrorKind.DEADLINE: (504, "server_error", "deadline_exceeded"),
    ErrorKind.OUT_OF_MEMORY: (500, "server_error", "out_of_memory"),
    ErrorKind.NUMERICAL: (500, "server_error", "numerical_error"),
    ErrorKind.ENGINE_DEAD: (503, "server_error", "engine_dead"),
    ErrorKind.SHUTTING_DOWN: (503, "server_error", "unavailable"),
    ErrorKind.INTERNAL: (500, "server_error", "internal_error"),
}


def describe(error: RequestError) -> tuple[int, ErrorResponse]:
    """Status and body of an error."""
    status, error_type, code = _TABLE[error.kind]
    param = error.field if isinstance(error, FieldError) else None
    match error:
        case BodyError():
            status = error.status
        case UnknownModelError():
            status, code = 404, "model_not_found"
        case UnsupportedError():
            code = "unsupported_parameter"
        case TemplateError():
            code = "template_error"
        case FieldError(code=str(own)):
            code = own
    return status, ErrorResponse(ErrorBody(error.message, error_type, param, code))


def error_response(error: RequestError) -> Response:
    """The plain answer, when nothing has been sent yet."""
    status, body = describe(error)
    headers = {"retry-after": str(math.ceil(error.retry_after or 1))} if status in (429, 503) else None
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def error_event(error: RequestError) -> bytes:
    """The one event that ends a stream which had begun. No `[DONE]` follows."""
    return sse.event(describe(error)[1])
