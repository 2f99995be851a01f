"""Bytes from outside to checked wire types: size, time, JSON and shape, in this order.

JSON is read by msgspec, which refuses NaN, Infinity and numbers beyond a double; pydantic's strict mode refuses
booleans and strings where a number belongs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from mainspring.server.errors import BodyError, FieldError, invalid
from mainspring.server.http.slices import decode_json, keys_of

BODY_SECONDS = 30.0
"""A body that takes longer to arrive is given up."""
_SMALL_BYTES = 64 << 10
"""Bodies up to this size are read without waiting for others' turns."""
MAX_DEPTH = 64
"""Arrays and objects inside one another; checked before anything is parsed."""

Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Unsigned32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Unsigned64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Signed32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Signed64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]

_TYPE_NAMES = {"str", "int", "float", "bool", "dict", "list"}


class WireModel(BaseModel):
    """A request type. Keys that are not known are ignored, as both protocols' clients expect."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


Wire = TypeVar("Wire", bound=WireModel)
Read = TypeVar("Read")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises BodyError when it is no JSON by its type, too large, or too slow."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise BodyError(415, "expected a request with `Content-Type: application/json`")
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                if len(body) > _SMALL_BYTES:
                    # uvicorn reads on when it is asked for more, so large bodies take turns, one each time round the
                    # loop: fifty at once would hold it up for as long as all of them take.
                    async with request.app.state.reading:
                        await asyncio.sleep(0)
    except TimeoutError as error:
        raise BodyError(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from error
    except ClientDisconnect as error:
        raise BodyError(400, "the connection closed before the end of the body") from error
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """Raises BodyError for anything but one finite, not too deeply nested JSON value."""
    return _read_json(body, decode_json)


def parse_keys(body: bytes) -> Iterable[str]:
    """The names in a JSON object, without reading what they stand for. Raises BodyError like `parse_json`."""
    return _read_json(body, keys_of)


def _read_json(body: bytes, decode: Callable[[bytes], Read]) -> Read:
    if json_depth(body) > MAX_DEPTH:
        raise BodyError(400, f"the JSON body is nested more than {MAX_DEPTH} deep")
    try:
        return decode(body)
    except UnicodeDecodeError as error:
        raise BodyError(400, "the body is not UTF-8") from error
    except msgspec.MsgspecError as error:  # its text has positions, never content
        raise BodyError(400, f"the body is not valid JSON: {error}") from error


def json_depth(body: bytes) -> int:
    """How deep the brackets outside of strings are nested; an upper bound where few brackets make it harmless.

    Linear in the body whatever is in it, and without a Python loop: brackets in hostile bodies count by the million.
    """
    num_brackets = body.count(b"[") + body.count(b"{")
    if num_brackets <= MAX_DEPTH:
        return num_brackets
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    characters = np.frombuffer(unescaped, np.uint8)
    outside = np.cumsum(characters == ord('"'), dtype=np.int32) % 2 == 0
    steps = np.zeros(256, np.int8)
    steps[list(b"[{")] = 1
    steps[list(b"]}")] = -1
    return int(np.cumsum(steps[characters] * outside, dtype=np.int32).max())


def parse_wire(model: type[Wire], body: bytes) -> Wire:
    """A body as a wire type. Raises BodyError for broken JSON, FieldError for the first field that is wrong."""
    value = parse_json(body)
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _field_error(error) from error


def _field_error(error: ValidationError) -> FieldError:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union every branch complains; the one that got furthest is the one that was meant.
    of_first_field = [entry for entry in errors if entry["loc"][:1] == errors[0]["loc"][:1]]
    chosen = max(of_first_field, key=lambda entry: (not entry["type"].endswith("_type"), len(entry["loc"])))
    field = ".".join(str(part) for part in chosen["loc"] if not _is_branch(part))
    if chosen["type"] == "missing":
        return invalid(f"`{field}` is missing", field)
    message = chosen["msg"]
    return invalid(f"`{field}`: {message[:1].lower()}{message[1:]}", field)


def _is_branch(part: int | str) -> bool:
    """Whether pydantic put the name of a union's branch, such as `list[str]`, into the path of a field."""
    return isinstance(part, str) and (part in _TYPE_NAMES or "[" in part or part.startswith("constrained-"))


def _too_large(max_bytes: int) -> BodyError:
    return BodyError(413, f"the body is larger than {max_bytes} bytes")
