"""Who may use the server: bearer keys on every route that is not public by name, known or not.

The keys themselves are not kept, only their digests. What is compared is `scope["path"]`, the path that routes are
chosen by, never one rebuilt from headers (CVE-2026-48746's class).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mainspring.core.errors import StartupError
from mainspring.server.http.answers import json_response
from mainspring.server.openai.types import ErrorBody, ErrorResponse

PROBES = frozenset({"/", "/health", "/ping", "/livez", "/readyz", "/startupz"})
"""Answered to anybody, for orchestrators hold no keys. `POST /` generates and is not among them."""
TELLING = frozenset({"/metrics", "/info"})
"""Answered to anybody too, as TGI does, unless the operator makes them private."""
_READING = frozenset({"GET", "HEAD"})
_OPENAI_REFUSAL = ErrorResponse(
    ErrorBody(
        "Incorrect API key provided; send the header `Authorization: Bearer KEY`",
        "invalid_request_error",
        None,
        "invalid_api_key",
    )
)


class KeyRing:
    """The keys that open the server; an empty one leaves it open. Those of `file` can be changed while it serves."""

    def __init__(self, keys: Iterable[str], file: Path | None = None) -> None:
        self.file = file
        self._given = tuple(_digest(key.encode()) for key in keys)
        self._digests = self._given
        self.reload()

    def reload(self) -> None:
        """Read the file again, one key a line. Raises StartupError, and keeps the keys, where it holds none."""
        if self.file is None:
            return
        try:
            keys = self.file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"--api-key-file {self.file} cannot be read: {error}") from error
        if not keys:
            raise StartupError(f"--api-key-file {self.file} holds no key; write one a line")
        self._digests = (*self._given, *(_digest(key.encode()) for key in keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def opens(self, authorization: bytes) -> bool:
        """Whether an `Authorization` header holds one of the keys, in a time that does not tell which or how nearly."""
        given = key_digest(authorization)
        if given is None:
            return False
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return any(matches)


def authorization_of(scope: Scope) -> bytes:
    """The one `Authorization` header of a request; empty where there is none, or several."""
    given: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    return given[0] if len(given) == 1 else b""


def key_digest(authorization: bytes) -> bytes | None:
    """What stands for the key in an `Authorization` header."""
    scheme, _, key = authorization.partition(b" ")
    return _digest(key.strip()) if scheme.lower() == b"bearer" else None


class Authentication:
    """Answers 401 to whoever has no key: TGI's empty body, and OpenAI's error object under `/v1/`."""

    def __init__(self, app: ASGIApp, keys: KeyRing, public: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._keys or scope["type"] == "lifespan" or self._allows(scope):
            await self._app(scope, receive, send)
            return
        await _refusal(scope["path"])(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if scope["type"] != "http":
            return False
        if scope["method"] in _READING and scope["path"] in self._public:
            return True
        return self._keys.opens(authorization_of(scope))


def _refusal(path: str) -> Response:
    headers = {"www-authenticate": "Bearer"}
    if path.startswith("/v1/"):
        return json_response(_OPENAI_REFUSAL, headers, status=401)
    return Response(status_code=401, headers=headers)


def _digest(key: bytes) -> bytes:
    # Keys are long random strings, not passwords: a plain hash of a fixed length is enough, and quick.
    return hashlib.sha256(key).digest()
