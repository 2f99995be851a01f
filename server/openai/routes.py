"""OpenAI's routes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mainspring.core.errors import RequestError
from mainspring.server.errors import UnknownModelError
from mainspring.server.http import sse
from mainspring.server.http.answers import CLIENT_GONE, json_response, service_of, stream_headers, timing_headers
from mainspring.server.http.body import read_body
from mainspring.server.model import ServedModel
from mainspring.server.openai.collect import collect_chat, collect_completion
from mainspring.server.openai.errors import error_event, error_response
from mainspring.server.openai.identity import Identity, new_identity
from mainspring.server.openai.parse import Call, parse_chat, parse_completion
from mainspring.server.openai.stream import stream_chat, stream_completion
from mainspring.server.openai.types import ChatCompletion, Completion, Model, ModelList
from mainspring.server.service import Service, Timing
from mainspring.server.text.generation import Piece

Pieces = AsyncGenerator[Piece, None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What differs between the two generation routes."""

    id_prefix: str
    parse: Callable[[bytes, ServedModel], Call]
    stream: Callable[[Pieces, Call, Timing, Identity], sse.Events]
    collect: Callable[[Pieces, Call, Timing, Identity], Coroutine[Any, Any, ChatCompletion | Completion]]


CHAT = Endpoint("chatcmpl", parse_chat, stream_chat, collect_chat)
COMPLETION = Endpoint("cmpl", parse_completion, stream_completion, collect_completion)


async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    return await _answer(request, CHAT)


async def completions(request: Request) -> Response:
    """`POST /v1/completions`."""
    return await _answer(request, COMPLETION)


async def _answer(request: Request, endpoint: Endpoint) -> Response:
    try:
        body = await read_body(request, request.app.state.payload_limit)
    except RequestError as error:
        return error_response(error)
    return await answer_body(request, body, endpoint)


async def answer_body(request: Request, body: bytes, endpoint: Endpoint) -> Response:
    """The answer to a body that has been read, whichever route it came by."""
    timing = Timing()
    try:
        service = service_of(request)
        call = await service.parse(endpoint.parse, body, timing)
        pieces = service.run(call.generations, timing)
        identity = new_identity(endpoint.id_prefix, service.model)
        if call.stream:
            events = endpoint.stream(pieces, call, timing, identity)
            headers = stream_headers(service, call.prompt_characters)
            return sse.EventStream(events, refuse=error_response, failure=error_event, headers=headers)
        answer = await sse.until_gone(request.receive, endpoint.collect(pieces, call, timing, identity))
    except RequestError as error:
        return error_response(error)
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return json_response(answer, timing_headers(service, call.prompt_characters, timing))


async def models(request: Request) -> Response:
    """`GET /v1/models`: the one that is served."""
    try:
        return json_response(ModelList([_model(service_of(request))]))
    except RequestError as error:
        return error_response(error)


async def model(request: Request) -> Response:
    """`GET /v1/models/{id}`."""
    try:
        served = _model(service_of(request))
        if request.path_params["model_id"] != served.id:
            raise UnknownModelError(request.path_params["model_id"], served.id)
    except RequestError as error:
        return error_response(error)
    return json_response(served)


def _model(service: Service) -> Model:
    model = service.model
    return Model(id=model.id, created=model.created, owned_by=model.id, max_model_len=model.limits.max_total_tokens)


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", models, methods=["GET"]),
    Route("/v1/models/{model_id:path}", model, methods=["GET"]),
]
