"""Errors that the server itself finds in a request, beside those of `core/errors.py`.

Each protocol maps them to its statuses and bodies in `tgi/errors.py` and `openai/errors.py`. Messages name the field
and the way out, and never hold a path, a trace or another request's text.
"""

from __future__ import annotations

from mainspring.core.errors import ErrorKind, RequestError


class FieldError(RequestError):
    """One field of the request is wrong."""

    def __init__(self, message: str, field: str | None, code: str | None = None) -> None:
        super().__init__(ErrorKind.INVALID, message)
        self.field = field
        """Its name on the wire, with dots for nesting; None when the whole is wrong."""
        self.code = code
        """A word for programs, in OpenAI's shape only."""


class UnsupportedError(FieldError):
    """A field asks for something that this server does not do."""

    def __init__(self, field: str) -> None:
        super().__init__(f"`{field}` is not supported by this server; leave it out", field)


class TemplateError(FieldError):
    """The chat template is missing or refuses the messages."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "messages")


class UnknownModelError(FieldError):
    """The request names a model that is not served here."""

    def __init__(self, given: str, served: str) -> None:
        super().__init__(f"the model `{given[:200]}` does not exist; this server serves `{served}`", "model")


class BodyError(RequestError):
    """The body could not be read as JSON at all."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(ErrorKind.INVALID, message)
        self.status = status
        """400 malformed, 408 too slow, 413 too large, 415 of another type."""


class NotReadyError(RequestError):
    """The model is still loading."""

    def __init__(self, phase: str) -> None:
        super().__init__(ErrorKind.SHUTTING_DOWN, f"the model is not ready: {phase}", retry_after=1.0)


def invalid(message: str, field: str | None = None, code: str | None = None) -> FieldError:
    """A field error, in one word at the place where it is raised."""
    return FieldError(message, field, code)
